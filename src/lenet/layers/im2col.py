"""im2col: the windows unrolled into the columns of a matrix, so that the convolution is one matrix product.

    output = W @ columns        W: weight as (O, C·k_h·k_w);  columns: each window as (C·k_h·k_w), one for each output

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006).
`conv2d_by_autograd` is that, and nothing more; it is here to be read, and to test `conv2d` against.

`conv2d` is the same made fast, with a backward written by hand. The images of a batch lie side by side, as the
innermost dimension (H, W, C, N), so that whatever is moved is moved N values at a time. Then there is a product for
each output position, all images at once:

    output[y, x] = W @ window[y, x]        window[y, x]: what all images have there, (k_w·k_h·C, N)

The output is computed row by row. The k_h rows of the image that one of its rows sees are copied into a strip
(W, k_h·C, N). There the windows of this row, k_w neighbouring pieces each, overlap; they enter the products as strided
views, without another copy. The strip stays in the cache; it is not kept for the backward, which makes it anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, transposed_size, window_count


def windows(input: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Every window of (N, C, H, W), as a view (N, C, k_h, k_w, H', W'); copied is only an input not contiguous."""
    input = input.contiguous()
    *outer, height, width = input.stride()
    count = window_count(input.shape, kernel_size, stride, dilation)
    steps = (height * dilation[0], width * dilation[1], height * stride[0], width * stride[1])
    return input.as_strided((*input.shape[:2], *kernel_size, *count), (*outer, *steps))


def unrolled(input: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Every window of (N, C, H, W) as a column of a matrix (N, C·k_h·k_w, H'·W'). Windows overlap, so this copies."""
    return windows(input, kernel_size, stride, dilation).flatten(4).flatten(1, 3)


def conv2d_by_autograd(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W'); one matrix product for each image."""
    kernel_size = (weight.shape[2], weight.shape[3])
    outputs = weight.flatten(1) @ unrolled(input, kernel_size, stride, dilation)  # (N, O, H'·W')
    return outputs.view(*outputs.shape[:2], *window_count(input.shape, kernel_size, stride, dilation))


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    output: Tensor = _Correlation.apply(input, weight, stride, dilation)
    return output


def conv_transpose2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """The reverse, of (N, C, H, W) and (C, O, k_h, k_w): what the backward of `conv2d` does for its input."""
    size = transposed_size(input, weight, stride, dilation)
    output: Tensor = _InputGradient.apply(input, weight, size, stride, dilation)
    return output


# Input x, weight w and the output's gradient g are the arguments of one number, Σ g · conv2d(x, w), linear in each of
# them. Its derivative with respect to one is a function of the other two: these are the three functions below, and the
# derivatives of each are the other two. So the backward can itself be differentiated, as often as one likes.


class _Correlation(torch.autograd.Function):
    """From x and w to the shape of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: Pair, dilation: Pair) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.steps = (stride, dilation)
        return _correlate(x, w, stride, dilation)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        size, kernel_size = x.shape[2:], w.shape[2:]
        dx = _InputGradient.apply(g, w, size, *ctx.steps) if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(x, g, kernel_size, *ctx.steps) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


class _InputGradient(torch.autograd.Function):
    """From g and w to the shape of x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, size: Pair, stride: Pair, dilation: Pair) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.steps = (stride, dilation)
        return _input_gradient(g, w, size, stride, dilation)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        dg = _Correlation.apply(x, w, *ctx.steps) if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(x, g, w.shape[2:], *ctx.steps) if ctx.needs_input_grad[1] else None
        return dg, dw, None, None, None


class _WeightGradient(torch.autograd.Function):
    """From x and g to the shape of w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.steps = (stride, dilation)
        return _weight_gradient(x, g, kernel_size, stride, dilation)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        dx = _InputGradient.apply(g, w, x.shape[2:], *ctx.steps) if ctx.needs_input_grad[0] else None
        dg = _Correlation.apply(x, w, *ctx.steps) if ctx.needs_input_grad[1] else None
        return dx, dg, None, None, None


def _correlate(x: Tensor, w: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    kernel_size = (w.shape[2], w.shape[3])
    image = _batch_innermost(x)
    height, width = window_count(x.shape, kernel_size, stride, dilation)
    output = image.new_empty(height, width, len(w), len(x))
    matrix = w.permute(0, 3, 2, 1).flatten(1)  # (O, k_w·k_h·C)
    for y in range(height):
        strip = _rows(image, y, kernel_size, stride, dilation).transpose(0, 1).flatten(1, 2)
        torch.bmm(
            matrix.expand(width, -1, -1), _windows_of_row(strip, kernel_size, width, stride, dilation), out=output[y]
        )
    return _batch_outermost(output)


def _input_gradient(g: Tensor, w: Tensor, size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    kernel_size = (w.shape[2], w.shape[3])
    channels, (height, width) = w.shape[1], g.shape[2:]
    outputs = _batch_innermost(g)
    image = outputs.new_zeros(*size, channels, len(g))
    slices = w.permute(3, 2, 1, 0).flatten(1, 2)  # (k_w, k_h·C, O)
    for y in range(height):
        strip = outputs.new_zeros(size[1], kernel_size[0] * channels, len(g))
        for j, matrix in enumerate(slices):
            left = j * dilation[1]
            seen = strip[left : left + stride[1] * (width - 1) + 1 : stride[1]]
            seen.baddbmm_(matrix.expand(width, -1, -1), outputs[y])
        rows = _rows(image, y, kernel_size, stride, dilation)
        rows += strip.view(size[1], kernel_size[0], channels, len(g)).transpose(0, 1)
    return _batch_outermost(image)


def _weight_gradient(x: Tensor, g: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    image, outputs = _batch_innermost(x), _batch_innermost(g)
    (out_channels, height, width), channels = g.shape[1:], x.shape[1]
    matrices = image.new_zeros(width, kernel_size[1] * kernel_size[0] * channels, out_channels)
    for y in range(height):
        strip = _rows(image, y, kernel_size, stride, dilation).transpose(0, 1).flatten(1, 2)
        row = _windows_of_row(strip, kernel_size, width, stride, dilation)
        matrices.baddbmm_(row, outputs[y].transpose(1, 2))
    return matrices.sum(0).view(kernel_size[1], kernel_size[0], channels, out_channels).permute(3, 2, 1, 0)


def _batch_innermost(values: Tensor) -> Tensor:
    """(N, C, H, W) as (H, W, C, N), contiguous: a copy unless it lay so in memory already."""
    return values.permute(2, 3, 1, 0).contiguous()


def _batch_outermost(values: Tensor) -> Tensor:
    """(H, W, C, N) as (N, C, H, W): a view."""
    return values.permute(3, 2, 0, 1)


def _rows(image: Tensor, y: int, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """The rows of (H, W, C, N) that the windows of output row y see: a view (k_h, W, C, N)."""
    top = y * stride[0]
    return image[top : top + dilation[0] * (kernel_size[0] - 1) + 1 : dilation[0]]


def _windows_of_row(strip: Tensor, kernel_size: Pair, count: int, stride: Pair, dilation: Pair) -> Tensor:
    """The windows of one output row, (W', k_w·k_h·C, N), from a strip (W, k_h·C, N): a view, unless dilated."""
    step, _, _ = strip.stride()
    shape = (count, kernel_size[1], *strip.shape[1:])
    return strip.as_strided(shape, (stride[1] * step, dilation[1] * step, *strip.stride()[1:])).flatten(1, 2)
