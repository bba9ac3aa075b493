"""A sum over the kernel's positions: each is a tap that reads the whole image, shifted, through one weight slice.

    output[n, o, y, x] = Σ_i Σ_j  ( Σ_c  weight[o, c, i, j] · input[n, c, y·s + i·d, x·s + j·d] )

(s: stride, d: dilation.) The definition's sum with the loops exchanged: 25 large steps for a 5×5 kernel instead of one
small step for each output position. In a step (i, j) the sum over c is one product: of the slice weight[:, :, i, j], a
matrix (O, C), with the shifted pixels of all images, a matrix (C, H'·W'·N). For that the channels come first in memory,
and the images of the batch last, so that shifting moves whole rows of N values.
"""

from functools import reduce

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, positions, tap, window_count


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    kernel_size = (weight.shape[2], weight.shape[3])
    count = window_count(input.shape, kernel_size, stride, dilation)
    images = _batch_first(_channels_first(input).contiguous())
    terms = []
    for i, j in positions(kernel_size):
        shifted = tap(images, (i * dilation[0], j * dilation[1]), count, stride)
        terms.append(torch.tensordot(weight[:, :, i, j], _channels_first(shifted), dims=1))
    return _batch_first(reduce(torch.add, terms))


def _channels_first(images: Tensor) -> Tensor:
    """(N, C, H, W) as (C, H, W, N): a view."""
    return images.permute(1, 2, 3, 0)


def _batch_first(images: Tensor) -> Tensor:
    """(C, H, W, N) as (N, C, H, W): a view."""
    return images.permute(3, 0, 1, 2)
