"""The two-dimensional beginnings: one image (H, W), one kernel (k_h, k_w), no channels, no batch, no options.

Each function is its formula, and differentiable. Windows are one pixel apart. An image that is not two-dimensional
raises a ValueError; a window larger than the image raises a RuntimeError.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, Size, pair, positions, window_count


def cross_correlation(image: Tensor, kernel: Tensor) -> Tensor:
    """What deep learning calls a convolution: output[y, x] = Σ_i Σ_j image[y + i, x + j] · kernel[i, j].

    Shapes: (H, W) and (k_h, k_w) to (H - k_h + 1, W - k_w + 1).
    """
    height, width = kernel.shape
    return _each_window(image, (height, width), lambda window: (window * kernel).sum())


def convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """What mathematics calls a convolution: the cross-correlation with the kernel flipped in both directions."""
    return cross_correlation(image, kernel.flip(0, 1))


def pool2d(image: Tensor, size: Size, mode: Literal["max", "avg"] = "max") -> Tensor:
    """The largest value of each window of `size`, or its average: (H, W) to (H - height + 1, W - width + 1)."""
    if mode not in ("max", "avg"):
        raise ValueError(f"mode={mode!r}: should be 'max' or 'avg'")
    return _each_window(image, pair("size", size, least=1), torch.max if mode == "max" else torch.mean)


def _each_window(image: Tensor, size: Pair, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The function's value for each window of the image."""
    height, width = image.shape
    count = window_count((height, width), size, (1, 1), (1, 1))
    values = [function(image[y : y + size[0], x : x + size[1]]) for y, x in positions(count)]
    return torch.stack(values).view(count)
