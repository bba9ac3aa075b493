"""Examples per second of the whole trainer, as the user experiences it."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lenet.data.module import Block, BlockSampler
from lenet.training.module import Classifier


class Stopwatch:
    """Adds up wall time; can be stopped and started again, or runs while a `with` block does.

    Args:
        seconds: what it shows at first.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._elapsed = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time while it ran, up to now."""
        return self._elapsed + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def start(self) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        self._elapsed = self.seconds
        self._started = None

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Throughput(pl.Callback):
    """Logs `train/examples_per_sec`: images trained ÷ wall time from one epoch's end to the next.

    The clock includes loading, logging, checkpoints and all of the trainer's own work; it leaves out validation. It is
    read at log points alone. Before it starts, libraries have set themselves up, in steps on random images. (A clock
    that starts when the batch is at hand, as d2l.ai's does, measures the step only.)

    Attributes:
        stopwatch: seconds of training in all.
        images: trained on in all, over all devices.
    """

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self.images = 0
        self._last_seconds = 0.0
        self._last_images = 0

    @property
    def examples_per_sec(self) -> float:
        """Since the last epoch's end."""
        seconds = self.stopwatch.seconds - self._last_seconds
        return (self.images - self._last_images) / seconds if seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed goes on with."""
        return {
            "seconds": self.stopwatch.seconds,
            "images": self.images,
            "last_seconds": self._last_seconds,
            "last_images": self._last_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with that."""
        self.stopwatch, self.images = Stopwatch(state_dict["seconds"]), state_dict["images"]
        self._last_seconds, self._last_images = state_dict["last_seconds"], state_dict["last_images"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sampler = trainer.train_dataloader.sampler  # type: ignore[union-attr]
        assert isinstance(pl_module, Classifier)
        assert isinstance(sampler, BlockSampler)
        with trainer.precision_plugin.forward_context():
            pl_module.warm_up(sampler.batches.own_sizes)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopwatch.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Block, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        self.images = pl_module.images_trained

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            wait_for_device(pl_module)
            self.stopwatch.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.stopwatch.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.finish_epoch()
        wait_for_device(pl_module)
        pl_module.publish({"train/examples_per_sec": self.examples_per_sec})
        self._last_seconds, self._last_images = self.stopwatch.seconds, self.images

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.checkpoint_io.teardown()  # returns when the last checkpoint is written
        self.stopwatch.stop()


def wait_for_device(module: pl.LightningModule) -> None:
    """Return when the device has done all it was given so far: reading a number back takes its turn in the queue."""
    parameter: Tensor = next(module.parameters())
    parameter.detach().flatten()[0].item()
