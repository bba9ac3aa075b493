"""im2col: the windows unrolled into the columns of a matrix, so that the convolution is one matrix product.

    output = W @ columns        W: weight as (O, C·k_h·k_w);  columns: each window as (C·k_h·k_w), one for each output

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006).
`conv2d_by_autograd` is just this: to be read, for compilers and torch.func, where gradients are differentiated again
(which takes several times as long), and to test `conv2d` against.

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
    return _Convolution.apply(input, weight, stride, dilation)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    """The convolution row by row, and its gradients."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
        image, kernel_size = _batch_innermost(input), (weight.shape[2], weight.shape[3])
        height, width = window_count(input.shape, kernel_size, stride, dilation)
        output = image.new_empty(height, width, weight.shape[0], input.shape[0])
        matrices = weight.permute(0, 3, 2, 1).flatten(1).expand(width, -1, -1)  # (W', O, k_w·k_h·C)
        for y in range(height):
            row = _windows_of_row(image, y, kernel_size, width, stride, dilation)
            torch.bmm(matrices, row, out=output[y])
        return _batch_outermost(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, *ctx.steps = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or is_traced(gradient):  # the gradients are to be differentiated in their turn
            pull_back = torch.func.vjp(lambda x, w: conv2d_by_autograd(x, w, *ctx.steps), input, weight)[1]
            return *pull_back(gradient), None, None
        of_input = _input_gradient(weight, gradient, input.shape, *ctx.steps) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(input, gradient, weight.shape, *ctx.steps) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, None, None


def _input_gradient(weight: Tensor, gradient: Tensor, shape: torch.Size, stride: Pair, dilation: Pair) -> Tensor:
    """From (O, C, k_h, k_w) and (N, O, H', W') to (N, C, H, W)."""
    channels, kernel_size, (height, width) = weight.shape[1], (weight.shape[2], weight.shape[3]), gradient.shape[2:]
    outputs = _batch_innermost(gradient)
    image = outputs.new_zeros(*shape[2:], channels, shape[0])
    slices = weight.permute(3, 2, 1, 0).flatten(1, 2)  # (k_w, k_h·C, O)
    for y in range(height):
        strip = outputs.new_zeros(shape[3], kernel_size[0] * channels, shape[0])
        for j, matrix in enumerate(slices):
            left = j * dilation[1]
            seen = strip[left : left + stride[1] * (width - 1) + 1 : stride[1]]
            seen.baddbmm_(matrix.expand(width, -1, -1), outputs[y])
        rows = _rows(image, y, kernel_size, stride, dilation)
        rows += strip.view(shape[3], kernel_size[0], channels, shape[0]).transpose(0, 1)
    return _batch_outermost(image)


def _weight_gradient(input: Tensor, gradient: Tensor, shape: torch.Size, stride: Pair, dilation: Pair) -> Tensor:
    """From (N, C, H, W) and (N, O, H', W') to (O, C, k_h, k_w)."""
    image, outputs = _batch_innermost(input), _batch_innermost(gradient)
    (out_channels, channels, rows, columns), (height, width) = shape, gradient.shape[2:]
    matrices = image.new_zeros(width, columns * rows * channels, out_channels)
    for y in range(height):
        row = _windows_of_row(image, y, (rows, columns), width, stride, dilation)
        matrices.baddbmm_(row, outputs[y].transpose(1, 2))
    return matrices.sum(0).view(columns, rows, channels, out_channels).permute(3, 2, 1, 0)


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
