"""im2col: the windows unrolled into the columns of a matrix, so that the convolution is one matrix product.

    output = W @ columns        W: weight as (O, C·k_h·k_w);  columns: each window as (C·k_h·k_w), one for each output

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006).
`conv2d_by_autograd` is just this: to be read, for compilers and torch.func, and to test `conv2d` against.

`conv2d` is faster, with a backward written by hand. It has the images of the batch side by side, as the innermost
dimension (H, W, C, N), so that every copy moves N values at a time, and takes a product for each output position:

    output[y, x] = W @ window[y, x]        window[y, x]: what all images have there, (k_w·k_h·C, N)

It goes row by row. The k_h rows of the image that one output row sees are copied into a strip (W, k_h·C, N). Its
windows, k_w neighbouring pieces each, overlap; they enter the products as strided views, without another copy. The
strip fits into the cache; the backward does not keep it but makes it again.
"""

from typing import Any

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, is_traced, positions, tap, window_count


def unrolled(input: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Every window of (N, C, H, W) as a column of a matrix (N, C·k_h·k_w, H'·W'). Windows overlap, so this copies."""
    count = window_count(input.shape, kernel_size, stride, dilation)
    taps = [tap(input, (i * dilation[0], j * dilation[1]), count, stride) for i, j in positions(kernel_size)]
    return torch.stack(taps, dim=2).flatten(3).flatten(1, 2)


def conv2d_by_autograd(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W'); one matrix product for each image."""
    kernel_size = (weight.shape[2], weight.shape[3])
    outputs = weight.flatten(1) @ unrolled(input, kernel_size, stride, dilation)  # (N, O, H'·W')
    return outputs.view(*outputs.shape[:2], *window_count(input.shape, kernel_size, stride, dilation))


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    if is_traced(input, weight):
        return conv2d_by_autograd(input, weight, stride, dilation)
    count = window_count(input.shape, (weight.shape[2], weight.shape[3]), stride, dilation)
    return _Correlation.apply(input, weight, None, count, stride, dilation)  # type: ignore[no-any-return]


class _Derivative(torch.autograd.Function):
    """The derivative of Σ g · conv2d(x, w) with respect to one of x, w and g, the argument that is None.

    The sum is linear in each of input x, weight w and output gradient g. So each derivative is a function of the other
    two, and the derivatives of that function are the other two classes here: the backward is differentiable again.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.steps = inputs[4:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w, g = (gradient if saved is None else saved for saved in ctx.saved_tensors)
        needed = ctx.needs_input_grad
        dx = _InputGradient.apply(None, w, g, x.shape[2:], *ctx.steps) if needed[0] else None
        dw = _WeightGradient.apply(x, None, g, w.shape[2:], *ctx.steps) if needed[1] else None
        dg = _Correlation.apply(x, w, None, g.shape[2:], *ctx.steps) if needed[2] else None
        return dx, dw, dg, None, None, None


class _Correlation(_Derivative):
    """From x and w to the shape of g."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, g: None, count: Pair, stride: Pair, dilation: Pair) -> Tensor:
        image, (height, width), kernel_size = _batch_innermost(x), count, (w.shape[2], w.shape[3])
        output = image.new_empty(height, width, w.shape[0], x.shape[0])
        matrices = w.permute(0, 3, 2, 1).flatten(1).expand(width, -1, -1)  # (W', O, k_w·k_h·C)
        for y in range(height):
            row = _windows_of_row(image, y, kernel_size, width, stride, dilation)
            torch.bmm(matrices, row, out=output[y])
        return _batch_outermost(output)


class _InputGradient(_Derivative):
    """From w and g to the shape of x."""

    @staticmethod
    def forward(x: None, w: Tensor, g: Tensor, size: Pair, stride: Pair, dilation: Pair) -> Tensor:
        channels, kernel_size, (height, width) = w.shape[1], (w.shape[2], w.shape[3]), g.shape[2:]
        outputs = _batch_innermost(g)
        image = outputs.new_zeros(*size, channels, g.shape[0])
        slices = w.permute(3, 2, 1, 0).flatten(1, 2)  # (k_w, k_h·C, O)
        for y in range(height):
            strip = outputs.new_zeros(size[1], kernel_size[0] * channels, g.shape[0])
            for j, matrix in enumerate(slices):
                left = j * dilation[1]
                seen = strip[left : left + stride[1] * (width - 1) + 1 : stride[1]]
                seen.baddbmm_(matrix.expand(width, -1, -1), outputs[y])
            rows = _rows(image, y, kernel_size, stride, dilation)
            rows += strip.view(size[1], kernel_size[0], channels, g.shape[0]).transpose(0, 1)
        return _batch_outermost(image)


class _WeightGradient(_Derivative):
    """From x and g to the shape of w."""

    @staticmethod
    def forward(x: Tensor, w: None, g: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair) -> Tensor:
        image, outputs = _batch_innermost(x), _batch_innermost(g)
        (out_channels, height, width), channels = g.shape[1:], x.shape[1]
        matrices = image.new_zeros(width, kernel_size[1] * kernel_size[0] * channels, out_channels)
        for y in range(height):
            row = _windows_of_row(image, y, kernel_size, width, stride, dilation)
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


def _windows_of_row(image: Tensor, y: int, kernel_size: Pair, count: int, stride: Pair, dilation: Pair) -> Tensor:
    """The windows of output row y of (H, W, C, N): a view (W', k_w·k_h·C, N) of a strip; a copy of it if dilated."""
    strip = _rows(image, y, kernel_size, stride, dilation).transpose(0, 1).flatten(1, 2)
    step, *inner = strip.stride()
    shape = (count, kernel_size[1], *strip.shape[1:])
    return strip.as_strided(shape, (stride[1] * step, dilation[1] * step, *inner)).flatten(1, 2)
