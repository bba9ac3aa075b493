"""What TensorBoard shows of a run beside its curves: predictions, mistakes, what the network has learnt, and how.

Pictures of an epoch are of the validation images; the test images appear once, after the last epoch. They show what the
evaluation has computed anyway. The time that an epoch's pictures take counts as training time; as they come after the
epoch's examples per second were measured, it shows in the next epoch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lenet.data.module import EVALUATION_BATCH_SIZE, Block, ImageDataModule
from lenet.monitor.drawing import GREEN, RED, Array, Tile, confusion, images, sheet
from lenet.monitor.projector import MOST_POINTS, write_embedding
from lenet.monitor.tensorboard import FIGURE_TAGS, RunLogger
from lenet.monitor.throughput import Stopwatch
from lenet.training.module import Classifier

PREDICTIONS, MISTAKES = 32, 16
"""How many images are shown."""

THRESHOLDS = 127
"""Points of a precision-recall curve; PyTorch's writer takes no more."""


@dataclass(frozen=True)
class Evaluation:
    """The images of a stage, and what the network made of them. In NumPy's arrays: these are many small operations, for
    which torch's threads would wait for each other.

    Attributes:
        images: (N, 28, 28) uint8.
        labels: (N,) int64.
        logits: (N, 10).
    """

    images: Array
    labels: Array
    logits: Array

    @cached_property
    def probabilities(self) -> Array:
        """(N, 10), the probability of each class: softmax."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    @cached_property
    def predicted(self) -> Array:
        """(N,), the class with the largest logit."""
        predicted: Array = self.logits.argmax(axis=1)
        return predicted

    @property
    def counts(self) -> Array:
        """The confusion matrix (10, 10): how many images of a class (row) were taken for a class (column)."""
        size = self.logits.shape[1]
        return np.bincount(self.labels * size + self.predicted, minlength=size * size).reshape(size, size)


class Dashboard(pl.Callback):
    """Draws after each epoch and after the test, on the first of several devices.

    Args:
        logger: of the run.
        folder: of the run; gets the embedding.
        classes: what the labels stand for.

    Attributes:
        stopwatch: what all of it has taken.
    """

    def __init__(self, logger: RunLogger, folder: Path, classes: Sequence[str]) -> None:
        self.logger, self.folder, self.classes = logger, folder, classes
        self.stopwatch = Stopwatch()
        self._evaluated = False  # since the last epoch's end; a user may have every second one evaluated
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}  # for each stage: indices and logits

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == 0:
            self.logger.lay_out_figure()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._parts = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Block,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._evaluated = True
            self._parts.setdefault(batch.stage, []).append((batch.indices, outputs.float().cpu()))

    on_test_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.finish_epoch()
        with self.stopwatch:
            validation = self._evaluation("val", trainer)
            if not trainer.is_global_zero:
                return
            step = trainer.global_step
            self._add_to_figure(pl_module, trainer.current_epoch + 1)
            self._histograms(pl_module, step)
            if kernels := filters(pl_module.net):
                self.logger.picture("network/filters", kernels, step)
            if validation is not None:
                self._show(validation, pl_module, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self.stopwatch:
            self._finish(trainer, pl_module)  # if the test images were evaluated after each epoch

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self.stopwatch:
            self._finish(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed goes on with."""
        return {"seconds": self.stopwatch.seconds, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with that."""
        self.stopwatch, self._evaluated = Stopwatch(state_dict["seconds"]), state_dict["evaluated"]

    def _add_to_figure(self, module: Classifier, epoch: int) -> None:
        metrics = module.metrics
        held_out = metrics.get("val/acc", metrics.get("test/acc")) if self._evaluated else None
        self._evaluated = False
        values = metrics["train/loss"], metrics["train/acc"], held_out
        for tag, value in zip(FIGURE_TAGS, values, strict=True):
            if value is not None:
                self.logger.scalar(tag, value, epoch)

    def _histograms(self, module: Classifier, step: int) -> None:
        for name, parameter in module.net.named_parameters():
            self.logger.histogram(f"weights/{name}", parameter.detach().cpu().numpy(), step)
            if parameter.grad is not None:
                self.logger.histogram(f"gradients/{name}", parameter.grad.cpu().numpy(), step)

    def _show(self, validation: Evaluation, module: Classifier, step: int) -> None:
        self.logger.picture("val/predictions", predictions(validation, self.classes), step)
        self.logger.picture("val/confusion", confusion(validation.counts, self.classes), step)
        if worst := mistakes(validation, self.classes):
            self.logger.picture("val/mistakes", worst, step)
        with evaluating(module):
            for name, image in feature_maps(module.net, torch.from_numpy(validation.images[0])).items():
                self.logger.picture(f"network/{name}", image, step)
        for name, curve in zip(self.classes, precision_recall(validation), strict=True):
            self.logger.experiment.add_pr_curve_raw(f"val/{name}", *curve, step, THRESHOLDS)

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        test = self._evaluation("test", trainer)
        if test is None or not trainer.is_global_zero:
            return
        self.logger.picture("test/confusion", confusion(test.counts, self.classes), trainer.global_step)
        images, pairs = test.images[:MOST_POINTS], zip(test.labels, test.predicted, strict=True)
        with evaluating(module):
            parts = torch.split(torch.from_numpy(images)[:, None], EVALUATION_BATCH_SIZE)
            hidden = torch.cat([module.embed(part.to(module.device)).float().cpu() for part in parts])
        labels = [(self.classes[true], self.classes[guess]) for true, guess in islice(pairs, MOST_POINTS)]
        write_embedding(self.folder, hidden.numpy(), images, labels)

    def _evaluation(self, stage: str, trainer: pl.Trainer) -> Evaluation | None:
        """All that was evaluated last, on all devices, in the order of the images; called on each device."""
        if stage not in self._parts:
            return None
        parts = self._parts.pop(stage)
        if trainer.world_size > 1:
            of_devices: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(of_devices, parts)
            parts = [part for device in of_devices for part in device]
        indices, logits = (torch.cat(each) for each in zip(*parts, strict=True))
        order = indices.argsort()
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        images, labels = data.images(stage).images[:, 0].numpy(), data.images(stage).labels.numpy()
        shown = indices[order].numpy()
        return Evaluation(images[shown], labels[shown], logits[order].numpy())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Normalisations look at no batch meanwhile, and no gradients are computed."""
    training = module.training
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        module.train(training)


def predictions(evaluation: Evaluation, classes: Sequence[str]) -> Image.Image:
    """The first images; above each its true class, and the predicted one: green if that is right, else red."""
    rows = zip(evaluation.images, evaluation.labels.tolist(), evaluation.predicted.tolist(), strict=True)
    tiles = [
        Tile(f"{classes[label]}\n{classes[given]}", image, GREEN if label == given else RED)
        for image, label, given in islice(rows, PREDICTIONS)
    ]
    return sheet(tiles, width=640, per_row=8)


def mistakes(evaluation: Evaluation, classes: Sequence[str]) -> Image.Image | None:
    """The images that were classified wrongly with most certainty, worst first; above each its true class, and the
    predicted one with its probability. None if there is no such image.
    """
    wrong = (evaluation.predicted != evaluation.labels).nonzero()[0]
    certainty = evaluation.probabilities[wrong].max(axis=1)
    worst = wrong[certainty.argsort()[::-1]][:MISTAKES]
    tiles = []
    for i in worst:
        true, guess = classes[evaluation.labels[i]], classes[evaluation.predicted[i]]
        probability = evaluation.probabilities[i].max()
        tiles.append(Tile(f"{true}\n{guess} {probability:.2f}", evaluation.images[i], RED))
    return sheet(tiles, width=800, per_row=8) if tiles else None


def filters(net: nn.Module) -> Image.Image | None:
    """The kernels of the first convolution: red is positive, blue negative. None if there is no convolution."""
    first = next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        return None
    kernels = first.weight.detach().float().cpu()
    return images({f"{number + 1}": kernel[0] for number, kernel in enumerate(kernels)}, width=420, signed=True)


def feature_maps(net: nn.Module, image: Tensor) -> dict[str, Image.Image]:
    """What each convolution makes of an image (28, 28) uint8, after the activation; by the name of the stage."""
    parameter = next(net.parameters())
    values = (image[None, None] / 255).to(parameter)
    pictures = {}
    for name, stage in net.named_children():
        values = stage(values)
        if values.dim() == 4 and name.startswith("act"):
            planes = values[0].float().cpu()
            pictures[name] = images({f"{n + 1}": plane for n, plane in enumerate(planes)}, width=420, per_row=8)
    return pictures


def precision_recall(evaluation: Evaluation) -> Array:
    """For each class, as one against the others: (10, 6, THRESHOLDS).

    The six are true positives, false positives, true negatives, false negatives, precision and recall; an image is
    positive where the class has at least the probability i / (THRESHOLDS - 1).
    """
    classes = evaluation.probabilities.shape[1]
    bins = (evaluation.probabilities * (THRESHOLDS - 1)).astype(np.int64) + np.arange(classes) * THRESHOLDS
    of_class = np.take_along_axis(bins, evaluation.labels[:, None], axis=1)
    true, positive = (
        np.bincount(chosen.ravel(), minlength=classes * THRESHOLDS)
        .reshape(classes, THRESHOLDS)[:, ::-1]
        .cumsum(axis=1)[:, ::-1]
        for chosen in (of_class, bins)
    )
    false = positive - true
    true_negative, false_negative = false[:, :1] - false, true[:, :1] - true
    precision, recall = true / positive.clip(min=1), true / true[:, :1].clip(min=1)
    return np.stack([true, false, true_negative, false_negative, precision, recall], axis=1)
