"""The LightningModule: loss, metrics, optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet.data.module import Batch, Block, ImageDataModule
from lenet.errors import DivergenceError
from lenet.fast.fused import fused
from lenet.training import bypass
from lenet.training.signals import Interrupts
from lenet.training.tally import Tally

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


class Classifier(pl.LightningModule):
    """Trains a network to classify images, with cross entropy.

    What Lightning takes for a batch is a block of them (see `lenet.data`): the optimizer is stepped here, after each
    batch, and Lightning's global step, the schedule and the logs count these steps.

    Args:
        net: from images (N, 1, 28, 28), float in [0, 1], to logits (N, 10).
        optimizer: makes the optimizer from the parameters.
        scheduler: makes a scheduler, stepped after each optimizer step, from the optimizer and the number of
            steps in the run; None keeps the learning rate.
        fuse: compute with `lenet.fast.fused` whatever that can compute.
        gradient_clip_val: as Lightning's Trainer takes it, which leaves it to modules that step the optimizer.
        gradient_clip_algorithm: the same.
        interrupts: on one device, a block is cut off after the step in which one comes.

    Attributes:
        best_val_acc: the highest val/acc of any epoch; None before the first.
        metrics: the latest value of each tag that was logged, in full precision.
        training_tally: sums over the training images of the epoch so far, as of the last log point.
        images_trained: in all, over all devices.
        steps_in_epoch: optimizer steps since the epoch's beginning.
        is_cut: whether the block was cut off, by an interrupt.
        at_log_point: whether numbers may be read from the device now: each `log_every_n_steps` steps from an epoch's
            beginning, and at its end.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        fuse: bool = True,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self._fused = fused(net) if fuse else None
        if self._fused is None or not self._fused.is_lenet:
            self._to_channels_last()
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.interrupts = interrupts or Interrupts()
        self.best_val_acc: float | None = None
        self.metrics: dict[str, float] = {}
        self.training_tally = Tally()
        self.images_trained = 0
        self.steps_in_epoch = 0
        self.is_cut = False
        self.at_log_point = False
        self._evaluation_tallies: dict[str, Tally] = {}
        self._unread_steps: list[int] = []
        self._epoch_finished = False
        self._lr = math.nan
        self._resumed: tuple[int, Tally] | None = None

    def progress(self) -> dict[str, Any]:
        """What training goes on with later, beside weights and optimizer; plain numbers.

        Raises:
            DivergenceError: nothing good can come of going on.
        """
        self.read_training_tally()
        self.refuse_spoiled_weights()
        tally = self.training_tally if self.steps_in_epoch > 0 else Tally()  # the next epoch begins its own
        return {
            "best_val_acc": self.best_val_acc,
            "metrics": dict(self.metrics),
            "images_trained": self.images_trained,
            "steps_in_epoch": self.steps_in_epoch,
            "tallies": self._gather([tally.loss_sum, tally.correct, tally.images]),
        }

    def go_on_from(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` gave; before training starts."""
        self.best_val_acc, self.metrics = progress["best_val_acc"], dict(progress["metrics"])
        self.images_trained = progress["images_trained"]
        tallies = [
            Tally(float(loss_sum), int(correct), int(images)) for loss_sum, correct, images in progress["tallies"]
        ]
        if len(tallies) != self.trainer.world_size:  # with other devices than before, the first takes up all
            total = Tally(*(sum(values) for values in zip(*progress["tallies"], strict=True)))
            tallies = [total] + [Tally()] * (self.trainer.world_size - 1)
        self._resumed = (progress["steps_in_epoch"], tallies[self.global_rank])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28): bytes 0–255, or floats in [0, 1]."""
        if self._fused is not None and self._fused.fits(images):
            return self._fused(images)
        logits: Tensor = self.net(self._as_floats(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """What the last layer makes logits of, (N, 84); of images as `forward` takes them."""
        if self._fused is not None and self._fused.fits(images):
            return self._fused.embed(images)
        values = self._as_floats(images)
        for layer in list(self.net.children())[:-1]:
            values = layer(values)
        return values

    def _as_floats(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        # The dtype is another than the images' where Lightning has converted the network, as with 64-true.
        return images.to(dtype=next(self.net.parameters()).dtype, memory_format=torch.channels_last)

    def _to_channels_last(self) -> None:
        # Layer by layer, LeNet trains considerably faster with channels last, in images and weights alike. (What is
        # fused in part goes layer by layer with batches that the kernels are not made for.)
        self.net.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | Optimizer:
        optimizer = self.optimizer_factory(self.parameters())
        if self.scheduler_factory is None:
            return optimizer
        schedule = LRSchedulerConfigType(scheduler=self.scheduler_factory(optimizer, self._steps_in_run()))
        return OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler=schedule)

    def _steps_in_run(self) -> int:
        """Lightning's own estimate would count blocks."""
        self.trainer.fit_loop.setup_data()
        limits = [self.trainer.max_steps] if self.trainer.max_steps != -1 else []
        if self.trainer.max_epochs not in (None, -1):
            limits.append(self.trainer.max_epochs * steps_per_epoch(self.trainer))
        return int(min(limits))

    def on_fit_start(self) -> None:
        if self.device.type != "cpu":  # where nothing is fused
            self._to_channels_last()

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Let libraries set themselves up: two steps on random images for each size, with a copy of the network."""
        twin = Classifier(copy.deepcopy(self.net), self.optimizer_factory, fuse=self._fused is not None)
        optimizer = self.optimizer_factory(twin.parameters())
        # A generator of its own: the run's random numbers stay what they are.
        generator = torch.Generator().manual_seed(0)
        for size in 2 * list(batch_sizes):
            # By the number of images, a batch is a problem of its own for the library that convolves.
            images = torch.randint(256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8).to(self.device)
            labels = torch.zeros(size, dtype=torch.int64, device=self.device)
            twin.compute_gradients(Batch(images, labels, size, "train"), Tally(), optimizer)
            optimizer.step()

    def on_train_epoch_start(self) -> None:
        (self.steps_in_epoch, self.training_tally), self._resumed = self._resumed or (0, Tally()), None
        self._unread_steps, self._epoch_finished = [], False

    def training_step(self, block: Block, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert scheduler is None or isinstance(scheduler, LRScheduler)
        step, last, images, bypassed = self.trainer.global_step, self.trainer.max_steps, 0, bypass.is_possible(self)
        before, interrupts, alone = step, self.interrupts, self.trainer.world_size == 1
        for batch in block.batches():
            lr = optimizer.param_groups[0]["lr"]
            if bypassed:
                self.compute_gradients(batch, self.training_tally, optimizer)
            else:
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
            if self.gradient_clip_val is not None:
                self._clip_gradients(self.gradient_clip_val)
            if bypassed:
                bypass.step(optimizer, self.trainer)
            else:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
            step += 1
            self._unread_steps.append(step)
            images += batch.total
            if step == last:
                self.trainer.should_stop = True  # which also has the validation images evaluated
                break
            if alone and interrupts.received is not None:
                break
        # Attributes of a module are set slowly: not at each step.
        self._lr = lr
        self.images_trained += images
        self.steps_in_epoch += step - before
        self.is_cut = step - before < len(block.sizes) and not self.trainer.should_stop
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        ends = self.trainer.is_last_batch or self.trainer.should_stop
        self.at_log_point = ends or 0 < every <= len(self._unread_steps)

    def compute_gradients(self, batch: Batch, tally: Tally, optimizer: Optimizer | LightningOptimizer) -> None:
        """Leave the gradients of a batch's mean loss in the parameters, on one device; adds the batch to the tally."""
        if self._fused is not None and self._fused.trains(batch.images):
            tally.add(*self._fused.training_step(batch.images, batch.labels, 1 / batch.total), batch.labels)
        else:
            optimizer.zero_grad()
            (self.summed_loss(batch, tally) / batch.total).backward()  # type: ignore[no-untyped-call]

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross entropy over the whole batch, of all devices; adds to `training_tally`.

        Lightning averages the gradients of the devices, whose shares may differ in size: so each divides the sum over
        its own images by the size of the whole batch, and multiplies it by the number of devices.
        """
        return self.summed_loss(batch, self.training_tally) * (self.trainer.world_size / batch.total)

    def summed_loss(self, batch: Batch, tally: Tally) -> Tensor:
        """The cross entropies of a batch's images, summed up (); adds the batch to the tally."""
        return self._tallied(batch, tally)[0]

    def _tallied(self, batch: Batch, tally: Tally) -> tuple[Tensor, Tensor]:
        """The summed loss () and the logits (N, 10)."""
        logits = self(batch.images)
        loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
        tally.add(loss_sum, logits, batch.labels)
        return loss_sum, logits

    def _clip_gradients(self, limit: float) -> None:
        # Lightning's own refuses fused optimizers in mixed precision, because a scaler of losses may be in use.
        if self.gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), limit)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), limit)

    def on_train_batch_end(self, outputs: Any, batch: Block, batch_idx: int) -> None:
        if self.at_log_point:
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
        self.refuse_spoiled_weights()
        self._publish_means("train", self.training_tally)
        self.publish({"lr": float(self._lr)})

    def refuse_spoiled_weights(self) -> None:
        """A step can spoil the weights after its own loss was still a number.

        Raises:
            DivergenceError: a weight is not a finite number.
        """
        # All at once: a question to the device costs more than the answer.
        if not torch.isfinite(torch.cat([parameter.detach().flatten() for parameter in self.parameters()])).all():
            raise DivergenceError(
                f"the weights are not numbers any more after step {self.trainer.global_step}; try a smaller"
                " optimizer.lr"
            )

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

    def on_validation_model_zero_grad(self) -> None:
        """Lightning would drop the gradients of an epoch's last step here; callbacks may look at them."""

    def validation_step(self, block: Block, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Returns the logits (M, 10), for callbacks."""
        return self._evaluate(block)

    def test_step(self, block: Block, batch_idx: int) -> Tensor:
        """Returns the logits (M, 10), for callbacks."""
        return self._evaluate(block)

    def on_validation_epoch_end(self) -> None:
        self._publish_evaluation()

    def on_test_epoch_end(self) -> None:
        self._publish_evaluation()

    def publish(self, values: dict[str, float]) -> None:
        """Log values that hold for the epoch, and keep them in `metrics`."""
        self.metrics.update(values)
        # For callbacks, such as the one that keeps the best checkpoint. In the log Lightning would count blocks.
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, logger=False)
        if self.logger is not None:
            self.logger.log_metrics(values, step=self.trainer.global_step)

    def _evaluate(self, block: Block) -> Tensor:
        tally = self._evaluation_tallies.setdefault(block.stage, Tally())
        return torch.cat([self._tallied(batch, tally)[1] for batch in block.batches()])

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

    def _gather(self, values: list[float]) -> list[list[float]]:
        """The values of each device."""
        devices, own = self.trainer.world_size, len(values)
        # Each fills its row of a table of zeros.
        table = [0.0] * (own * self.global_rank) + values + [0.0] * (own * (devices - 1 - self.global_rank))
        table = self._reduce(table, "sum")
        return [table[start : start + own] for start in range(0, len(table), own)]


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """How often the optimizer is stepped in an epoch, unless max_steps ends it."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data.steps_in(int(trainer.num_training_batches))
