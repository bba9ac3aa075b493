"""The windows of a pooling: where they lie, and what becomes of the values in them.

Everything is done by taps: with the values at one position of all windows at once. Averaging is a linear function,
and so is taking the values where others are largest; their transposes, which differentiate them, stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.geometry import Pair, Size, every_position, pair, span, tap


@dataclass(frozen=True)
class Windows:
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
        total = self._reduced(images, torch.add)
        return total.div_(divisor, rounding_mode=None if total.is_floating_point() else "trunc")

    def average_transposed(self, outputs: Tensor, divisor: int | Tensor) -> Tensor:
        """Each window's number, divided, to all of its values."""
        shares = self._laid_out(outputs) / divisor
        columns = self._zeros(shares, (self.count[0], self._padded_size[1]))
        _add(shares, self._taps_along(columns, 1), self._overlap)
        image = self._zeros(shares, self._padded_size)
        _add(columns, self._taps_along(image, 0), self._overlap)
        return image

    def largest(self, images: Tensor) -> Tensor:
        """The largest value of each window; NaN if there is one."""
        return self._reduced(images, torch.maximum)

    def _reduced(self, images: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The values of each window put together, those in one column first: there whole rows lie close in memory."""
        columns = reduce(operation, self._taps_along(images, 0))
        reduced = reduce(operation, self._taps_along(columns, 1))
        return reduced.clone() if self.kernel_size == (1, 1) else reduced  # never the images themselves

    def _taps_along(self, values: Tensor, direction: int) -> list[Tensor]:
        """As `taps`, but along the height (0) or the width (1) alone."""
        step, count = self.stride[direction], self.count[direction]
        starts = (position * self.dilation[direction] for position in range(self.kernel_size[direction]))
        slices = (slice(start, start + step * (count - 1) + 1, step) for start in starts)
        return [values[..., part, :] if direction == 0 else values[..., part] for part in slices]

    def winners(self, images: Tensor, largest: Tensor) -> Iterator[Tensor]:
        """For each tap 1 where it holds the window's largest value, else 0: the first of equal ones, the last NaN.

        As numbers, not as truth values: those are several times slower to make and to multiply with.
        """
        matches = (torch.eq(values, largest, out=torch.empty_like(largest)) for values in self.taps(images))
        if any(self.padding):  # which loses even to an equal value of the image
            inside = F.pad(images.new_ones(self.size), self.padding)
            matches = (match * seen for match, seen in zip(matches, self.taps(inside), strict=True))
        first = _first_of(matches)
        if not largest.sum().isnan():
            return first
        last = list(_first_of(values.isnan().to(largest) for values in reversed(list(self.taps(images)))))
        return (match + nan for match, nan in zip(first, reversed(last), strict=True))

    def select(self, values: Tensor, images: Tensor, largest: Tensor) -> Tensor:
        """Of each window the value that lies where the image's largest does: the derivative of `largest`."""
        winners = self.winners(images, largest)
        return sum(
            (tapped * won for tapped, won in zip(self.taps(values), winners, strict=True)),
            start=torch.zeros_like(largest),
        )

    def select_transposed(self, selected: Tensor, images: Tensor, largest: Tensor) -> Tensor:
        """Each window's number to where the image's largest value lies."""
        selected = self._laid_out(selected)
        image = self._zeros(selected, self._padded_size)
        finite = bool(selected.sum().isfinite())
        for values, won in zip(self.taps(image), self.winners(images, largest), strict=True):
            if not finite:  # an infinite number times 0 would not be 0
                values += torch.where(won > 0, selected, 0)
            elif self._overlap:
                values.addcmul_(selected, won)
            else:
                torch.mul(selected, won, out=values)
        return image

    def indices(self, images: Tensor, largest: Tensor) -> Tensor:
        """Where in the image without padding the largest values are: row · W + column."""
        number = torch.zeros_like(largest, dtype=torch.int64)
        for position, won in enumerate(self.winners(images, largest)):
            number.masked_fill_(won > 0, position)
        row, column = (
            torch.arange(self.count[i], device=number.device) * self.stride[i] - self.before[i] for i in (0, 1)
        )
        i, j = number // self.kernel_size[1], number % self.kernel_size[1]
        return (row[:, None] + i * self.dilation[0]) * self.size[1] + column + j * self.dilation[1]

    def divisor(self, images: Tensor, count_include_pad: bool) -> int | Tensor:
        """How many values each window averages: one number, or (H', W') if they differ."""
        if not any(self.padding):
            return self.kernel_size[0] * self.kernel_size[1]
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

    def _zeros(self, values: Tensor, size: Pair) -> Tensor:
        """Zeros of another height and width, in the images' own layout: what comes next reads them beside such."""
        shape = (*values.shape[:2], *size)
        return values.new_zeros([shape[dimension] for dimension in self.layout]).permute(self._standard_order)

    @property
    def _padded_size(self) -> Pair:
        left, right, top, bottom = self.padding
        return top + self.size[0] + bottom, left + self.size[1] + right

    @property
    def _standard_order(self) -> list[int]:
        """Where each of N, C, H and W is in the layout."""
        return [self.layout.index(dimension) for dimension in range(4)]


def _add(values: Tensor, places: Iterable[Tensor], overlap: bool) -> None:
    """Add the values to each of the places, which are zeros still, or hold what an overlapping place was given."""
    for place in places:
        if overlap:
            place += values
        else:
            place.copy_(values)


def _first_of(matches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Of the ones in each window the first alone."""
    free: Tensor | int = 1
    for match in matches:
        alone = match * free
        free = free - alone
        yield alone


def windows_over(
    images: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> Windows:
    """The windows of a pooling over images (N, C, H, W), from the arguments of torch's functions.

    Raises:
        TypeError, RuntimeError: an argument that those refuse too, named with its value.
    """
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
    return Windows(size, kernel, step, before, spacing, (counts[0], counts[1]), layout)
