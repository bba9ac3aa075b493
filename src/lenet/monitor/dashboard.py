"""What TensorBoard shows of a run beside its curves: predictions, mistakes, and what the network has learnt.

Pictures of an epoch are of the validation images; the test images appear once, at the end. They show what the
evaluation has computed anyway. An epoch may take less time than its pictures; so those of several epochs are drawn
together, every few seconds, before the run is saved, and at its end.
"""

import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.tensorboard import SummaryWriter

from lenet.data import ImageDataModule
from lenet.errors import DivergenceError
from lenet.monitor.drawing import BLUE, Tile, confusion, sheet
from lenet.monitor.pictures import CURVES, SHOWN, Evaluation, filters, numbered, predictions, write_embedding
from lenet.monitor.tensorboard import FIGURE_TAGS, add_picture
from lenet.monitor.throughput import TimedCallback

INTERVAL_SECONDS, MOST_KEPT = 10, 24
"""Pictures are drawn so often, or when so many epochs have none yet."""


Batch = tuple[Tensor, ...]
"""Of an evaluation: images, labels, logits, hidden values."""


class Epoch(NamedTuple):
    """What is to be drawn of an epoch. Weights and gradients stay on the device."""

    step: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    filters: Tensor
    validation: list[Batch]
    maps: dict[str, Tensor]


class Dashboard(TimedCallback):
    """Draws after each epoch and after the test, on the first of several devices; for a `Classifier` of any network.

    Does nothing without a TensorBoard logger. Its stopwatch shows the time that all of it has taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated = False  # in this epoch
        self._batches: dict[str, list[Batch]] = {}  # by stage
        self._hooks: list[RemovableHandle] = []
        self._hidden = torch.empty(0)  # (N, K)
        self._maps: dict[str, Tensor] = {}  # (C, H, W), by layer
        self._kept: list[Epoch] = []
        self._drawn_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if (logger := _logger(trainer)) and trainer.global_step == 0:
            curves = ["Multiline", list(FIGURE_TAGS)]
            logger.experiment.add_custom_scalars({"LeNet": {"loss and accuracy by epoch": curves}})
            if (
                isinstance(data := getattr(trainer, "datamodule", None), ImageDataModule)
                and pl_module.augment is not None
            ):
                show_augmentation(logger.experiment, data, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._batches, self._maps = defaultdict(list), {}
        for name, layer in pl_module.net.named_modules():
            weight = getattr(layer, "weight", None)
            if isinstance(layer, nn.Linear) or (isinstance(weight, Tensor) and weight.dim() == 4):
                self._hooks.append(layer.register_forward_hook(partial(self._keep, name)))

    def _keep(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the input of the last linear layer, and what each convolution makes of the first image."""
        if isinstance(layer, nn.Linear):
            self._hidden = inputs[0]
        elif name not in self._maps and len(output):
            self._maps[name] = output[0].cpu().clone()  # not a view of the whole batch

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or not _logger(trainer):
            return
        self._validated = True
        stages = getattr(getattr(trainer, "datamodule", None), "evaluation_stages", ("val",))
        if not trainer.testing and dataloader_idx >= len(stages):  # another data module's further loaders
            return
        stage = "test" if trainer.testing else stages[dataloader_idx]
        images, labels = batch
        hidden = self._hidden.flatten(1) if len(self._hidden) == len(images) else outputs
        self._batches[stage].append((images.cpu(), labels.cpu(), outputs.float().cpu(), hidden.float().cpu()))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        while self._hooks:  # they would slow training down
            self._hooks.pop().remove()

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.finish_epoch()
        if not (logger := _logger(trainer)):
            return
        with self.stopwatch:
            validation = self._gather("val", trainer)
            if trainer.is_global_zero:
                metrics = pl_module.metrics
                held_out = metrics.get("val/acc", metrics.get("test/acc")) if self._validated else None
                curves = zip(FIGURE_TAGS, (metrics["train/loss"], metrics["train/acc"], held_out), strict=True)
                for tag, value in curves:
                    if value is not None:
                        logger.experiment.add_scalar(tag, value, trainer.current_epoch + 1)
                named = [(name, p.detach().clone(), p.grad) for name, p in pl_module.net.named_parameters()]
                weights = {name: values for name, values, _ in named}
                gradients = {name: values.clone() for name, _, values in named if values is not None}
                kept = weights, gradients, filters(pl_module.net).clone(), validation, self._maps
                self._kept.append(Epoch(trainer.global_step, *kept))
            self._validated = False
            if len(self._kept) == MOST_KEPT or time.monotonic() > self._drawn_at + INTERVAL_SECONDS:
                self._draw(logger.experiment, trainer)

    def catch_up(self, trainer: pl.Trainer) -> None:
        """Draw what has not been drawn yet."""
        if logger := _logger(trainer):
            with self.stopwatch:
                self._draw(logger.experiment, trainer)

    def _draw(self, writer: SummaryWriter, trainer: pl.Trainer) -> None:
        kept, self._kept = self._kept, []
        for epoch in kept:
            show_network(writer, epoch)
            if epoch.validation:
                show_validation(writer, evaluation_of(epoch.validation, trainer), epoch.maps, epoch.step)
        self._drawn_at = time.monotonic()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, DivergenceError):  # what led to it is to be seen
            self.catch_up(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show what is left, and the test images, if they were evaluated after each epoch."""
        if not (logger := _logger(trainer)):
            return
        self.catch_up(trainer)
        with self.stopwatch:
            batches = self._gather("test", trainer)
            if batches and trainer.is_global_zero:
                test = evaluation_of(batches, trainer)
                picture = confusion(test.counts, test.class_names)
                add_picture(logger.experiment, "test/confusion", picture, trainer.global_step)
                write_embedding(Path(logger.log_dir), test)

    on_test_end = on_train_end

    def _gather(self, stage: str, trainer: pl.Trainer) -> list[Batch]:
        """The last evaluation of a stage, on all devices. To be called on each device."""
        batches = self._batches.pop(stage, [])
        if trainer.world_size > 1:
            everywhere: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everywhere, batches)
            batches = [batch for device in everywhere for batch in device]
        return batches


def evaluation_of(batches: list[Batch], trainer: pl.Trainer) -> Evaluation:
    images, labels, logits, hidden = (torch.cat(parts) for parts in zip(*batches, strict=True))
    planes = images[:, 0] if images.dtype == torch.uint8 else (images[:, 0].clamp(0, 1) * 255).round().byte()
    names = getattr(getattr(trainer, "datamodule", None), "class_names", ())
    if len(names) != logits.shape[1]:
        names = [str(number) for number in range(logits.shape[1])]
    return Evaluation(planes.numpy(), labels.numpy(), logits.softmax(dim=1).numpy(), hidden.numpy(), names)


def show_augmentation(writer: SummaryWriter, data: ImageDataModule, module: Any) -> None:
    """Log the first training images as they are, and as the network may get them; random numbers stay as they were."""
    images, labels = (values[:SHOWN].to(module.device) for values in data.images("train"))
    with torch.random.fork_rng(devices=[module.device] if module.device.type == "cuda" else []):
        augmented, targets = module.augmented(images[:, None], labels)
    if targets.dim() == 1:
        targets = nn.functional.one_hot(targets, data.classes)
    tiles = []
    for before, after, label, target in zip(images, augmented[:, 0], labels, targets, strict=True):
        shares = [(float(share), data.class_names[number]) for number, share in enumerate(target) if share > 0.005]
        mixed = "\n".join(f"{name} {share:.2f}" for share, name in sorted(shares, reverse=True)[:2])
        tiles += [Tile(f"{data.class_names[label]}\n", before.cpu().numpy()), Tile(mixed, after.cpu().numpy(), BLUE)]
    add_picture(writer, "train/augmented", sheet(tiles, width=808, per_row=8), 0)


def show_network(writer: SummaryWriter, epoch: Epoch) -> None:
    """Log the distribution of each parameter and of its gradient, and the filters of the first convolution."""
    for kind, tensors in (("weights", epoch.weights), ("gradients", epoch.gradients)):
        for name, values in tensors.items():
            with suppress(ValueError):  # NaN, or so close together that bins cannot be told apart
                writer.add_histogram(f"{kind}/{name}", values.cpu().float().numpy(), epoch.step, bins=30)
    if len(epoch.filters):
        add_picture(writer, "network/filters", numbered(epoch.filters), epoch.step)


def show_validation(writer: SummaryWriter, validation: Evaluation, maps: dict[str, Tensor], step: int) -> None:
    """Log predictions, mistakes, the confusion matrix, the feature maps of an image and precision-recall curves."""
    add_picture(writer, "val/confusion", confusion(validation.counts, validation.class_names), step)
    shown = {"val/predictions": range(min(SHOWN, len(validation.images))), "val/mistakes": validation.mistakes}
    for tag, numbers in shown.items():
        if len(numbers):
            add_picture(writer, tag, predictions(validation, numbers), step)
    for name, planes in maps.items():
        add_picture(writer, f"network/{name}", numbered(planes), step)
    for number, name in enumerate(validation.class_names[:CURVES]):
        is_class, probabilities = validation.labels == number, validation.probabilities[:, number]
        writer.add_pr_curve(f"val/{name}", is_class, probabilities, step)


def _logger(trainer: pl.Trainer) -> TensorBoardLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
