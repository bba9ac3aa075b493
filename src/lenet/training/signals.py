"""A run that is asked to end finishes its epoch and saves, or ends at the last save."""

import signal
import time
from contextlib import ExitStack
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from lenet.signals import Interrupted, handling

EPOCH_GRACE_SECONDS = 10
"""An epoch that takes longer than this to its end is not finished after a signal."""


class EndOnSignal(pl.Callback):
    """From the start of training to its end, keeps a signal in `received`; a second Ctrl-C ends the program."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handling = ExitStack()
        self._epoch_began = 0.0

    def on_train_start(self, *_: Any, **__: Any) -> None:
        self._handling.enter_context(handling(self._note))

    def on_train_epoch_start(self, *_: Any, **__: Any) -> None:
        self._epoch_began = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, ___: Any, batch_idx: int) -> None:
        if self._agreed(trainer, self.received is not None):
            done = batch_idx + 1
            left = (trainer.num_training_batches - done) * (time.monotonic() - self._epoch_began) / done
            if self._agreed(trainer, left > EPOCH_GRACE_SECONDS):
                raise Interrupted(self.received or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agreed(trainer, self.received is not None):
            self.received = self.received or signal.SIGTERM  # another device has received it
            trainer.should_stop = True

    def teardown(self, *_: Any, **__: Any) -> None:
        self._handling.close()

    def _agreed(self, trainer: pl.Trainer, own: bool) -> bool:
        """Whether one of the devices says so."""
        return trainer.strategy.reduce_boolean_decision(own, all=False)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        # The system ends the program at the next Ctrl-C, in the middle of a long computation too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
