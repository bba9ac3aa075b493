"""The two-dimensional beginnings: one image (H, W), one kernel (k_h, k_w), no channels, no batch, no options.

Each function is its formula, and differentiable. Windows are one pixel apart. An image that is not two-dimensional
raises a ValueError; a window larger than the image raises a RuntimeError.
"""

import torch
from torch import Tensor

from lenet.layers.geometry import positions, window_count


def cross_correlation(image: Tensor, kernel: Tensor) -> Tensor:
    """What deep learning calls a convolution: output[y, x] = Σ_i Σ_j image[y + i, x + j] · kernel[i, j].

    Shapes: (H, W) and (k_h, k_w) to (H - k_h + 1, W - k_w + 1).
    """
    (height, width), (rows, columns) = image.shape, kernel.shape
    count = window_count((height, width), (rows, columns), (1, 1), (1, 1))
    sums = [(image[y : y + rows, x : x + columns] * kernel).sum() for y, x in positions(count)]
    return torch.stack(sums).view(count)


def convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """What mathematics calls a convolution: the cross-correlation with the kernel flipped in both directions."""
    return cross_correlation(image, kernel.flip(0, 1))
