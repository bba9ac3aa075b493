"""Averaged weights: a second network whose weights are a mean of those that training passes through.

Near the end of training, weights wander around in a region of low loss; their mean lies further inside than each.
"""

from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from lenet.data import ImageDataModule
from lenet.training.module import Classifier
from lenet.training.sums import Sums

STATE = "averaging"
"""The key of a checkpoint that holds the raw weights, from which training continues."""

NORMALISATIONS, STATISTICS_IMAGES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 10_000
"""The layers that keep statistics of images, and from how many training images the averaged network gets its own."""


class Averaging(pl.Callback):
    """Averages weights over optimizer steps. The averaged network is the run's: validated, tested and saved.

    The raw weights are validated beside it (`val_raw/acc`), and kept in checkpoints. The averaged network's batch
    normalisations get statistics of their own, because those of the raw weights are not right for it.

    Args:
        decay: of an exponential moving average: the share of the average that an update leaves. None: all weights
            count alike (stochastic weight averaging: Izmailov et al., 2018).
        every_n_steps: optimizer steps from one update to the next.
        start: the share of the run that is over when averaging begins. Until then the raw weights are the run's.
    """

    def __init__(self, decay: float | None = None, every_n_steps: int = 10, start: float = 0.0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: should be at least 0 and less than 1, or null")
        if every_n_steps < 1 or not 0 <= start < 1:
            raise ValueError(f"every_n_steps={every_n_steps}, start={start}: should be at least 1, and from 0 to 1")
        self.every_n_steps, self.start = every_n_steps, start
        self._average: Any = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._last, self._is_fresh = 0, False  # the last step; whether the averaged network is ready for use
        self._raw: dict[str, Any] | None = None  # of the checkpoint that the run resumes from

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(pl_module, Classifier)
            self._averaged = AveragedModel(pl_module.net, multi_avg_fn=self._average)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._averaged.module.to(pl_module.device)  # the number of updates stays: to ask a GPU for it is to wait
        if self._raw is not None:
            pl_module.net.load_state_dict(self._raw)
            self._raw = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        before, self._last, self._is_fresh = self._last, trainer.global_step, False
        is_due = self._last // self.every_n_steps > before // self.every_n_steps
        if is_due and self._last > self.start * pl_module.steps_in_run():
            self._averaged.update_parameters(pl_module.net)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._refresh(trainer, pl_module)
            self._swap(pl_module.net)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        self._swap(pl_module.net)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule) and data.val_size and not trainer.sanity_checking:
            sums = Sums()
            for images, labels in data.val_dataloader()[0]:
                images, labels = images.to(pl_module.device), labels.to(pl_module.device)
                logits = pl_module(images)
                sums.add_batch(pl_module.loss(logits, labels), logits, labels)
            sums.read()
            pl_module.publish_means("val_raw", sums)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._refresh(trainer, pl_module)
        raw = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        checkpoint[STATE] = {"raw": raw, "updates": int(self._averaged.n_averaged), "last": self._last}
        own = self._averaged.module.state_dict()
        checkpoint["state_dict"].update({f"net.{name}": value for name, value in own.items()})

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state, weights = checkpoint[STATE], checkpoint["state_dict"]
        own = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
        self._averaged.module.load_state_dict(own)
        self._averaged.n_averaged.fill_(state["updates"])
        self._raw, self._last = state["raw"], state["last"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._refresh(trainer, pl_module)
        pl_module.net.load_state_dict(self._averaged.module.state_dict())

    def _refresh(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the averaged network ready for use."""
        data, net = getattr(trainer, "datamodule", None), self._averaged.module
        if self._is_fresh:
            return
        self._is_fresh = True
        if not self._averaged.n_averaged:
            net.load_state_dict(pl_module.net.state_dict())
        elif isinstance(data, ImageDataModule) and any(isinstance(each, NORMALISATIONS) for each in net.modules()):
            images = data.images("train").images[:STATISTICS_IMAGES, None]
            batches = (part.to(pl_module.device).float() / 255 for part in torch.split(images, 1000))
            with torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else []):
                update_bn(batches, net)

    def _swap(self, net: nn.Module) -> None:
        """Exchange the values of both networks; the tensors stay, which optimizers and kernels know."""
        own, its = (chain(each.parameters(), each.buffers()) for each in (self._averaged.module, net))
        for mine, other in zip(own, its, strict=True):
            kept = mine.detach().clone()
            mine.data.copy_(other.data)
            other.data.copy_(kept)
