"""An embedding for TensorBoard's projector: points, each with its image and its labels, in files beside the events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lenet.monitor.drawing import Array

FOLDER = "projector"
"""In the run's."""

MOST_POINTS = 10_000
"""Fashion-MNIST's test images; a browser shows as many, and not many more."""


def write_embedding(folder: Path, points: Array, images: Array, labels: Sequence[tuple[str, str]]) -> None:
    """Write points (N, K) with their images (N, H, W) uint8 and their classes, true and predicted.

    The projector reads numbers as text. They are rounded to a two-thousandth of the largest: so few texts occur, which
    are made once, and put together as bytes of equal length.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    unit = max(float(np.abs(points).max()), 1e-9) / 2000
    texts = [f"{number * unit:.4g}" for number in range(-2000, 2001)]
    length = max(map(len, texts)) + 1
    table = np.frombuffer("".join(f"{text:<{length - 1}}\t" for text in texts).encode(), np.uint8)
    lines = table.reshape(-1, length)[(points / unit).round().astype(np.int64) + 2000]
    lines[:, -1, -1] = ord("\n")
    (place / "tensors.tsv").write_bytes(lines.tobytes())
    rows = [f"{true}\t{guess}\t{'right' if true == guess else 'wrong'}" for true, guess in labels]
    (place / "labels.tsv").write_text("\n".join(["true\tpredicted\tverdict", *rows]) + "\n", encoding="utf-8")
    across = math.ceil(math.sqrt(len(points)))
    height, width = images.shape[1:]
    sprites = np.full((across * across, height, width), 255, np.uint8)
    sprites[: len(points)] -= images
    mosaic = sprites.reshape(across, across, height, width).swapaxes(1, 2).reshape(across * height, across * width)
    Image.fromarray(mosaic).save(place / "sprites.jpg", quality=85)
    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="test images, last hidden layer",
        tensor_path=f"{FOLDER}/tensors.tsv",
        metadata_path=f"{FOLDER}/labels.tsv",
    )
    embedding.sprite.image_path = f"{FOLDER}/sprites.jpg"
    embedding.sprite.single_image_dim.extend([width, height])
    (folder / "projector_config.pbtxt").write_text(str(config))
