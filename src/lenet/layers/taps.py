"""A sum over the kernel's positions: each is a tap that reads the whole image, shifted, through one weight slice.

    output = Σ_i Σ_j  weight[:, :, i, j] · input[:, :, i·d :: s, j·d :: s]

The same sum as the definition's, with the loops exchanged: 25 large steps for a 5×5 kernel instead of one small step
for each output position.
"""

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, every_position, tap, transposed_size, window_count


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    kernel_size = (weight.shape[2], weight.shape[3])
    count = window_count(input.shape, kernel_size, stride, dilation)
    output = input.new_zeros(len(input), len(weight), *count)
    for i, j in every_position(kernel_size):
        shifted = tap(input, (i * dilation[0], j * dilation[1]), count, stride)
        output = output + torch.einsum("nchw,oc->nohw", shifted, weight[:, :, i, j])
    return output


def conv_transpose2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """The reverse: through each slice of (C, O, k_h, k_w) the whole of (N, C, H, W) adds to the shifted output."""
    size, kernel_size = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    output = input.new_zeros(len(input), weight.shape[1], *transposed_size(input, weight, stride, dilation))
    for i, j in every_position(kernel_size):
        shifted = tap(output, (i * dilation[0], j * dilation[1]), size, stride)
        shifted += torch.einsum("nchw,co->nohw", input, weight[:, :, i, j])
    return output
