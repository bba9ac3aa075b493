"""The real images, and how they get to training."""

from pathlib import Path

import torch
from torchvision import datasets
from torchvision.transforms import ToTensor

from lenet.data import FashionMNIST


def test_the_real_images(real_root: Path) -> None:
    train, test = FashionMNIST(real_root).load()
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.labels.dtype == torch.int64
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    # Widely published mean and standard deviation of the training pixels.
    pixels = train.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.2860, 0.3530)


def test_batches_equal_torchvisions_pictures_through_totensor(real_root: Path) -> None:
    data = FashionMNIST(real_root, batch_size=64, seed=3)
    data.prepare_data()
    data.setup()
    reference = datasets.FashionMNIST(str(real_root), train=True, transform=ToTensor())
    (images, labels), *_ = data.val_dataloader()[0]
    expected = [reference[index] for index in range(55_000, 56_000)]
    torch.testing.assert_close(images / 255, torch.stack([image for image, _ in expected]), rtol=0, atol=0)
    assert labels.tolist() == [label for _, label in expected]
