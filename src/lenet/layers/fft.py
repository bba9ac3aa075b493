"""The convolution theorem: a convolution is a product of Fourier transforms.

    output = F⁻¹( F(input) · conj(F(weight)) )        summed over the input channels

The conjugate turns the convolution into a cross-correlation. A discrete transform wraps around at the image's edge;
this spoils only the positions where the kernel reaches over the edge, and those are not outputs. The transform knows
neither dilation nor stride: a dilated kernel gets zeros between its values, and with a stride s every s-th output is
kept. Each output depends on every pixel through rounding: errors are relative to the image's largest value, and one
NaN spoils the whole image.
"""

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, spread, tap, window_count


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    size = (input.shape[2], input.shape[3])
    count = window_count(size, (weight.shape[2], weight.shape[3]), stride, dilation)
    kernel = torch.fft.rfft2(spread(weight, dilation), s=size).conj()
    spectrum = torch.einsum("nchw,ochw->nohw", torch.fft.rfft2(input), kernel)
    output: Tensor = torch.fft.irfft2(spectrum, s=size)
    return tap(output, (0, 0), count, stride)
