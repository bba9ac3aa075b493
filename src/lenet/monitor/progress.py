"""What a run says while it trains: a line an epoch, and on a terminal a bar below the lines."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from lenet.data.module import Block
from lenet.monitor.throughput import Throughput
from lenet.training.module import Classifier, steps_per_epoch

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Logs a line an epoch; on a terminal also shows a bar, which is drawn anew at log points alone.

    Args:
        throughput: knows the examples per second.
    """

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self._bar: tqdm[Any] | None = None
        self._evaluated = False
        self._steps_before = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = False
        if sys.stdout.isatty() and trainer.is_global_zero:
            self._steps_before = trainer.global_step
            left = trainer.max_steps - trainer.global_step if trainer.max_steps != -1 else math.inf
            self._bar = tqdm(
                total=int(min(steps_per_epoch(trainer), left)),
                desc=_epoch(trainer),
                unit="step",
                leave=False,
                file=sys.stdout,
                dynamic_ncols=True,
                mininterval=0,  # log points are rare enough
                miniters=1,
                bar_format="{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}",
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Block, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.at_log_point:
            # Read on every device, bar or no bar, as the devices do it together.
            pl_module.read_training_tally()
            if self._bar is not None:
                tally = pl_module.training_tally
                rate = self._throughput.examples_per_sec
                speed = f", {rate:,.0f} examples/s" if rate else ""  # nothing to tell just after the warm-up
                self._bar.set_postfix_str(f"loss {tally.loss:.3f}, acc {tally.acc:.3f}{speed}", refresh=False)
                self._bar.update(trainer.global_step - self._steps_before - self._bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._close_bar()
        pl_module.finish_epoch()
        metrics = pl_module.metrics
        parts = [
            f"{stage} loss {metrics[f'{stage}/loss']:.3f} acc {metrics[f'{stage}/acc']:.3f}"
            for stage in (("train", "val", "test") if self._evaluated else ("train",))
            if f"{stage}/loss" in metrics
        ]
        rate = f"{metrics['train/examples_per_sec']:,.0f} examples/s"
        ended = f"; trainer.max_steps={trainer.max_steps} ends it" if trainer.global_step == trainer.max_steps else ""
        log.info("%s: %s%s", _epoch(trainer), ", ".join([*parts, rate]), ended)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _epoch(trainer: pl.Trainer) -> str:
    last = str(trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else "?"
    return f"epoch {trainer.current_epoch + 1:>{len(last)}}/{last}"
