"""A stand-in for Fashion-MNIST that needs no file and no network: ten shapes drawn by the program."""

from typing import Any

import torch
from torch import Tensor

from lenet.data.module import ImageDataModule, Images


class Synthetic(ImageDataModule):
    """Ten shapes, the same images in every run; train_size includes the validation images."""

    class_names = (
        *("disc", "ring", "square", "frame", "vertical bar"),
        *("horizontal bar", "plus", "diagonal", "other diagonal", "triangle"),
    )

    def __init__(self, train_size: int = 21000, test_size: int = 1000, **batching: Any) -> None:
        super().__init__(**batching)
        self.train_size = train_size
        self.test_size = test_size

    def load(self) -> tuple[Images, Images]:
        return draw(self.train_size, seed=0), draw(self.test_size, seed=1)


def draw(size: int, seed: int) -> Images:
    """Ten shapes, shifted, dimmed and noisy; classes are balanced. The same seed gives the same images."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(size)[torch.randperm(size, generator=random)] % 10
    shifts = torch.randint(-3, 4, (size, 2), generator=random)  # in pixels
    shapes = _shift(_shapes()[labels], shifts)
    brightness = torch.empty(size, 1, 1).uniform_(0.5, 1.0, generator=random)
    noise = torch.empty(size, 28, 28).uniform_(0.0, 0.3, generator=random)
    images = (shapes * brightness + noise).clamp_(0, 1).mul_(255).to(torch.uint8)
    return Images(images, labels)


def _shapes() -> Tensor:
    """The ten shapes (10, 28, 28), 1 on the shape and 0 elsewhere, with room for the shift around them."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    radius = torch.hypot(x, y)
    inside = (x.abs() < 10) & (y.abs() < 10)
    shapes = [
        radius < 9,  # disc
        (radius > 6) & (radius < 10),  # ring
        inside,  # square
        inside & ((x.abs() > 6) | (y.abs() > 6)),  # frame
        inside & (x.abs() < 2),  # vertical bar
        inside & (y.abs() < 2),  # horizontal bar
        inside & ((x.abs() < 2) | (y.abs() < 2)),  # plus
        inside & ((x - y).abs() < 3),  # diagonal
        inside & ((x + y).abs() < 3),  # the other diagonal
        inside & (y > 2 * x.abs() - 10),  # triangle
    ]
    return torch.stack(shapes).float()


def _shift(images: Tensor, shifts: Tensor) -> Tensor:
    """Move each image by its own (rows, columns); what leaves on one side comes back, empty, on the other."""
    rows = (torch.arange(28) - shifts[:, :1]) % 28
    columns = (torch.arange(28) - shifts[:, 1:]) % 28
    return images[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
