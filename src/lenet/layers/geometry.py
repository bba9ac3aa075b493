"""Where windows lie: sizes, padding and strided slices that all algorithms share.

A window of a kernel (k_h, k_w) with dilation d covers d·(k - 1) + 1 pixels in each direction. The next window starts
`stride` pixels further. Numbers and shapes that do not fit raise a RuntimeError.
"""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]  # height, width
Size = int | Sequence[int]  # one number for both directions, or one for each


def pair(name: str, value: Size | str, least: int) -> Pair:
    """An argument as (height, width), if it is one or two integers of at least `least`."""
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) not in (1, 2) or not all(isinstance(item, Integral) and int(item) >= least for item in values):
        raise RuntimeError(f"{name}={value!r}: should be an integer of at least {least}, or a pair of such")
    return int(values[0]), int(values[-1])


def span(kernel_size: Pair, dilation: Pair) -> Pair:
    """How many pixels a window covers in each direction, with those that it skips."""
    return dilation[0] * (kernel_size[0] - 1) + 1, dilation[1] * (kernel_size[1] - 1) + 1


def window_count(size: Sequence[int], kernel_size: Pair, stride: Pair, dilation: Pair, ceil_mode: bool = False) -> Pair:
    """How many windows fit into an image whose last two sizes are given: the output's height and width.

    With `ceil_mode` the last window may reach over the edge.
    """
    covered = span(kernel_size, dilation)
    steps = [size[i - 2] - covered[i] + (stride[i] - 1 if ceil_mode else 0) for i in (0, 1)]
    if min(steps) < 0:
        raise RuntimeError(
            f"the kernel covers {covered[0]}×{covered[1]} pixels, more than the padded image's {size[-2]}×{size[-1]};"
            " use a smaller kernel or more padding"
        )
    return steps[0] // stride[0] + 1, steps[1] // stride[1] + 1


def transposed_size(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Pair:
    """Height and width of the smallest image whose convolution has the size of `input`."""
    covered = span((weight.shape[2], weight.shape[3]), dilation)
    return (input.shape[-2] - 1) * stride[0] + covered[0], (input.shape[-1] - 1) * stride[1] + covered[1]


def positions(size: Pair) -> Iterator[Pair]:
    """Each (row, column) of a window or an image of this size, row by row."""
    return ((row, column) for row in range(size[0]) for column in range(size[1]))


def tap(values: Tensor, offset: Pair, count: Pair, stride: Pair) -> Tensor:
    """The pixel at `offset` in each window of (..., H, W): a view (..., *count)."""
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


def is_traced(*values: Tensor) -> bool:
    """Whether a compiler, an exporter or a transformation of torch.func has to see each operation on these tensors."""
    return torch.compiler.is_compiling() or any(torch.func.debug_unwrap(each) is not each for each in values)


def padding_at_edges(padding: Size | str, kernel_size: Pair, stride: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """The argument `padding` of a convolution, numbers or "valid" or "same", as (left, right, top, bottom)."""
    if padding == "same":
        if stride != (1, 1):
            raise RuntimeError(f"padding='same': needs stride=1, got stride={stride}")
        rows, columns = (covered - 1 for covered in span(kernel_size, dilation))
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
    height, width = pair("padding", 0 if padding == "valid" else padding, least=0)
    return width, width, height, height


def padded(images: Tensor, edges: tuple[int, int, int, int], value: float = 0) -> Tensor:
    """The images with (left, right, top, bottom) more pixels; the same tensor if there are none to add."""
    return F.pad(images, edges, value=value) if any(edges) else images


def as_batch(input: Tensor) -> Tensor:
    """(N, C, H, W) as it is; (C, H, W) as a batch of one image."""
    if input.dim() not in (3, 4) or 0 in input.shape[-2:]:
        raise RuntimeError(f"input: should be (N, C, H, W) or (C, H, W) with pixels, got shape {list(input.shape)}")
    return input if input.dim() == 4 else input[None]


def batched_as(input: Tensor, output: Tensor) -> Tensor:
    """The output of a batch; of its one image if the input was (C, H, W)."""
    return output if input.dim() == 4 else output[0]
