"""Console progress: a line an epoch, and on a terminal a bar below the lines."""

import logging
import sys
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

log = logging.getLogger(__name__)

BAR = "{desc} {percentage:3.0f}% {bar} {remaining} left{postfix}"


class Progress(pl.Callback):
    """Logs a line an epoch. On a terminal also shows a bar, with loss and accuracy as of the last block of batches."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._validated = False  # in this epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._validated = False
        hidden = not (sys.stdout.isatty() and trainer.is_global_zero)
        options = {"file": sys.stdout, "leave": False, "dynamic_ncols": True, "bar_format": BAR}
        self._bar = tqdm(total=trainer.num_training_batches, desc=_epoch(trainer), disable=hidden, **options)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        sums = pl_module.running
        if sums.images and not self._bar.disable:
            self._bar.set_postfix_str(f"loss {sums.mean_loss:.3f}, acc {sums.accuracy:.3f}", refresh=False)
        self._bar.update()

    def on_validation_end(self, *_: Any) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._bar.close()
        pl_module.finish_epoch()
        metrics, parts = pl_module.metrics, []
        for stage in ("train", "val", "val_raw", "test") if self._validated else ("train",):
            if f"{stage}/loss" in metrics:
                parts.append(f"{stage} loss {metrics[f'{stage}/loss']:.3f} acc {metrics[f'{stage}/acc']:.3f}")
        if rate := metrics.get("train/examples_per_sec"):
            parts.append(f"{rate:,.0f} examples/s")
        ended = f"; trainer.max_steps={trainer.max_steps} ends it" if trainer.global_step == trainer.max_steps else ""
        log.info("%s: %s%s", _epoch(trainer), ", ".join(parts), ended)

    def on_exception(self, *_: Any) -> None:
        self._bar.close()


def _epoch(trainer: pl.Trainer) -> str:
    last = str(trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else "?"
    return f"epoch {trainer.current_epoch + 1:>{len(last)}}/{last}"
