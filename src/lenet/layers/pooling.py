"""Pooling: one value for each window, channel by channel: the largest, or the average.

Both work by taps (see taps.py): on the values at one position of all windows at once, position by position. There are
no weights, so there is no matrix to unroll and no product to transform: this one way goes with every algorithm.

The gradient goes the way back, position by position: from each window to all of its values, or to the largest.

Shapes: (N, C, H, W) to (N, C, H', W'), or both without N, where H' is
(H + 2·padding - dilation·(kernel_size - 1) - 1) / stride + 1, rounded down, or up with `ceil_mode`. Arguments have the
meaning of torch.nn.functional's; numbers and shapes that do not fit together raise a RuntimeError.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.geometry import (
    Pair,
    Size,
    as_batch,
    batched_as,
    is_traced,
    padded,
    pair,
    positions,
    span,
    tap,
    window_count,
)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window; with `return_indices` also where it was found, as row · W + column.

    The gradient goes to the first of equal values, NaN counts as the largest, padding never wins: all as in PyTorch.
    A dilated window that sees padding alone gives -∞ and a meaningless index.
    """
    images = as_batch(input)
    windows = _windows_over(images, kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -torch.inf if images.is_floating_point() else torch.iinfo(images.dtype).min
    images = padded(images, windows.edges, lowest)
    largest = windows.maximum(images)[0] if is_traced(images) else _Maximum.apply(images, windows)
    output = batched_as(input, largest)
    return (output, batched_as(input, windows.maximum(images)[1])) if return_indices else output


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window.

    The sum is divided by `divisor_override`, or else by the number of values in the window, zeros of the padding
    included unless `count_include_pad` is false.
    """
    images = as_batch(input)
    windows = _windows_over(images, kernel_size, stride, padding, 1, ceil_mode)
    if not images.is_floating_point() and images.dtype != torch.int64:
        raise RuntimeError(f"input: cannot average {images.dtype}; use a floating-point dtype")
    if divisor_override == 0:
        raise RuntimeError("divisor_override=0: should not be 0")
    # Half precision is summed up in single precision, as PyTorch does.
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    divisor = divisor_override or windows.values_in_each(values, count_include_pad)
    values = padded(values, windows.edges)
    total = windows.reduced(values, torch.add) if is_traced(values) else _Sum.apply(values, windows)
    output = torch.div(total, divisor, rounding_mode=None if total.is_floating_point() else "trunc")
    return batched_as(input, output.to(images.dtype))


@dataclass(frozen=True)
class Windows:
    """Where the windows lie on a padded image (N, C, H, W), and what is computed from the values in them."""

    size: Pair  # of the image without padding
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    count: Pair
    edges: tuple[int, int, int, int]  # padding: left, top as asked for; right, bottom as the last window needs

    def taps(self, images: Tensor) -> Iterator[Tensor]:
        """For each position in a window: the values that all windows have there, (N, C, H', W'), as a view."""
        for i, j in positions(self.kernel_size):
            yield tap(images, (i * self.dilation[0], j * self.dilation[1]), self.count, self.stride)

    def reduced(self, images: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The values of each window combined: whole rows first, then the columns of the result."""
        (height, width), (down, right), (step_down, step_right) = self.kernel_size, self.dilation, self.stride
        count = (self.count[0], images.shape[-1])
        rows = reduce(operation, (tap(images, (i * down, 0), count, (step_down, 1)) for i in range(height)))
        result = reduce(operation, (tap(rows, (0, j * right), self.count, (1, step_right)) for j in range(width)))
        return result.clone() if self.kernel_size == (1, 1) else result  # never the images themselves

    def values_in_each(self, images: Tensor, include_padding: bool) -> int | Tensor:
        """How many values each window has: one number, or (H', W') if windows may differ."""
        if not any(self.edges):
            return self.kernel_size[0] * self.kernel_size[1]
        left, right, top, bottom = self.edges
        ones = images.new_ones(self.size)
        if include_padding:  # but not what a last window needs beyond the padding that was asked for
            ones = F.pad(ones, (left, left, top, top), value=1)
            left, right, top, bottom = 0, right - left, 0, bottom - top
        return self.reduced(F.pad(ones, (left, right, top, bottom)), torch.add)

    def numbers(self, images: Tensor) -> Tensor:
        """The pixels' numbers, row · W + column; -1 in the padding."""
        count = self.size[0] * self.size[1]
        return F.pad(torch.arange(count, device=images.device).view(self.size), self.edges, value=-1)

    def maximum(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and where in the image without padding it is: row · W + column.

        By the definition, value by value: to be read, for compilers and torch.func, and where `winners` is not enough.
        """
        largest = next(self.taps(images))
        places = torch.full_like(largest, -1, dtype=torch.int64)
        for values, number in zip(self.taps(images), self.taps(self.numbers(images)), strict=True):
            wins = (values > largest) | values.isnan() | (places < 0)  # padding loses even to an equal value
            largest, places = torch.where(wins, values, largest), torch.where(wins, number, places)
        return largest, places

    def winners(self, images: Tensor, largest: Tensor) -> Iterator[Tensor]:
        """For each tap 1 where it holds the window's largest value, else 0: the first of equal ones, the last NaN.

        As floating-point numbers: booleans are several times slower to make and to multiply with.
        """
        if any(self.edges) or largest.sum().isnan():  # padding never wins, and the last NaN does
            places = self.maximum(images)[1]
            yield from ((places == number).to(largest) for number in self.taps(self.numbers(images)))
            return
        free: Tensor | int = 1
        for values in self.taps(images):
            won = torch.eq(values, largest, out=torch.empty_like(largest)) * free
            free = free - won
            yield won


def _windows_over(
    images: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> Windows:
    """The windows of a pooling over (N, C, H, W), from the arguments of torch's functions."""
    kernel, spacing = pair("kernel_size", kernel_size, least=1), pair("dilation", dilation, least=1)
    steps = kernel if stride is None else pair("stride", stride, least=1)
    before = pair("padding", padding, least=0)
    if any(before[i] > kernel[i] // 2 for i in (0, 1)):
        raise RuntimeError(f"padding={padding}: should be at most half the kernel size, {kernel}")
    size, covered = (images.shape[2], images.shape[3]), span(kernel, spacing)
    height, width = window_count((size[0] + 2 * before[0], size[1] + 2 * before[1]), kernel, steps, spacing, ceil_mode)
    if ceil_mode:  # without the last windows if they would see padding alone
        height -= (height - 1) * steps[0] >= size[0] + before[0]
        width -= (width - 1) * steps[1] >= size[1] + before[1]
    bottom = max(0, (height - 1) * steps[0] + covered[0] - before[0] - size[0])
    right = max(0, (width - 1) * steps[1] + covered[1] - before[1] - size[1])
    return Windows(size, kernel, steps, spacing, (height, width), (before[1], right, before[0], bottom))


class _Sum(torch.autograd.Function):
    """The sum of each window's values."""

    @staticmethod
    def forward(images: Tensor, windows: Windows) -> Tensor:
        return windows.reduced(images, torch.add)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Windows], output: Tensor) -> None:
        images, ctx.windows = inputs
        ctx.layout = images.shape, images.stride()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        image = gradient.new_empty_strided(*ctx.layout).zero_()
        for place in ctx.windows.taps(image):
            place += gradient
        return image, None


class _Maximum(torch.autograd.Function):
    """The largest value of each window. Where it lies is found in the backward."""

    @staticmethod
    def forward(images: Tensor, windows: Windows) -> Tensor:
        return windows.reduced(images, torch.maximum)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Windows], output: Tensor) -> None:
        images, ctx.windows = inputs
        ctx.save_for_backward(images, output.clone())  # an activation in place may follow and change the output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        images, largest = (saved.detach() for saved in ctx.saved_tensors)
        image = torch.zeros_like(images)
        for place, won in zip(ctx.windows.taps(image), ctx.windows.winners(images, largest), strict=True):
            place += gradient * won
        return image, None
