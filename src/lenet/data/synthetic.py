"""A stand-in for Fashion-MNIST that needs no file and no network: ten shapes drawn by the program."""

from typing import Any

import torch
from torch import Tensor

from lenet.data.module import ImageDataModule, Images
from lenet.errors import UserError


def shapes() -> dict[str, Tensor]:
    """A mask (28, 28) for each class, true on the shape."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    radius = torch.hypot(x, y)
    inside = (x.abs() < 10) & (y.abs() < 10)  # leaves room around a shape, for the shift
    return {
        "disc": radius < 9,
        "ring": (radius > 6) & (radius < 10),
        "square": inside,
        "frame": inside & ((x.abs() > 6) | (y.abs() > 6)),
        "vertical bar": inside & (x.abs() < 2),
        "horizontal bar": inside & (y.abs() < 2),
        "plus": inside & ((x.abs() < 2) | (y.abs() < 2)),
        "diagonal": inside & ((x - y).abs() < 3),
        "other diagonal": inside & ((x + y).abs() < 3),
        "triangle": inside & (y > 2 * x.abs() - 10),
    }


SHAPES = shapes()


class Synthetic(ImageDataModule):
    """Ten shapes, the same images in every run; train_size includes the validation images."""

    class_names = tuple(SHAPES)
    source = "Ten shapes drawn by this program; MIT licence."

    def __init__(self, train_size: int = 21000, test_size: int = 1000, **batching: Any) -> None:
        super().__init__(**batching)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if not isinstance(size, int) or size < 1:
                raise UserError(f"data.{name}={size}: should be a whole number of at least 1")
        self.train_size, self.test_size = train_size, test_size

    def load(self) -> tuple[Images, Images]:
        return draw(self.train_size, seed=0), draw(self.test_size, seed=1)


def draw(size: int, seed: int) -> Images:
    """Ten shapes, shifted, dimmed and noisy; classes are balanced. The same seed gives the same images."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(size)[torch.randperm(size, generator=random)] % 10
    shifts = torch.randint(-3, 4, (size, 2), generator=random)  # in pixels
    rows, columns = ((torch.arange(28) - shift) % 28 for shift in (shifts[:, :1], shifts[:, 1:]))  # (size, 28) each
    shapes = torch.stack(list(SHAPES.values())).float()[labels[:, None, None], rows[:, :, None], columns[:, None, :]]
    brightness = torch.empty(size, 1, 1).uniform_(0.5, 1.0, generator=random)
    noise = torch.empty(size, 28, 28).uniform_(0.0, 0.3, generator=random)
    return Images((shapes * brightness + noise).clamp_(0, 1).mul_(255).to(torch.uint8), labels)
