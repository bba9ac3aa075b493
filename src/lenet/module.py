"""The LightningModule: loss, metrics, optimizer.

Losses and counts of correct answers stay on the device, one number a step, and are read at log points alone:
reading a number waits for the device, and Lightning's own logging on every step costs more than LeNet's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet.data import Batch
from lenet.errors import DivergenceError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


@dataclass
class Tally:
    """Sums over the images added since it was made, as of the last `read`; until then they stay on the device.

    Attributes:
        loss_sum: of the images' cross entropies.
        correct: how many images were classified rightly.
        images: how many there were.
    """

    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    _unread: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch, without waiting for the device: its summed loss (), logits (N, 10), labels (N,)."""
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        self._unread.append((loss_sum.detach(), correct, len(labels)))

    def read(self) -> list[float]:
        """Wait for the device and add up; returns the summed loss of each batch since the last call."""
        if not self._unread:
            return []
        loss_sums, corrects, images = zip(*self._unread, strict=True)
        losses: list[float] = torch.stack(loss_sums).tolist()
        self.loss_sum += sum(losses)
        self.correct += int(torch.stack(corrects).sum())
        self.images += sum(images)
        self._unread.clear()
        return losses

    @property
    def loss(self) -> float:
        """Mean cross entropy of the images read so far."""
        return self.loss_sum / self.images if self.images else math.nan

    @property
    def acc(self) -> float:
        """Share of the images read so far that were classified rightly."""
        return self.correct / self.images if self.images else math.nan


class Classifier(pl.LightningModule):
    """Trains a network to classify images, with cross entropy.

    Args:
        net: from images (N, 1, 28, 28), float in [0, 1], to logits (N, 10).
        optimizer: makes the optimizer from the parameters.
        scheduler: makes a scheduler, stepped after each optimizer step, from the optimizer and the number of
            steps in the run; None keeps the learning rate.

    Attributes:
        best_val_acc: the highest val/acc of any epoch; None before the first.
        metrics: the latest value of each tag that was logged, in full precision.
        training_tally: sums over the training images of the epoch so far, as of the last log point.
    """

    def __init__(self, net: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None = None) -> None:
        super().__init__()
        # On the CPU LeNet trains considerably faster with channels last; it must be so for images and weights alike.
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.best_val_acc: float | None = None
        self.metrics: dict[str, float] = {}
        self.training_tally = Tally()
        self._evaluation_tallies: dict[str, Tally] = {}
        self._unread_steps: list[int] = []
        self._epoch_finished = False
        self._lr = math.nan

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        # The dtype is another than the images' with +trainer.precision=bf16-true and the like.
        dtype = next(self.net.parameters()).dtype
        logits: Tensor = self.net(images.to(dtype=dtype, memory_format=torch.channels_last))
        return logits

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | Optimizer:
        optimizer = self.optimizer_factory(self.parameters())
        if self.scheduler_factory is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LRSchedulerConfigType(scheduler=self.scheduler_factory(optimizer, steps), interval="step")
        return OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler=schedule)

    def on_train_epoch_start(self) -> None:
        self.training_tally, self._unread_steps, self._epoch_finished = Tally(), [], False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        logits = self(batch.images)
        loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
        self.training_tally.add(loss_sum, logits, batch.labels)
        self._unread_steps.append(self.trainer.global_step + 1)
        # The mean over the whole batch. Lightning averages the gradients of all devices, whose shares may differ
        # in size; multiplied by their number, the average is the gradient of this mean.
        return loss_sum * (self.trainer.world_size / batch.total)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if is_log_point(self.trainer):
            self.read_training_tally()

    def on_train_epoch_end(self) -> None:
        self.finish_epoch()

    def finish_epoch(self) -> None:
        """Log the epoch's means; later calls do nothing. Callbacks whose turn is before the module's call it.

        Raises:
            DivergenceError: the loss or a weight is not a finite number.
        """
        if self._epoch_finished:
            return
        self._epoch_finished = True
        self.read_training_tally()
        # The last step of an epoch can spoil the weights after its own loss was still a number.
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters()):
            raise DivergenceError(
                f"the weights are not numbers any more after step {self.trainer.global_step}; try a smaller"
                " optimizer.lr"
            )
        self._publish_means("train", self.training_tally)
        self.publish({"lr": float(self._lr)})

    def read_training_tally(self) -> None:
        """Bring `training_tally` up to date; on each device at the same step.

        Raises:
            DivergenceError: the loss of a step since the last call was not a finite number.
        """
        losses = self.training_tally.read()
        if not losses:
            return
        steps = zip(self._unread_steps, losses, strict=True)
        step: float = next((step for step, loss in steps if not math.isfinite(loss)), math.inf)
        self._unread_steps.clear()
        # All devices stop together, or those that go on would wait for the others for ever.
        step = self._reduce([step], "min")[0]
        if math.isfinite(step):
            raise DivergenceError(
                f"the loss is not a number any more at step {step:.0f}, in epoch {self.current_epoch + 1}, with"
                f" optimizer.lr={self.trainer.optimizers[0].defaults['lr']}; try a smaller optimizer.lr"
            )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._publish_evaluation()

    def on_test_epoch_end(self) -> None:
        self._publish_evaluation()

    def publish(self, values: dict[str, float]) -> None:
        """Log values that hold for the epoch, and keep them in `metrics`."""
        self.metrics.update(values)
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def _evaluate(self, batch: Batch) -> None:
        logits = self(batch.images)
        loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
        self._evaluation_tallies.setdefault(batch.stage, Tally()).add(loss_sum, logits, batch.labels)

    def _publish_evaluation(self) -> None:
        tallies, self._evaluation_tallies = self._evaluation_tallies, {}
        if self.trainer.sanity_checking:
            return
        for stage, tally in tallies.items():
            tally.read()
            self._publish_means(stage, tally)

    def _publish_means(self, stage: str, tally: Tally) -> None:
        """Log the means over all images of all devices."""
        loss_sum, correct, images = self._reduce([tally.loss_sum, tally.correct, tally.images], "sum")
        total = Tally(loss_sum, int(correct), int(images))
        if stage != "train" and not math.isfinite(total.loss):
            raise DivergenceError(
                f"the weights give no finite {stage}/loss after step {self.trainer.global_step}; try a smaller"
                " optimizer.lr"
            )
        if stage == "val":
            self.best_val_acc = max(total.acc, self.best_val_acc or 0.0)
        self.publish({f"{stage}/loss": total.loss, f"{stage}/acc": total.acc})

    def _reduce(self, values: list[float], operation: str) -> list[float]:
        """The values of all devices, summed up or the like; unchanged where there is one."""
        if self.trainer.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        reduced: list[float] = self.trainer.strategy.reduce(tensor, reduce_op=operation).tolist()
        return reduced


def is_log_point(trainer: pl.Trainer) -> bool:
    """Whether numbers may be read from the device now: each `log_every_n_steps` steps and at an epoch's end."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.is_last_batch or (every > 0 and trainer.global_step % every == 0)
