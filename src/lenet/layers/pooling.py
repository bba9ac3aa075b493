"""Pooling: one value for each window, channel by channel: the largest, or the average.

Both are computed by taps (see taps.py): the values at one position of all windows at once, position by position. There
are no weights, so there is no matrix to unroll and no product to transform: this one way goes with every algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lenet.layers.geometry import Size, check_tensor, padded
from lenet.layers.pooling_windows import Windows, windows_over


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
        NotImplementedError: complex numbers, or another type of number that the function cannot be of.
    """
    images = _images("max_pool2d", input)
    windows = windows_over(images, kernel_size, stride, padding, dilation, ceil_mode)
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
        NotImplementedError: complex numbers, or another type of number that the function cannot be of.
        IndexError: the input has fewer than three dimensions (torch's choice).
    """
    images = _images("avg_pool2d", input)
    if divisor_override is not None and not isinstance(divisor_override, int):
        raise TypeError(f"divisor_override={divisor_override!r}: should be an integer")
    if divisor_override == 0:
        raise RuntimeError("divisor_override=0: should be another number than 0")
    windows = windows_over(images, kernel_size, stride, padding, 1, ceil_mode)
    # Half precision is summed up in single precision, as PyTorch does.
    values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    divisor = divisor_override or windows.divisor(images, count_include_pad)
    average = partial(windows.average, divisor=divisor), partial(windows.average_transposed, divisor=divisor)
    output = _LinearMap.apply(padded(values, windows.padding), *average)
    return _as_batched_as(input, output.to(images.dtype))


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
    def forward(ctx: Any, images: Tensor, windows: Windows) -> Tensor:
        largest = windows.largest(images)
        # A copy: an activation that works in place may follow and change what is returned here.
        ctx.save_for_backward(images, largest.clone())
        ctx.windows = windows
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, largest = (saved.detach() for saved in ctx.saved_tensors)
        transposed = partial(ctx.windows.select_transposed, images=images, largest=largest)
        select = partial(ctx.windows.select, images=images, largest=largest)
        return _LinearMap.apply(gradient, transposed, select), None
