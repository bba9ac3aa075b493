"""What the dashboard draws: images with their classes, filters, feature maps, and points for the projector."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor, nn
from torchvision.utils import make_grid

from lenet.monitor.drawing import GREEN, RED, Array, Tile, images, sheet

SHOWN, MISTAKES, PLANES, CURVES, POINTS = 16, 16, 32, 20, 2_000
"""At most so many images, mistakes, filters or maps of a layer, precision-recall curves, points of the projector."""


class Evaluation(NamedTuple):
    """The images of a stage, and what the network made of them. In NumPy: these are many small operations."""

    images: Array  # (N, H, W) uint8, the first channel
    labels: Array  # (N,) int64
    probabilities: Array  # (N, classes)
    hidden: Array  # (N, K), the input of the network's last linear layer, or its logits if there is none
    class_names: Sequence[str]

    def names(self, number: int) -> tuple[str, str]:
        """The true and the predicted class of an image."""
        return self.class_names[self.labels[number]], self.class_names[self.probabilities[number].argmax()]

    @property
    def counts(self) -> Array:
        """The confusion matrix (classes, classes): how many images of a class (row) were taken for one (column)."""
        classes = len(self.class_names)
        pairs = self.labels * classes + self.probabilities.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def mistakes(self) -> Array:
        """The numbers of the images that were classified wrongly with most certainty, worst first."""
        wrong: Array = (self.probabilities.argmax(axis=1) != self.labels).nonzero()[0]
        certainty = self.probabilities[wrong].max(axis=1)
        worst: Array = wrong[certainty.argsort()[::-1]]
        return worst[:MISTAKES]


def predictions(evaluation: Evaluation, numbers: Iterable[int]) -> Image.Image:
    """Images; above each its true class, then the predicted one with its probability: green if right, else red."""
    tiles = []
    for number in numbers:
        true, guess = evaluation.names(number)
        caption = f"{true}\n{guess} {evaluation.probabilities[number].max():.2f}"
        tiles.append(Tile(caption, evaluation.images[number], GREEN if true == guess else RED))
    return sheet(tiles, width=808, per_row=8)


def filters(net: nn.Module) -> Tensor:
    """The kernels (N, H, W) of the first convolution, for its first input channel; none if there is no convolution."""
    weights = (parameter for parameter in net.parameters() if parameter.dim() == 4)
    return next(weights, torch.empty(0, 1)).detach()[:, 0]


def numbered(planes: Tensor) -> Image.Image:
    """The first planes (H, W), under their numbers from 1: red is positive, blue negative."""
    names = {f"{number}": plane for number, plane in enumerate(planes[:PLANES].float().cpu(), start=1)}
    return images(names, width=420, per_row=8, signed=True)


def write_embedding(folder: Path, test: Evaluation) -> None:
    """Write the hidden values for TensorBoard's projector, each with its image and its true and predicted class."""
    points, images = test.hidden[:POINTS].astype(np.float32), test.images[:POINTS]
    place = folder / "projector"
    place.mkdir(exist_ok=True)
    points.tofile(place / "points.bytes")  # text would take TensorBoard seconds to read
    rows = ["true\tpredicted\tverdict"]
    for true, guess in map(test.names, range(len(points))):
        rows.append(f"{true}\t{guess}\t{'right' if true == guess else 'wrong'}")
    (place / "labels.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    # √n in a row, without gaps: so TensorBoard finds them.
    grid = make_grid(
        torch.from_numpy(255 - images)[:, None], math.ceil(math.sqrt(len(points))), padding=0, pad_value=255
    )
    Image.fromarray(grid[0].numpy()).save(place / "sprites.jpg", quality=85)
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="test images", tensor_shape=points.shape)
    embedding.tensor_path, embedding.metadata_path = "projector/points.bytes", "projector/labels.tsv"
    embedding.sprite.image_path = "projector/sprites.jpg"
    embedding.sprite.single_image_dim.extend([images.shape[2], images.shape[1]])
    (folder / "projector_config.pbtxt").write_text(str(config))
