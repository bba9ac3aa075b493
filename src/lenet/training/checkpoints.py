"""The callback that saves a run, and has it go on.

Checkpoints are written after each epoch, every so many seconds, and when a signal asks the run to end. From the last
one a run goes on exactly where it was, in the middle of an epoch too. Lightning leaves the random numbers, the curves
and the running sums to others: so the place in the run is kept here, and `lenet.training.restore` takes it up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lenet.errors import UserError
from lenet.files import sync_file, write_whole
from lenet.monitor.events import PATTERN
from lenet.monitor.tensorboard import RunLogger
from lenet.monitor.throughput import Stopwatch
from lenet.training.checkpoint_file import encode
from lenet.training.endings import cannot_write
from lenet.training.module import Classifier
from lenet.training.restore import random_numbers, set_random_numbers, take_up
from lenet.training.saved import BEST, FOLDER, LAST, OURS, PREVIOUS, Saved
from lenet.training.signals import Interrupts, Leave


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, after the events that belong to it.

    Args:
        written: the number of steps after which last.ckpt was made that is there already.

    Attributes:
        error: why one could not be written.
        failed: the path of that one.
        written: the number of steps after which last.ckpt, as it is on the disk, was made.
    """

    def __init__(self, written: int | None = None) -> None:
        self.error: OSError | None = None
        self.failed: Path | None = None
        self.written = written

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            for events in path.parent.parent.glob(PATTERN):
                sync_file(events)
            write_whole(path, encode(checkpoint), path.with_name(PREVIOUS) if path.name == LAST else None)
            if path.name == LAST:
                self.written = checkpoint["global_step"]
        except OSError as error:
            if self.error is None:  # of what follows, nothing more can be learned
                self.error, self.failed = error, path


class Checkpoints(Checkpoint):
    """Saves a run, and takes it up again. The last of the callbacks, by its base class.

    Args:
        folder: of the run.
        settings: of the run, as plain values.
        every_seconds: save so often, between the end of an epoch and the next.
        interrupts: what asks the run to end.
        logger: whose events belong to a checkpoint.
        stateful: callbacks with a `state_dict`.
        saved: where to go on from.

    Attributes:
        stopwatch: for how long training has waited for checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        every_seconds: float,
        interrupts: Interrupts,
        logger: RunLogger,
        stateful: Sequence[pl.Callback],
        saved: Saved | None = None,
    ) -> None:
        self.folder, self.settings, self.every_seconds = folder / FOLDER, json.dumps(settings), every_seconds
        self.interrupts, self.logger, self.stateful, self.saved = interrupts, logger, stateful, saved
        self.io = WholeFileIO(saved.progress["global_step"] if saved is not None else None)
        self.plugin = AsyncCheckpointIO(self.io)  # training waits for a copy of the weights alone; a thread writes
        self.stopwatch = Stopwatch(saved.progress["checkpoint_seconds"] if saved is not None else 0.0)
        self._epochs = saved.progress["epochs"] if saved is not None else 0
        self._best: float | None = saved.progress["best_val_acc"] if saved is not None else None
        self._when = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.saved is None:
            return
        with self.saved.looked_at():
            take_up(self.saved, trainer, pl_module)
            states = self.saved.progress["callbacks"]
            for callback in self.stateful:
                if (state := states.get(type(callback).__name__)) is not None:
                    callback.load_state_dict(state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interrupts.listen()
        self._when = time.monotonic()
        if self.saved is not None:
            with self.saved.looked_at():
                set_random_numbers(self.saved.progress["random"])
            self.saved = None  # its memory is wanted no more

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        due = time.monotonic() - self._when >= self.every_seconds and pl_module.steps_in_epoch > 0
        due, interrupted = self._agreed(trainer, due)
        if due or interrupted:
            self._save(trainer, LAST)
        if interrupted:
            self._leave(trainer, interrupted)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.is_cut:
            self._save(trainer, LAST)
            self._leave(trainer, self.interrupts.received or 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        acc = pl_module.best_val_acc
        if not trainer.sanity_checking and acc is not None and (self._best is None or acc > self._best):
            # Before the last one: a run that is killed between the two does this epoch again, and finds it best again.
            self._best = acc
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.finish_epoch()
        self._epochs += 1
        pl_module.steps_in_epoch = 0
        self._save(trainer, LAST)
        _, interrupted = self._agreed(trainer)
        if interrupted:
            self._leave(trainer, interrupted)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.wait()
        self._agreed(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Classifier)
        checkpoint[OURS] = {
            **pl_module.progress(),
            "settings": self.settings,
            "epochs": self._epochs,
            "global_step": trainer.global_step,
            "checkpoint_seconds": self.stopwatch.seconds,
            "events": self.logger.state(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.stateful},
            "random": random_numbers(),
        }

    def wait(self) -> None:
        """Return when all that was saved is written, or could not be."""
        self.plugin.teardown()

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        with self.stopwatch:
            trainer.save_checkpoint(self.folder / name)
        self._when = time.monotonic()

    def _leave(self, trainer: pl.Trainer, signum: int) -> None:
        self.wait()
        self._agreed(trainer)  # none ends before the one that writes has written: Lightning kills those that are left
        raise Leave(signum, trainer.global_step)

    def _agreed(self, trainer: pl.Trainer, due: bool = False) -> tuple[bool, int]:
        """Whether to save, and the signal that was met, if any: of one of several devices, it holds for all of them.

        Raises:
            UserError: what was saved cannot be written. What is the use of training on if nothing of it is kept?
        """
        met = [int(due and trainer.is_global_zero), self.interrupts.received or 0, int(self.io.error is not None)]
        if trainer.world_size > 1:
            ours = torch.tensor([float(value) for value in met], device=trainer.strategy.root_device)
            met = [int(value) for value in trainer.strategy.reduce(ours, reduce_op="max").tolist()]
        due, signum, failed = bool(met[0]), met[1], bool(met[2])
        if failed:
            raise self._refusal()
        return due, signum

    def _refusal(self) -> UserError:
        error, failed, step = self.io.error, self.io.failed, self.io.written
        if error is None or failed is None:
            return UserError(f"{self.folder}: another process cannot write it")
        if (self.folder / LAST).exists():
            left = f"the last good checkpoint{'' if step is None else f', of step {step},'} is whole"
        else:
            left = "no checkpoint was written" if step is None else "its last checkpoint is not there any more"
        return cannot_write(failed, error, self.folder.parent, left)
