"""Pooling: one value for each window, channel by channel: the largest, or the average.

Both are computed by taps (see taps.py): the values at one position of all windows at once, position by position. There
are no weights, so there is no matrix to unroll and no product to transform: this one way goes with every algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.geometry import Pair, Size, check_tensor, every_position, padded, pair, span, tap


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
    images = padded(images, windows.padding, lowest)
    largest = _Maximum.apply(images, windows)
    output = _as_batched_as(input, largest)
    return (output, _as_batched_as(input, windows.indices(images, largest))) if return_indices else output


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
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    divisor = divisor_override or windows.divisor(images, count_include_pad)
    average = partial(windows.average, divisor=divisor), partial(windows.average_transposed, divisor=divisor)
    output = _LinearMap.apply(padded(values, windows.padding), *average)
    return _as_batched_as(input, output.to(images.dtype))


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

    def taps(self, images: Tensor) -> Iterator[Tensor]:
        """For each position in a window: the values that all windows have there, (N, C, H', W'), as a view."""
        for i, j in every_position(self.kernel_size):
            yield tap(images, (i * self.dilation[0], j * self.dilation[1]), self.count, self.stride)

    def average(self, images: Tensor, divisor: int | Tensor) -> Tensor:
        """The sum of each window's values, divided."""
        taps = list(self.taps(images))
        total = taps[0].clone() if len(taps) == 1 else taps[0] + taps[1]
        for values in taps[2:]:
            total += values
        return total.div_(divisor, rounding_mode=None if total.is_floating_point() else "trunc")

    def average_transposed(self, outputs: Tensor, divisor: int | Tensor) -> Tensor:
        """Each window's number, divided, to all of its values."""
        shares = self._laid_out(outputs) / divisor
        image = self._zeros(outputs)
        for values in self.taps(image):
            if self._overlap:
                values += shares
            else:
                values.copy_(shares)
        return image

    def largest(self, images: Tensor) -> Tensor:
        """The largest value of each window; NaN if there is one."""
        taps = list(self.taps(images))
        largest = taps[0].clone() if len(taps) == 1 else torch.maximum(taps[0], taps[1])
        for values in taps[2:]:
            torch.maximum(largest, values, out=largest)
        return largest

    def winners(self, images: Tensor, largest: Tensor) -> Iterator[Tensor]:
        """For each tap in which windows it holds the largest value: the first of equal ones, the last NaN."""
        matches = (values == largest for values in self.taps(images))
        if any(self.padding):  # which loses even to an equal value of the image
            inside = F.pad(images.new_ones(self.size, dtype=torch.bool), self.padding)
            matches = (match & seen for match, seen in zip(matches, self.taps(inside), strict=True))
        first = _first_of(matches)
        if not largest.isnan().any():
            return first
        last = list(_first_of(values.isnan() for values in reversed(list(self.taps(images)))))
        return (match | nan for match, nan in zip(first, reversed(last), strict=True))

    def select(self, values: Tensor, images: Tensor, largest: Tensor) -> Tensor:
        """Of each window the value that lies where the image's largest does: the derivative of `largest`."""
        selected = torch.zeros_like(largest)
        for tapped, won in zip(self.taps(values), self.winners(images, largest), strict=True):
            selected = torch.where(won, tapped, selected)
        return selected

    def select_transposed(self, selected: Tensor, images: Tensor, largest: Tensor) -> Tensor:
        """Each window's number to where the image's largest value lies."""
        selected, nothing = self._laid_out(selected), selected.new_zeros(())
        image = self._zeros(selected)
        for values, won in zip(self.taps(image), self.winners(images, largest), strict=True):
            if self._overlap:
                values += torch.where(won, selected, nothing)
            else:
                torch.where(won, selected, nothing, out=values)
        return image

    def indices(self, images: Tensor, largest: Tensor) -> Tensor:
        """Where in the image without padding the largest values are: row · W + column."""
        number = torch.zeros_like(largest, dtype=torch.int64)
        for position, won in enumerate(self.winners(images, largest)):
            number.masked_fill_(won, position)
        row, column = (
            torch.arange(self.count[i], device=number.device) * self.stride[i] - self.before[i] for i in (0, 1)
        )
        i, j = number // self.kernel_size[1], number % self.kernel_size[1]
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

    @property
    def _overlap(self) -> bool:
        covered = span(self.kernel_size, self.dilation)
        return any(covered[i] > self.stride[i] for i in (0, 1))

    def _laid_out(self, values: Tensor) -> Tensor:
        """The values in the images' own layout: a copy unless they lay so already."""
        return values.permute(self.layout).contiguous().permute(self._standard_order)

    def _zeros(self, outputs: Tensor) -> Tensor:
        """A padded image of zeros, in the images' own layout: what comes next reads it beside values that lie so."""
        left, right, top, bottom = self.padding
        size = (*outputs.shape[:2], top + self.size[0] + bottom, left + self.size[1] + right)
        return outputs.new_zeros([size[dimension] for dimension in self.layout]).permute(self._standard_order)

    @property
    def _standard_order(self) -> list[int]:
        """Where each of N, C, H and W is in the layout."""
        return [self.layout.index(dimension) for dimension in range(4)]


def _first_of(matches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Of the matches in each window the first alone."""
    free: Tensor | None = None
    for match in matches:
        alone = match if free is None else match & free
        free = ~match if free is None else free ^ alone
        yield alone


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
    """The largest value of each window. Where it lies is found in the backward, and is then a linear function."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, windows: _Windows) -> Tensor:
        largest = windows.largest(images)
        ctx.save_for_backward(images, largest)
        ctx.windows = windows
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, largest = (saved.detach() for saved in ctx.saved_tensors)
        transposed = partial(ctx.windows.select_transposed, images=images, largest=largest)
        select = partial(ctx.windows.select, images=images, largest=largest)
        return _LinearMap.apply(gradient, transposed, select), None
