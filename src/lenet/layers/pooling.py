"""Pooling: one value for each window, channel by channel: the largest, or the average.

Both are computed by taps (see taps.py): the values at one position of all windows at once, position by position. There
are no weights, so there is no matrix to unroll and no product to transform: this one way goes with every algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.geometry import Pair, Size, check_tensor, every_position, pair, span, tap


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window; every argument means what it means in torch.nn.functional.max_pool2d.

    The gradient goes to the first of equal values, NaN counts as the largest, padding never wins: all as in PyTorch.
    A dilated window that sees padding alone gives -∞ and an index that is none.

    Shapes: input (N, C, H, W) or (C, H, W); output (N, C, H', W') or (C, H', W'), where
    H' = (H + 2·padding - dilation·(kernel_size - 1) - 1) / stride + 1, rounded down, or up with `ceil_mode`.

    Args:
        stride: `kernel_size` by default.

    Returns:
        The output; with `return_indices` also where each value was found, as row · W + column.

    Raises:
        TypeError, RuntimeError: an argument that torch's function refuses too, named with its value.
    """
    images = _images("max_pool2d", input)
    windows = _windows(images, kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -torch.inf if images.is_floating_point() else torch.iinfo(images.dtype).min
    largest, winners = _Maximum.apply(F.pad(images, windows.padding, value=lowest), windows)
    output = _as_batched_as(input, largest)
    return (output, _as_batched_as(input, windows.indices(winners))) if return_indices else output


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window; every argument means what it means in torch.nn.functional.avg_pool2d.

    The sum is divided by `divisor_override`, or else by the number of values in the window, zeros of the padding
    included unless `count_include_pad` is false.

    Shapes: those of `max_pool2d`, without dilation.

    Raises:
        TypeError, RuntimeError: an argument that torch's function refuses too, named with its value.
        IndexError: the input has fewer than three dimensions (torch's choice).
    """
    images = _images("avg_pool2d", input)
    if divisor_override == 0:
        raise RuntimeError("divisor_override=0: should be another number than 0")
    windows = _windows(images, kernel_size, stride, padding, 1, ceil_mode)
    # Half precision is summed up in single precision, as PyTorch does.
    working = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    total = _LinearMap.apply(F.pad(working, windows.padding), windows.sums, windows.spread)
    divisor = divisor_override or windows.divisor(images, count_include_pad)
    average = total / divisor if images.is_floating_point() else total.div(divisor, rounding_mode="trunc")
    return _as_batched_as(input, average.to(images.dtype))


@dataclass(frozen=True)
class _Windows:
    """Where the windows lie on a padded image, in each direction, and what is done with the values in them."""

    size: Pair
    kernel_size: Pair
    stride: Pair
    before: Pair
    dilation: Pair
    count: Pair
    layout: tuple[int, ...]
    """The dimensions of the images in the order of their strides, the largest first."""

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom; at the end as much as the last window needs."""
        covered = span(self.kernel_size, self.dilation)
        after = ((self.count[i] - 1) * self.stride[i] + covered[i] - self.before[i] - self.size[i] for i in (0, 1))
        bottom, right = (max(0, values) for values in after)
        return self.before[1], right, self.before[0], bottom

    def taps(self, padded: Tensor) -> Iterator[Tensor]:
        """For each position in a window: the values that all windows have there, (N, C, H', W'), as a view."""
        for i, j in every_position(self.kernel_size):
            yield tap(padded, (i * self.dilation[0], j * self.dilation[1]), self.count, self.stride)

    def sums(self, padded: Tensor) -> Tensor:
        """The sum of each window's values."""
        first, *others = self.taps(padded)
        total = first.clone()
        for values in others:
            total += values
        return total

    def spread(self, sums: Tensor) -> Tensor:
        """The transpose: each window's number to all of its values."""
        return self._collect(sums, lambda _: sums)

    def largest(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and which of its values that was, counted row by row."""
        first, *others = self.taps(padded)
        largest = first.clone()
        winners = torch.zeros_like(largest, dtype=torch.uint8 if len(others) < 256 else torch.int32)
        # Padding loses even to an equal value of the image.
        seen, *inside = self.taps(F.pad(padded.new_ones(self.size, dtype=torch.bool), self.padding))
        padding_matters = any(self.padding)
        for number, values in enumerate(others, start=1):
            better = (values > largest) | (values != values)
            if padding_matters:
                better |= inside[number - 1] & ~seen
                seen = seen | inside[number - 1]
            largest = torch.where(better, values, largest)
            winners.masked_fill_(better, number)
        return largest, winners

    def select(self, padded: Tensor, winners: Tensor) -> Tensor:
        """Of each window the value with the given number."""
        first, *others = self.taps(padded)
        selected = first.clone()
        for number, values in enumerate(others, start=1):
            selected = torch.where(winners == number, values, selected)
        return selected

    def put_back(self, selected: Tensor, winners: Tensor) -> Tensor:
        """The transpose: each window's number to the winner alone."""
        return self._collect(selected, lambda number: selected * (winners == number))

    def indices(self, winners: Tensor) -> Tensor:
        """Where in the image without padding the winners are: row · W + column."""
        row, column = (
            torch.arange(self.count[i], device=winners.device) * self.stride[i] - self.before[i] for i in (0, 1)
        )
        i, j = winners.long() // self.kernel_size[1], winners.long() % self.kernel_size[1]
        return (row[:, None] + i * self.dilation[0]) * self.size[1] + column + j * self.dilation[1]

    def divisor(self, images: Tensor, count_include_pad: bool) -> int | Tensor:
        """How many values each window averages: one number, or (H', W') if they differ."""
        counts = []
        for i in (0, 1):
            low, high = (-self.before[i], self.size[i] + self.before[i]) if count_include_pad else (0, self.size[i])
            starts = [k * self.stride[i] - self.before[i] for k in range(self.count[i])]
            counts.append([min(k + self.kernel_size[i], high) - max(k, low) for k in starts])
        rows, columns = counts
        if len(set(rows)) == len(set(columns)) == 1:
            return rows[0] * columns[0]
        return torch.tensor(rows, device=images.device)[:, None] * torch.tensor(columns, device=images.device)

    def _collect(self, outputs: Tensor, values: Callable[[int], Tensor]) -> Tensor:
        """A padded image of zeros to whose taps the values are added."""
        left, right, top, bottom = self.padding
        size = (*outputs.shape[:2], top + self.size[0] + bottom, left + self.size[1] + right)
        # In the images' own layout: what comes next in the backward pass reads it beside values that lie so.
        image = outputs.new_zeros([size[dimension] for dimension in self.layout])
        image = image.permute([self.layout.index(dimension) for dimension in range(4)])
        covered = span(self.kernel_size, self.dilation)
        overlap = any(covered[i] > self.stride[i] for i in (0, 1))
        for number, part in enumerate(self.taps(image)):
            if overlap:
                part += values(number)
            else:
                part.copy_(values(number))
        return image


def _images(function: str, input: Tensor) -> Tensor:
    """The input as a batch; refused is what PyTorch refuses."""
    check_tensor(f"{function}: input", input)
    average = function == "avg_pool2d"
    if input.dim() not in (3, 4):
        error = IndexError if average and input.dim() < 3 else RuntimeError
        raise error(f"{function}: input should be (N, C, H, W) or (C, H, W), got shape {list(input.shape)}")
    images = input if input.dim() == 4 else input[None]
    if 0 in images.shape[1:]:
        raise RuntimeError(f"{function}: input should have channels and pixels, got shape {list(input.shape)}")
    if average and not input.is_floating_point() and input.dtype != torch.int64:
        raise NotImplementedError(f"avg_pool2d: input is of dtype {input.dtype}; use a floating-point one")
    return images


def _as_batched_as(input: Tensor, output: Tensor) -> Tensor:
    """The output of a batch, or of its one image if the input was none."""
    return output if input.dim() == 4 else output[0]


def _windows(
    images: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> _Windows:
    size = (images.shape[2], images.shape[3])
    kernel = pair("kernel_size", kernel_size, least=1)
    # An empty sequence is how TorchScript spells None.
    step = kernel if stride is None or stride in ((), []) else pair("stride", stride, least=1)
    before = pair("padding", padding, least=0)
    spacing = pair("dilation", dilation, least=1)
    covered = span(kernel, spacing)
    counts = []
    for i in (0, 1):
        if before[i] > kernel[i] // 2:
            raise RuntimeError(
                f"padding={padding}: should be at most half the kernel size, got {before[i]} with {kernel[i]}"
            )
        count = (size[i] + 2 * before[i] - covered[i] + (step[i] - 1 if ceil_mode else 0)) // step[i] + 1
        if ceil_mode and (count - 1) * step[i] >= size[i] + before[i]:
            count -= 1  # that window would see padding alone
        if count < 1:
            raise RuntimeError(
                f"kernel_size={kernel_size}: should fit into the padded input; a window covers {covered[i]} values,"
                f" the input has {size[i] + 2 * before[i]}"
            )
        counts.append(count)
    layout = tuple(sorted(range(4), key=images.stride, reverse=True))
    return _Windows(size, kernel, step, before, spacing, (counts[0], counts[1]), layout)


class _LinearMap(torch.autograd.Function):
    """A linear function and its transpose: the derivative of each is the other."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, function: Callable, transpose: Callable) -> Tensor:  # type: ignore[type-arg]
        ctx.functions = (transpose, function)
        return function(values)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _LinearMap.apply(gradient, *ctx.functions), None, None


class _Maximum(torch.autograd.Function):
    """The largest value of each window; once the winners are known, it is a linear function."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, windows: _Windows) -> tuple[Tensor, Tensor]:
        largest, winners = windows.largest(padded)
        ctx.mark_non_differentiable(winners)
        ctx.save_for_backward(winners)
        ctx.windows = windows
        return largest, winners

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (winners,) = ctx.saved_tensors
        put_back = partial(ctx.windows.put_back, winners=winners)
        select = partial(ctx.windows.select, winners=winners)
        return _LinearMap.apply(gradient, put_back, select), None
