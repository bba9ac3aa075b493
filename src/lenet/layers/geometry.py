"""Where windows lie: sizes, padding and strided slices that all algorithms share, and what is refused.

A window of a kernel (k_h, k_w) with dilation d covers d * (k - 1) + 1 values in each direction; from one window to the
next it is `stride` values. Refused is what torch.nn.functional refuses, with the same type of exception: TypeError for
what is no number, RuntimeError for a number that cannot be. Complex images, which torch convolves, are refused as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
"""Of the height and the width."""

Size = int | Sequence[int]
"""One number for both directions, or one for each."""


def pair(name: str, value: Size, least: int) -> Pair:
    """The argument as (height, width), each at least `least`.

    Raises:
        TypeError: it is neither an integer nor a sequence of integers.
        RuntimeError: it is a sequence of another length than one or two, or a number is less than `least`.
    """
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not all(isinstance(item, Integral) and not isinstance(item, bool) for item in values):
        raise TypeError(f"{name}={value!r}: should be an integer or a pair of integers")
    if len(values) not in (1, 2):
        raise RuntimeError(f"{name}={value!r}: should be one integer or two, got {len(values)}")
    height, width = int(values[0]), int(values[-1])
    if min(height, width) < least:
        raise RuntimeError(f"{name}={value!r}: should be at least {least}, got {min(height, width)}")
    return height, width


def span(kernel_size: Pair, dilation: Pair) -> Pair:
    """How many values a window covers in each direction, those that it skips included."""
    return dilation[0] * (kernel_size[0] - 1) + 1, dilation[1] * (kernel_size[1] - 1) + 1


def window_count(size: Sequence[int], kernel_size: Pair, stride: Pair, dilation: Pair) -> Pair:
    """How many windows fit into an image whose last two sizes are given: the output's height and width."""
    covered = span(kernel_size, dilation)
    return (size[-2] - covered[0]) // stride[0] + 1, (size[-1] - covered[1]) // stride[1] + 1


def transposed_size(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Pair:
    """Height and width of the image whose convolution has the size of `input`, with nothing left over at its edges."""
    covered = span((weight.shape[2], weight.shape[3]), dilation)
    return (input.shape[2] - 1) * stride[0] + covered[0], (input.shape[3] - 1) * stride[1] + covered[1]


def every_position(size: Pair) -> Iterator[Pair]:
    """Each (row, column) of a window or an image of this size, row by row."""
    return ((row, column) for row in range(size[0]) for column in range(size[1]))


def tap(values: Tensor, offset: Pair, count: Pair, stride: Pair) -> Tensor:
    """Of each window of (..., H, W) the one value that lies at `offset` from its corner: a view (..., *count)."""
    rows, columns = (slice(offset[i], offset[i] + stride[i] * (count[i] - 1) + 1, stride[i]) for i in (0, 1))
    return values[..., rows, columns]


def spread(values: Tensor, step: Pair) -> Tensor:
    """(N, C, H, W) with its values `step` apart, zeros between them."""
    if step == (1, 1):
        return values
    count = (values.shape[2], values.shape[3])
    apart = values.new_zeros(*values.shape[:2], *span(count, step))
    tap(apart, (0, 0), count, step).copy_(values)
    return apart


def padding_at_edges(padding: Size | str, kernel_size: Pair, stride: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """The argument as (left, right, top, bottom).

    Raises:
        TypeError, RuntimeError: no padding that torch's functions know, or "same" with a stride.
    """
    if padding == "same":
        if stride != (1, 1):
            raise RuntimeError(f"padding='same': needs stride=1, got stride={stride}")
        rows, columns = (covered - 1 for covered in span(kernel_size, dilation))
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
    if isinstance(padding, str) and padding != "valid":
        raise RuntimeError(f"padding={padding!r}: should be numbers, 'same' or 'valid'")
    height, width = (0, 0) if isinstance(padding, str) else pair("padding", padding, least=0)
    return width, width, height, height


def padded(images: Tensor, edges: tuple[int, int, int, int], value: float = 0) -> Tensor:
    """The images with (left, right, top, bottom) more values; themselves, not a copy, if that is nothing."""
    return F.pad(images, edges, value=value) if any(edges) else images


def check_tensor(name: str, value: object) -> Tensor:
    """The argument, if it is a tensor of numbers that can be summed up.

    Raises:
        TypeError: it is no tensor.
        NotImplementedError: it holds booleans or complex numbers.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} should be a tensor, got {type(value).__name__}")
    if value.dtype == torch.bool or value.is_complex():
        raise NotImplementedError(f"{name} is of dtype {value.dtype}; use a real one, such as float32")
    return value
