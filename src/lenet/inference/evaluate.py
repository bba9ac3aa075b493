"""What a trained network does on a data set: loss, accuracy of each class, calibration, confusion."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from lenet.classes import build
from lenet.config import compose_settings
from lenet.errors import UserError
from lenet.files import write_json
from lenet.inference.model import TrainedNetwork
from lenet.monitor.drawing import confusion
from lenet.training import checkpoint
from lenet.training.sums import Sums

ENSEMBLE = "ensemble of "

BINS = 15
"""Of the calibration error: Guo et al., "On calibration of modern neural networks" (2017)."""


@dataclass
class Evaluation:
    """Of one network, or of an ensemble, on one data set."""

    name: str
    classes: Sequence[str]
    images: str  # which they are, such as "FashionMNIST, test"
    loss: float  # mean over the images
    probabilities: Tensor  # (N, classes)
    labels: Tensor  # (N,)

    @cached_property
    def confusion(self) -> Tensor:
        """How many images of a class (row) were taken for one (column): (classes, classes)."""
        return multiclass_confusion_matrix(self.probabilities, self.labels, len(self.classes))

    @cached_property
    def measures(self) -> dict[str, Any]:
        """The numbers, as plain values."""
        counts = self.confusion.double()
        by_class = (counts.diagonal() / counts.sum(dim=1)).tolist()
        error = multiclass_calibration_error(self.probabilities, self.labels, len(self.classes), n_bins=BINS)
        right = int((self.probabilities.argmax(dim=1) == self.labels).sum())
        return {
            "of": self.name,
            "data": self.images,
            "images": len(self.labels),
            "loss": self.loss,
            "acc": right / len(self.labels),
            "calibration_error": float(error),
            "acc_by_class": dict(zip(self.classes, by_class, strict=True)),
            "confusion": self.confusion.tolist(),
        }


def data_of(run: Path, choice: str | None = None) -> LightningDataModule:
    """The data set that a run was trained on, or another one: a choice of the group data, such as `synthetic`."""
    if choice is None and not (run / checkpoint.RUN_FILE).exists():
        raise UserError(f"{run}: is no run's folder, which would say on what data; name them with --data")
    chosen = compose_settings(f"data={choice}").plain if choice else checkpoint.read_run(run)["settings"]
    data: LightningDataModule = build("data", chosen["data"])
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def batches(data: LightningDataModule, split: str = "test") -> Iterable[Any]:
    """The batches (images, labels) of a split: "train", "val" or "test"."""
    loaders = getattr(data, f"{split}_dataloader")()
    return loaders[0] if isinstance(loaders, list) and loaders else loaders  # type: ignore[no-any-return]


@torch.inference_mode()
def evaluate(name: str, net: TrainedNetwork, data: LightningDataModule, split: str = "test") -> Evaluation:
    """Evaluate a network as the end of a run does: the same numbers, to the last digit on the same machine.

    The split is "test" or "val". Raises a UserError if that has no images, or they do not fit the network.
    """
    sums, probabilities, labels = Sums(), [], []
    for images, truth in batches(data, split):
        logits = net(images)
        sums.add_batch(net.classifier.loss(logits, truth), logits, truth)
        probabilities.append(logits.softmax(dim=1))
        labels.append(truth)
    if not labels:
        raise UserError(f"{name}: its data set has no images of the split {split}")
    sums.read()
    images = f"{type(data).__name__}, {split}"
    return Evaluation(name, net.classes, images, sums.mean_loss, torch.cat(probabilities), torch.cat(labels))


def ensemble(members: Sequence[Evaluation]) -> Evaluation:
    """The mean of the members' probabilities; they have to be of the same images."""
    first = members[0]
    if any(not torch.equal(each.labels, first.labels) for each in members):
        raise UserError("--ensemble: the runs are of different data sets; name one for all with --data")
    mean = torch.stack([each.probabilities for each in members]).mean(dim=0)
    loss = float(-mean[torch.arange(len(mean)), first.labels].log().double().mean())
    name = ENSEMBLE + ", ".join(each.name for each in members)
    return Evaluation(name, first.classes, first.images, loss, mean, first.labels)


def comparison(evaluations: Sequence[Evaluation]) -> str:
    """A comparison as text, with a column for each evaluation."""
    keys = {"data": "data", "images": "images", "loss": "loss", "acc": "accuracy"}
    keys["calibration_error"] = "calibration error"
    measured = [each.measures for each in evaluations]
    columns = [{label: each[key] for key, label in keys.items()} | each["acc_by_class"] for each in measured]
    heads = ["ensemble" if each.name.startswith(ENSEMBLE) else each.name for each in evaluations]
    table = pd.DataFrame(columns, heads, dtype=object).T
    return str(table.to_string(float_format="{:.4f}".format))


def save(evaluation: Evaluation, folder: Path) -> str:
    """Write evaluation.json and confusion.png into a folder; returns where they are."""
    write_json(folder / "evaluation.json", evaluation.measures)
    confusion(evaluation.confusion.numpy(), evaluation.classes).save(folder / "confusion.png")
    return f"{folder / 'evaluation.json'}, {folder / 'confusion.png'}"
