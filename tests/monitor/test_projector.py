from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lenet.monitor.projector import write_embedding


def test_points_images_and_labels_are_there(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    hidden = torch.randn(5, 84, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 84)
    write_embedding(tmp_path, hidden.numpy(), images, [("Bag", "Coat")] * 5)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    read = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
    assert np.abs(read - hidden.numpy()).max() <= hidden.abs().max().item() / 1999
    assert len((tmp_path / embedding.metadata_path).read_text().splitlines()) == 6
    sprites = np.asarray(Image.open(tmp_path / embedding.sprite.image_path))
    assert sprites.shape == (84, 84)  # three by three
    fourth = 255 - sprites[28:56, :28].astype(int)
    assert np.abs(fourth - images[3]).mean() < 30  # noise, as JPEG keeps it
    assert (sprites[56:, 28:] > 250).all()
