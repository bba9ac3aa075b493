"""Examples per second of the whole trainer, as the user experiences it."""

import time
from typing import Any

import lightning.pytorch as pl


class Stopwatch:
    """Adds up wall time, from `seconds` on. In a `with` statement, it runs during the block."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._elapsed = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time while it ran, up to now."""
        return self._elapsed + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def start(self) -> None:
        self._elapsed, self._started = self.seconds, time.perf_counter()

    def stop(self) -> None:
        self._elapsed, self._started = self.seconds, None

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class TimedCallback(pl.Callback):
    """A callback with a stopwatch, whose time a checkpoint keeps."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def catch_up(self, trainer: pl.Trainer) -> None:
        """Write what has been put off; called before the run is saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.stopwatch.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopwatch = Stopwatch(state_dict["seconds"])


class Throughput(TimedCallback):
    """Logs `train/examples_per_sec`: images trained ÷ wall time from one epoch's end to the next.

    The clock includes loading, logging, checkpoints and all of the trainer's own work; it leaves out validation, and
    what is drawn and saved after the last epoch. (A clock that starts when the batch has been loaded, as d2l.ai's does,
    measures the optimizer step only.)
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._before = self.stopwatch.seconds, pl_module.images_trained

    def on_train_epoch_start(self, *_: Any) -> None:
        self.stopwatch.start()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        next(pl_module.parameters()).flatten()[0].item()  # returns when the device has done all it was given
        self.stopwatch.stop()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.stopwatch.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.finish_epoch()
        before, self._before = self._before, (self.stopwatch.seconds, pl_module.images_trained)
        seconds, images = self._before[0] - before[0], self._before[1] - before[1]
        pl_module.publish({"train/examples_per_sec": images / seconds if seconds > 0 else 0.0})
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            self.stopwatch.stop()

    def on_train_end(self, *_: Any) -> None:
        self.stopwatch.stop()
