"""The LightningModule: a network, its loss, its optimizer, and what is measured.

It trains in two ways. Given ordinary batches (images, labels), Lightning's own loop does everything, and all of its
features work. Given blocks of batches (see lenet.data), it steps the optimizer itself: what Lightning does around a
batch then happens once in fifty steps, which on a network this small is a good part of the time.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet.classes import arguments_of, build
from lenet.data import Block
from lenet.data.augment import Augmentation
from lenet.errors import DivergenceError, UserError
from lenet.layers.geometry import is_traced
from lenet.models import LeNet, init_weights_
from lenet.training.choice import checked, make_step
from lenet.training.distillation import Distillation
from lenet.training.step import PlainStep
from lenet.training.sums import Sums

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]

STATE = "lenet"
"""The key of a checkpoint that holds what this module adds to it."""


class Classifier(pl.LightningModule):
    """Trains a network to classify images.

    Args:
        net: from images (N, C, H, W), float in [0, 1], to logits (N, classes); LeNet as published by default.
        optimizer: makes the optimizer from the parameters; SGD with a learning rate of 0.9 by default, as published.
        scheduler: makes a learning-rate schedule, stepped after each optimizer step, from the optimizer and, if it
            takes that, the number of steps in the run (total_steps).
        loss: from logits and labels to the mean loss of a batch; cross entropy by default.
        init: how the initial weights are drawn, see lenet.models.init_weights_; none keeps those of the network.
        fuse: allow compiled kernels, and on a GPU CUDA graphs, where training gets blocks of batches.
        blocks: whether training gets blocks of batches.
        seed: random numbers of an epoch, such as those of dropout, are a function of (seed, epoch). None leaves them.
        augment: changes training batches (images, labels) at random, see lenet.data.augment.
        distillation: has the network learn from trained ones as well.
        decay: what weight decay applies to: all, or weights alone, and neither biases nor normalisations.

    The first four may also be descriptions as in a configuration, such as `{"_target_": "lenet.models.LeNet"}`.

    Attributes:
        lr: overrides the optimizer's learning rate if it is set, as Lightning's LR finder does.
        metrics: the latest value of each measure, such as "val/acc".
        best_val_acc: the highest val/acc of any epoch; None before the first.
        images_trained: in all, over all devices.
        running: sums over the training images of the epoch so far, as of the end of the last block, or on a GPU the
            one before.
    """

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any] | None = None,
        optimizer: OptimizerFactory | Mapping[str, Any] | None = None,
        scheduler: SchedulerFactory | Mapping[str, Any] | None = None,
        loss: nn.Module | Mapping[str, Any] | None = None,
        init: str = "xavier_uniform",
        fuse: bool = True,
        blocks: bool = False,
        seed: int | None = None,
        augment: Augmentation | None = None,
        distillation: Distillation | None = None,
        decay: str = "all",
    ) -> None:
        super().__init__()
        parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "scheduler": scheduler, "loss": loss}
        # Plain values alone: a checkpoint has to load without executing anything.
        kept = {name: dict(part) for name, part in parts.items() if isinstance(part, Mapping)}
        described = {"net": getattr(net, "description", None), **kept}
        self.save_hyperparameters({**described, "init": "none", "fuse": fuse, "decay": decay})
        if decay not in ("all", "weights"):
            raise UserError(f"decay={decay}: should be all or weights")
        for role, name in (("model", "net"), ("optimizer", "optimizer"), ("scheduler", "scheduler"), ("loss", "loss")):
            if isinstance(parts[name], Mapping):
                parts[name] = build(role, parts[name])
        self.net: nn.Module = LeNet() if parts["net"] is None else parts["net"]
        self.loss = parts["loss"] or nn.CrossEntropyLoss()
        self.optimizer_factory: OptimizerFactory = parts["optimizer"] or partial(torch.optim.SGD, lr=0.9)
        self.scheduler_factory: SchedulerFactory | None = parts["scheduler"]
        init_weights_(self.net, init)
        self.automatic_optimization = not blocks
        self.fuse, self.seed, self.decay = fuse, seed, decay
        self.augment, self.distillation = augment, distillation
        self.lr: float | None = None
        self.metrics: dict[str, float] = {}
        self.best_val_acc: float | None = None
        self.images_trained = 0
        self.running = Sums()
        self._evaluated: dict[str, Sums] = {}
        self._epoch_published = False
        self._step: PlainStep | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W): bytes 0–255, or floats in [0, 1]."""
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        # The dtype is another than the images' where Lightning has converted the network, as with 64-true.
        dtype = next((parameter.dtype for parameter in self.net.parameters()), images.dtype)
        # A CPU convolves faster with channels last; vmap does not know it, and compilers choose themselves.
        layout = torch.channels_last if images.is_cpu and not is_traced(images) else torch.preserve_format
        logits: Tensor = self.net(images.to(dtype=dtype, memory_format=layout))
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        for group in optimizer.param_groups if self.lr is not None else ():
            group["lr"] = self.lr
        if self.scheduler_factory is None:
            return optimizer
        schedule = self.make_schedule(optimizer, int(self.steps_in_run()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self) -> Optimizer:
        """The optimizer of all parameters."""
        if self.decay == "all":
            return self.optimizer_factory(self.parameters())
        weights = [parameter for parameter in self.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.parameters() if parameter.dim() <= 1]
        return self.optimizer_factory([{"params": weights}, {"params": others, "weight_decay": 0.0}])  # type: ignore[list-item]

    def make_schedule(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """The learning-rate schedule, for a run of so many steps if it depends on that."""
        factory = self.scheduler_factory
        assert factory is not None
        arguments = arguments_of(factory.func if isinstance(factory, partial) else factory)
        return factory(optimizer, total_steps=total_steps) if "total_steps" in (arguments or ()) else factory(optimizer)

    def steps_in_run(self) -> float:
        """Optimizer steps of the whole run; infinite without a limit."""
        if self.automatic_optimization:
            return self.trainer.estimated_stepping_batches
        limits: list[float] = [self.trainer.max_steps] if self.trainer.max_steps != -1 else []
        if self.trainer.max_epochs not in (None, -1):
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            limits.append(self.trainer.max_epochs * data.steps_per_epoch)
        return min(limits, default=math.inf)

    # Training

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.automatic_optimization:
            self._step = make_step(self)

    def on_train_epoch_start(self) -> None:
        self.running, self._epoch_published = Sums(), False
        if self.augment is not None and hasattr(self.augment, "begin_epoch"):
            self.augment.begin_epoch(self.trainer.global_step / self.steps_in_run())
        if self.seed is not None:
            numbers = np.random.SeedSequence((self.seed, self.current_epoch, self.global_rank)).generate_state(1)
            pl.seed_everything(int(numbers[0]), verbose=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One optimizer step of Lightning's for a batch (images, labels); all steps of a block of batches."""
        if isinstance(batch, Block):
            self._train_block(batch)
            return None
        images, labels = self.augmented(*batch)
        logits = self(images)
        loss = self.objective(logits, labels, images)
        self.running.add_batch(loss, logits, labels, self.trainer.global_step + 1)
        self.images_trained += len(labels) * self.trainer.world_size
        self.metrics["lr"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def augmented(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A training batch as the network gets it; one of several devices may have none."""
        return (images, labels) if self.augment is None or not len(labels) else self.augment(images, labels)

    def objective(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The training loss: the mean loss of a batch, with the distillation if there is one."""
        loss: Tensor = self.loss(logits, labels)
        return loss if self.distillation is None else self.distillation(loss, logits, images)

    def _train_block(self, block: Block) -> None:
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        schedule = scheduler if isinstance(scheduler, LRScheduler) else None
        if self._step is None or not self._step.is_current():  # somebody has changed the network or the loss
            self._step = make_step(self)
        if not self._step.is_checked:
            self._step = checked(self._step, block, optimizer, schedule)
        before, last, steps = self.trainer.global_step, self.trainer.max_steps, len(block.sizes)
        if before < last <= before + steps:
            block, steps = block.first(last - before), last - before
            self.trainer.should_stop = True  # which also has the validation images evaluated
        losses, correct, self.metrics["lr"] = self._step.train(block, optimizer, schedule)
        self.running.add(losses, correct, block.own_sizes, before + 1)
        self.images_trained += sum(total for _, total in block.sizes)
        # What Lightning's global step counts; its own optimizer wrapper takes a tenth of a step's time.
        counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        counter.total.ready += steps
        counter.total.completed += steps
        # A GPU goes on computing, while the sums of the block before are read.
        self._read_sums(leave=int(losses.is_cuda))

    def _read_sums(self, leave: int = 0) -> None:
        """Bring `running` up to date; on all devices at the same step, so that they stop together."""
        step = self._reduce([self.running.read(leave)], "min")[0]
        if math.isfinite(step):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise DivergenceError(
                f"the loss became NaN or infinite at step {step:.0f}, in epoch {self.current_epoch + 1}, at a learning"
                f" rate of {lr:g}; try a smaller optimizer.lr"
            )

    def on_validation_model_zero_grad(self) -> None:
        """Lightning would drop the gradients of an epoch's last step here; the dashboard shows them."""

    def on_train_epoch_end(self) -> None:
        self.finish_epoch()

    def finish_epoch(self) -> None:
        """Publish the training means of the epoch, once. Raises a DivergenceError if a weight is NaN or infinite.

        Callbacks that need the means call it first: Lightning calls their on_train_epoch_end before the module's.
        """
        if self._epoch_published:
            return
        self._epoch_published = True
        self._read_sums()
        # All at once: a question to the device costs more than the answer.
        weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        if not torch.isfinite(weights).all():
            raise DivergenceError(
                f"a weight became NaN or infinite before step {self.trainer.global_step}; try a smaller optimizer.lr"
            )
        self.publish_means("train", self.running)
        self.publish({"lr": self.metrics["lr"]})

    # Evaluation: always with the network's own layers

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Returns the logits (N, classes), for callbacks."""
        stages = getattr(getattr(self.trainer, "datamodule", None), "evaluation_stages", ("val",))
        split = stages[dataloader_idx] if dataloader_idx < len(stages) else f"val_{dataloader_idx}"
        return self._evaluate(split, batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Returns the logits (N, classes), for callbacks."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The class (N,) of each image."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        classes: Tensor = self(images).argmax(dim=1)
        return classes

    def _evaluate(self, stage: str, batch: Any) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        self._evaluated.setdefault(stage, Sums()).add_batch(self.loss(logits, labels), logits, labels)
        return logits

    def evaluate(self, batches: Iterable[Any]) -> Sums:
        """The sums over batches (images, labels), as the network is now."""
        sums = Sums()
        for images, labels in batches:
            logits, truth = self(images.to(self.device)), labels.to(self.device)
            sums.add_batch(self.loss(logits, truth), logits, truth)
        sums.read()
        return sums

    def on_validation_epoch_end(self) -> None:
        evaluated, self._evaluated = self._evaluated, {}
        for stage, sums in evaluated.items():
            sums.read()
            if not self.trainer.sanity_checking:
                self.publish_means(stage, sums)

    on_test_epoch_end = on_validation_epoch_end

    # Measures

    def publish(self, values: dict[str, float]) -> None:
        """Log values that hold for the epoch to every logger, at the number of optimizer steps, and keep them."""
        self.metrics.update(values)
        if self.trainer.testing:
            # trainer.test() returns what was logged this way, and Lightning takes the x axis from a value named step.
            step = {"step": float(self.trainer.global_step)}
            self.log_dict({**values, **step}, on_step=False, on_epoch=True, batch_size=1)
            return
        # For callbacks such as early stopping.
        if self.trainer.state.fn == "fit" and self.trainer.progress_bar_callback is None:
            self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        else:  # ten times as long
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, logger=False, prog_bar=True)
        for logger in self.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

    def publish_means(self, stage: str, sums: Sums) -> None:
        """Publish the means over all images of all devices."""
        loss, correct, images = self._reduce([sums.loss, sums.correct, sums.images], "sum")
        total = Sums(loss, int(correct), int(images))
        if not math.isfinite(total.mean_loss):
            raise DivergenceError(
                f"{stage}/loss is NaN or infinite after step {self.trainer.global_step}; try a smaller optimizer.lr"
            )
        if stage == "val":
            self.best_val_acc = max(total.accuracy, self.best_val_acc or 0.0)
        self.publish({f"{stage}/loss": total.mean_loss, f"{stage}/acc": total.accuracy})

    def _reduce(self, values: list[float], operation: str) -> list[float]:
        """The values of all devices, summed up or the like; unchanged where there is one."""
        if self.trainer.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        reduced: list[float] = self.trainer.strategy.reduce(tensor, reduce_op=operation).tolist()
        return reduced

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None)
        checkpoint[STATE] = {
            "metrics": dict(self.metrics),
            "best_val_acc": self.best_val_acc,
            "images_trained": self.images_trained,
            "network": repr(self.net),
            "class_names": list(getattr(data, "class_names", [])),
            "image_shape": list(getattr(data, "image_shape", [])),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE, {})
        if "network" in state and state["network"] != repr(self.net):
            raise UserError(
                "the checkpoint is of another network than this one; give it the network that was trained:"
                " Classifier.load_from_checkpoint(PATH, net=NETWORK)"
            )
        self.metrics = dict(state.get("metrics", {}))
        self.best_val_acc, self.images_trained = state.get("best_val_acc"), state.get("images_trained", 0)
