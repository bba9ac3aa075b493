"""What TensorBoard shows of a run beside its curves: predictions, mistakes, what the network has learnt, and how.

Pictures of an epoch are of the validation images; the test images appear once, after the last epoch. They show what the
evaluation has computed anyway. The time that an epoch's pictures take is counted as training time.
"""

from __future__ import annotations

import math
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
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor, nn

from lenet.data import EVALUATION_BATCH_SIZE, Block, ImageDataModule
from lenet.drawing import GREEN, RED, Array, Tile, confusion, images, sheet
from lenet.module import Classifier
from lenet.tensorboard import FIGURE_TAGS, RunLogger
from lenet.throughput import Stopwatch

PREDICTIONS, MISTAKES = 32, 16
"""How many images are shown."""

THRESHOLDS = 127
"""Points of a precision-recall curve; TensorBoard takes no more."""

PROJECTOR = "projector"
"""The folder of the embedding, in the run's."""


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
    def shares(self) -> Array:
        """(N, 10), the probability of each class: softmax."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares

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
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}  # for each stage: indices and logits

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
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

    def _add_to_figure(self, module: Classifier, epoch: int) -> None:
        metrics = module.metrics
        held_out = metrics.get("val/acc", metrics.get("test/acc"))
        values = metrics["train/loss"], metrics["train/acc"], held_out
        for tag, value in zip(FIGURE_TAGS, values, strict=True):
            if value is not None:
                self.logger.experiment.add_scalar(tag, value, epoch)

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
        with evaluating(module):
            parts = torch.split(torch.from_numpy(test.images)[:, None], EVALUATION_BATCH_SIZE)
            hidden = torch.cat([module.embed(part.to(module.device)).float().cpu() for part in parts])
        write_embedding(self.folder, hidden, test, self.classes)

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
    certainty = evaluation.shares[wrong].max(axis=1)
    worst = wrong[certainty.argsort()[::-1]][:MISTAKES]
    tiles = [
        Tile(
            f"{classes[evaluation.labels[i]]}\n{classes[evaluation.predicted[i]]} {evaluation.shares[i].max():.2f}",
            evaluation.images[i],
            RED,
        )
        for i in worst
    ]
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
    classes = evaluation.shares.shape[1]
    bins = (evaluation.shares * (THRESHOLDS - 1)).astype(np.int64) + np.arange(classes) * THRESHOLDS
    of_class = np.take_along_axis(bins, evaluation.labels[:, None], axis=1)
    true, positive = (
        np.bincount(chosen.ravel(), minlength=classes * THRESHOLDS)
        .reshape(classes, THRESHOLDS)[:, ::-1]
        .cumsum(axis=1)[:, ::-1]
        for chosen in (of_class, bins)
    )
    false = positive - true
    negative, missed = false[:, :1] - false, true[:, :1] - true
    precision, recall = true / positive.clip(min=1), true / true[:, :1].clip(min=1)
    return np.stack([true, false, negative, missed, precision, recall], axis=1)


def write_embedding(folder: Path, hidden: Tensor, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Write what the last layer gets, (N, K), in the form of TensorBoard's projector, each point with its image.

    The projector reads numbers as text. They are rounded to a two-thousandth of the largest: so few texts occur, which
    are made once, and put together as bytes of equal length.
    """
    place = folder / PROJECTOR
    place.mkdir()
    unit = max(hidden.abs().max().item(), 1e-9) / 2000
    texts = [f"{number * unit:.4g}" for number in range(-2000, 2001)]
    length = max(map(len, texts)) + 1
    table = np.frombuffer("".join(f"{text:<{length - 1}}\t" for text in texts).encode(), np.uint8)
    lines = table.reshape(-1, length)[(hidden / unit).round().long().numpy() + 2000]
    lines[:, -1, -1] = ord("\n")
    (place / "tensors.tsv").write_bytes(lines.tobytes())
    names = zip(evaluation.labels.tolist(), evaluation.predicted.tolist(), strict=True)
    rows = [f"{classes[label]}\t{classes[given]}\t{'right' if label == given else 'wrong'}" for label, given in names]
    (place / "labels.tsv").write_text("\n".join(["true\tpredicted\tverdict", *rows]) + "\n", encoding="utf-8")
    across = math.ceil(math.sqrt(len(hidden)))
    height, width = evaluation.images.shape[1:]
    sprites = np.full((across * across, height, width), 255, np.uint8)
    sprites[: len(hidden)] -= evaluation.images
    mosaic = sprites.reshape(across, across, height, width).swapaxes(1, 2).reshape(across * height, across * width)
    Image.fromarray(mosaic).save(place / "sprites.jpg", quality=85)
    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="test images, last hidden layer",
        tensor_path=f"{PROJECTOR}/tensors.tsv",
        metadata_path=f"{PROJECTOR}/labels.tsv",
    )
    embedding.sprite.image_path = f"{PROJECTOR}/sprites.jpg"
    embedding.sprite.single_image_dim.extend([width, height])
    (folder / "projector_config.pbtxt").write_text(str(config))
