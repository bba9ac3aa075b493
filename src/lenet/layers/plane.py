"""The two-dimensional beginnings: one image (H, W), one kernel (k_h, k_w), no channels, no batch, no options.

Each function is its formula, and differentiable.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, Size, check_tensor, pair


def cross_correlation(image: Tensor, kernel: Tensor) -> Tensor:
    """What deep learning calls a convolution: output[y, x] = Σ_i Σ_j image[y + i, x + j] · kernel[i, j].

    Shapes: (H, W) and (k_h, k_w) to (H - k_h + 1, W - k_w + 1).

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: an argument is not two-dimensional, or the kernel is larger than the image.
    """
    height, width = _check_plane("kernel", kernel).shape
    sums = [(window * kernel).sum() for window in _windows(image, (height, width))]
    return torch.stack(sums).view(image.shape[0] - height + 1, -1)


def convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """What mathematics calls a convolution: the cross-correlation with the kernel flipped in both directions.

    Shapes and errors: those of `cross_correlation`.
    """
    return cross_correlation(image, _check_plane("kernel", kernel).flip(0, 1))


def pool2d(image: Tensor, size: Size, mode: Literal["max", "avg"] = "max") -> Tensor:
    """The largest value of each window, or its average; windows are one pixel apart.

    Shapes: (H, W) and a window of `size` to (H - height + 1, W - width + 1).

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an unknown mode.
        RuntimeError: the image is not two-dimensional, or the window is larger than the image.
    """
    height, width = pair("size", size, least=1)
    if mode not in ("max", "avg"):
        raise ValueError(f"mode={mode!r}: should be 'max' or 'avg'")
    windows = _windows(image, (height, width))
    values = [window.max() if mode == "max" else window.mean() for window in windows]
    return torch.stack(values).view(image.shape[0] - height + 1, -1)


def _windows(image: Tensor, size: Pair) -> list[Tensor]:
    """Every window of the image, row by row."""
    height, width = _check_plane("image", image).shape
    if size[0] > height or size[1] > width:
        raise RuntimeError(f"image: should be at least {size[0]}×{size[1]}, as the window is, got {height}×{width}")
    return [
        image[y : y + size[0], x : x + size[1]] for y in range(height - size[0] + 1) for x in range(width - size[1] + 1)
    ]


def _check_plane(name: str, value: Tensor) -> Tensor:
    if check_tensor(name, value).dim() != 2 or 0 in value.shape:
        raise RuntimeError(f"{name}: should be two-dimensional and not empty, got shape {list(value.shape)}")
    return value
