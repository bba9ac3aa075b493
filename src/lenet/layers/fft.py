"""The convolution theorem: a convolution is a product of Fourier transforms.

    output = F⁻¹( F(input) · conj(F(weight)) )        summed over the input channels
    transposed: F⁻¹( F(input) · F(weight) )

The conjugate makes a cross-correlation of the convolution. A discrete transform wraps around at the image's edge,
which spoils just those positions where the kernel reaches over it, and those are not windows of the image. A dilated
kernel has zeros between its values, a stride keeps every s-th of the outputs: the transform knows neither. Each
output depends on every pixel, if only by rounding: errors are relative to the image's largest value, and one NaN
spoils all of it.
"""

import torch
from torch import Tensor

from lenet.layers import taps
from lenet.layers.geometry import Pair, spread, tap, transposed_size, window_count


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    if input.numel() == 0:
        return taps.conv2d(input, weight, stride, dilation)  # MKL refuses to transform nothing
    size = (input.shape[2], input.shape[3])
    kernel = torch.fft.rfft2(spread(weight, dilation), s=size).conj()
    spectrum = torch.einsum("nchw,ochw->nohw", torch.fft.rfft2(input), kernel)
    count = window_count(size, (weight.shape[2], weight.shape[3]), stride, dilation)
    output: Tensor = torch.fft.irfft2(spectrum, s=size)
    return tap(output, (0, 0), count, stride)


def conv_transpose2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """The reverse, of (N, C, H, W) and (C, O, k_h, k_w): the true convolution of the input, spread by the stride."""
    if input.numel() == 0:
        return taps.conv_transpose2d(input, weight, stride, dilation)
    size = transposed_size(input, weight, stride, dilation)
    kernel = torch.fft.rfft2(spread(weight, dilation), s=size)
    spectrum = torch.einsum("nchw,cohw->nohw", torch.fft.rfft2(spread(input, stride), s=size), kernel)
    output: Tensor = torch.fft.irfft2(spectrum, s=size)
    return output
