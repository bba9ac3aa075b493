"""Averaged weights: a second network whose weights are a mean of those that training passes through.

Near the end of training, weights wander around in a region of low loss; their mean lies further inside than each.
"""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn

from lenet.data import ImageDataModule
from lenet.training.module import Classifier

log = logging.getLogger(__name__)

STATE = "averaging"
"""The key of a checkpoint that holds the raw weights, from which training continues."""

STATISTICS_IMAGES = 10_000
"""From so many training images the batch normalisations of the averaged network get their statistics."""


class Averaging(pl.Callback):
    """Averages weights over optimizer steps. The averaged network is the run's: validated, tested and saved.

    The raw weights are validated beside it (`val_raw/acc`), and kept in checkpoints. With an `ImageDataModule`, the
    averaged network's batch normalisations get statistics of their own: those of the raw weights are not right for it.

    Args:
        decay: of an exponential moving average: the share of the average that an update leaves, after n updates at most
            (1 + n) / (10 + n), so that it does not cling to the first ones. None: all weights count alike (stochastic
            weight averaging: Izmailov et al., 2018).
        every_n_steps: optimizer steps from one update to the next.
        start: the share of the run that is over when averaging begins. Until then the raw weights are the run's.
    """

    def __init__(self, decay: float | None = None, every_n_steps: int = 10, start: float = 0.0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: should be at least 0 and less than 1, or null")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: should be at least 1")
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: should be at least 0 and less than 1")
        self.decay, self.every_n_steps, self.start = decay, every_n_steps, start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(pl_module, Classifier)
            average: Any = get_swa_multi_avg_fn() if self.decay is None else self._move  # type: ignore[no-untyped-call]
            self._averaged = AveragedModel(pl_module.net, multi_avg_fn=average)
            self._last = 0  # step
            self._is_training = False  # the module's network has the raw weights; before and after, the averaged ones
            self._is_fresh = False  # the averaged network is ready for use
            self._raw: dict[str, Any] | None = None  # of the checkpoint that the run resumes from

    def _move(self, averages: Sequence[Tensor], weights: Sequence[Tensor], _: object) -> None:
        """An update of the exponential moving average, in place."""
        assert self.decay is not None
        count = int(self._averaged.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1 - decay)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._averaged.module.to(pl_module.device)  # the number of updates stays: to ask a GPU for it is to wait
        if self._raw is not None:
            pl_module.net.load_state_dict(self._raw)
        self._is_training = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        before, self._last, self._is_fresh = self._last, trainer.global_step, False
        if self._last <= self.start * pl_module.steps_in_run():
            self._averaged.n_averaged.zero_()  # also where a run is resumed for longer
        elif self._last // self.every_n_steps > before // self.every_n_steps:
            self._averaged.update_parameters(pl_module.net)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and self._is_training:
            self._refresh(trainer, pl_module)
            self._swap(pl_module.net)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or not self._is_training:
            return
        self._swap(pl_module.net)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule) and data.val_size:
            with trainer.precision_plugin.val_step_context():
                pl_module.publish_means("val_raw", pl_module.evaluate(data.val_dataloader()[0]))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        averaged, raw = pl_module.net, self._averaged.module
        if self._is_training:
            self._refresh(trainer, pl_module)
            averaged, raw = raw, averaged
        weights = {name: value.clone() for name, value in raw.state_dict().items()}
        checkpoint[STATE] = {"raw": weights, "updates": int(self._averaged.n_averaged), "last": self._last}
        checkpoint["state_dict"].update({f"net.{name}": value for name, value in averaged.state_dict().items()})

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or STATE not in checkpoint:
            return
        state, weights = checkpoint[STATE], checkpoint["state_dict"]
        own = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
        self._averaged.module.load_state_dict(own)
        self._averaged.n_averaged.fill_(state["updates"])
        self._raw, self._last = state["raw"], state["last"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._refresh(trainer, pl_module)
        self._swap(pl_module.net)
        self._is_training = False
        if not self._averaged.n_averaged:
            log.warning(
                "average: no weights were averaged in %d steps; lower average.every_n_steps=%d or average.start=%g",
                *(trainer.global_step, self.every_n_steps, self.start),
            )

    def _refresh(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the averaged network ready for use."""
        data, net = getattr(trainer, "datamodule", None), self._averaged.module
        if self._is_fresh:
            return
        self._is_fresh = True
        if not self._averaged.n_averaged:
            net.load_state_dict(pl_module.net.state_dict())
        elif isinstance(data, ImageDataModule):
            images = data.images("train").images[:, None]
            chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:STATISTICS_IMAGES]
            dtype = next(net.parameters()).dtype
            parts = [images[part].to(pl_module.device, dtype) / 255 for part in torch.split(chosen, 1000)]
            parts = [part for part in parts if len(part) > 1]  # of one image there is no variance
            with torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else []):
                torch.manual_seed(0)  # on several devices the same dropout
                update_bn(parts, net)

    def _swap(self, net: nn.Module) -> None:
        """Exchange the values of both networks; the tensors stay, which optimizers and kernels know."""
        own, its = (chain(each.parameters(), each.buffers()) for each in (self._averaged.module, net))
        for mine, other in zip(own, its, strict=True):
            kept = mine.detach().clone()
            mine.data.copy_(other.data)
            other.data.copy_(kept)
