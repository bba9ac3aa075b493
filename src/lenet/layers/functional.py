"""Convolution and pooling as functions, with the signatures and the meaning of torch.nn.functional's.

    conv2d(images, weight, padding=2, algorithm="fft")

Here the arguments are checked and brought into one form; what computes is an algorithm's own file: loops.py, taps.py,
im2col.py, kernel_matrix.py or fft.py. They know neither padding nor groups nor bias: padding is a larger image, groups
are convolutions side by side, and a bias is added at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor

from lenet.layers import fft, im2col, kernel_matrix, loops, taps
from lenet.layers.geometry import Pair, Size, check_tensor, padded, padding_at_edges, pair, span, transposed_size
from lenet.layers.plane import convolution, cross_correlation, pool2d
from lenet.layers.pooling import avg_pool2d, max_pool2d

__all__ = [
    "ALGORITHMS",
    "avg_pool2d",
    "conv2d",
    "conv_transpose2d",
    "convolution",
    "cross_correlation",
    "max_pool2d",
    "pool2d",
    "unfold",
]

ALGORITHMS: dict[str, ModuleType] = {
    "loops": loops,
    "taps": taps,
    "im2col": im2col,
    "kernel_matrix": kernel_matrix,
    "fft": fft,
}
"""Each has `conv2d` and `conv_transpose2d` of (input, weight, stride, dilation)."""


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    algorithm: str = "im2col",
) -> Tensor:
    """Cross-correlation of images with kernels; every argument means what it means in torch.nn.functional.conv2d.

    Shapes: input (N, C, H, W) or (C, H, W), weight (O, C / groups, k_h, k_w), bias (O); output (N, O, H', W') or
    (O, H', W'), where H' = floor((H + 2·padding - dilation·(k_h - 1) - 1) / stride) + 1.

    Args:
        padding: zeros at each edge; "valid" for none, "same" for as many as keep the size (stride 1 only).
        algorithm: one of `ALGORITHMS`.

    Raises:
        ValueError: an unknown algorithm.
        TypeError, RuntimeError: an argument that torch's function refuses too, named with its value.
        NotImplementedError: complex numbers, or another type of number that the function cannot be of.
    """
    module = algorithm_named(algorithm)
    input, weight, bias = _checked_tensors("conv2d", input, weight, bias)
    steps, spacing = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    kernel_size = (weight.shape[2], weight.shape[3])
    _check_channels("conv2d", input, weight, bias, groups, transposed=False)
    images = input if input.dim() == 4 else input[None]
    images = padded(images, padding_at_edges(padding, kernel_size, steps, spacing))
    _check_fits("conv2d", images, kernel_size, spacing)
    output = _side_by_side(module, module.conv2d, images, weight, groups, steps, spacing)
    return _finished(output, bias, input, weight)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    algorithm: str = "im2col",
) -> Tensor:
    """The transpose of `conv2d` as a linear map; every argument means what it means in torch's conv_transpose2d.

    Shapes: input (N, C, H, W) or (C, H, W), weight (C, O / groups, k_h, k_w), bias (O); output (N, O, H', W') or
    (O, H', W'), where H' = (H - 1)·stride - 2·padding + dilation·(k_h - 1) + output_padding + 1.

    Args:
        padding: that of the convolution which this reverses: so much is cut off at each edge.
        output_padding: rows and columns more at the end, as a stride larger than 1 leaves the size open.
        algorithm: one of `ALGORITHMS`.

    Raises:
        ValueError: an unknown algorithm.
        TypeError, RuntimeError: an argument that torch's function refuses too, named with its value.
        NotImplementedError: complex numbers, or another type of number that the function cannot be of.
    """
    module = algorithm_named(algorithm)
    input, weight, bias = _checked_tensors("conv_transpose2d", input, weight, bias)
    steps, spacing = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    cut, extra = pair("padding", padding, least=0), pair("output_padding", output_padding, least=0)
    _check_channels("conv_transpose2d", input, weight, bias, groups, transposed=True)
    for i in (0, 1):
        if extra[i] >= max(steps[i], spacing[i]):
            raise RuntimeError(
                f"output_padding={output_padding}: should be less than stride={stride} or dilation={dilation}"
            )
    images = input if input.dim() == 4 else input[None]
    full = transposed_size(images, weight, steps, spacing)
    height, width = (full[i] - 2 * cut[i] + extra[i] for i in (0, 1))
    if height < 1 or width < 1:
        raise RuntimeError(
            f"padding={padding}: leaves nothing of the output, {height}×{width} of {full[0]}×{full[1]}; use less"
        )
    crop = (-cut[1], extra[1] - cut[1], -cut[0], extra[0] - cut[0])
    output = _side_by_side(module, module.conv_transpose2d, images, weight, groups, steps, spacing)
    return _finished(padded(output, crop), bias, input, weight)


def unfold(input: Tensor, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1) -> Tensor:
    """Every window as a column; every argument means what it means in torch.nn.functional.unfold.

    Shapes: input (N, C, H, W) or (C, H, W); output (N, C·k_h·k_w, H'·W') or (C·k_h·k_w, H'·W').

    Raises:
        TypeError, RuntimeError: an argument that torch's function refuses too, named with its value.
        NotImplementedError: complex numbers, or another type of number that the function cannot be of.
        IndexError: the input has fewer than three dimensions (torch's choice).
    """
    if not check_tensor("unfold: input", input).is_floating_point():
        raise NotImplementedError(f"unfold: input is of dtype {input.dtype}; use a floating-point one")
    if input.dim() not in (3, 4) or 0 in input.shape[-3:]:
        error = IndexError if input.dim() < 3 else RuntimeError
        raise error(f"unfold: input should be (N, C, H, W) or (C, H, W), not empty, got shape {list(input.shape)}")
    sizes = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding, "stride": stride}
    for name, size in sizes.items():
        if not isinstance(size, int) and len(size) == 1:
            raise RuntimeError(f"{name}={size!r}: should be an integer or a pair of integers, got one in a sequence")
    kernel, spacing, steps = (pair(name, sizes[name], least=1) for name in ("kernel_size", "dilation", "stride"))
    zeros = pair("padding", padding, least=0)
    images = padded(input if input.dim() == 4 else input[None], (zeros[1], zeros[1], zeros[0], zeros[0]))
    _check_fits("unfold", images, kernel, spacing)
    columns = im2col.unrolled(images, kernel, steps, spacing)
    return columns if input.dim() == 4 else columns[0]


def algorithm_named(name: str) -> ModuleType:
    """The module of an algorithm.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm={name!r}: should be one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def _checked_tensors(
    function: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors, if they go together; under autocast, in its dtype."""
    named = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in named.items():
        check_tensor(f"{function}: {name}", value)
    if _has_autocast(input) and torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        casts = {name for name, value in named.items() if value.is_floating_point() and value.dtype != torch.float64}
        named = {name: value.to(dtype) if name in casts else value for name, value in named.items()}
    for name, value in named.items():
        for what in ("dtype", "device"):
            expected, got = getattr(named["input"], what), getattr(value, what)
            if expected != got:
                raise RuntimeError(f"{function}: {name} should have the {what} of the input, {expected}, got {got}")
    if weight.dim() != 4:
        raise RuntimeError(f"{function}: weight should have 4 dimensions, got {weight.dim()}: {list(weight.shape)}")
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"{function}: input should have 4 dimensions (N, C, H, W), or 3 without a batch, got {input.dim()}:"
            f" {list(input.shape)}"
        )
    if 0 in input.shape[-2:] or 0 in weight.shape[-2:]:
        empty = "input" if 0 in input.shape[-2:] else "weight"
        raise RuntimeError(f"{function}: {empty} should have at least 1×1 pixels, got {list(named[empty].shape)}")
    return named["input"], named["weight"], named.get("bias")


def _check_channels(
    function: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> None:
    """Channels of input, weight and bias, and groups, fit together."""
    if not isinstance(groups, int):
        raise TypeError(f"groups={groups!r}: should be an integer")
    if groups < 1:
        raise RuntimeError(f"groups={groups}: should be at least 1")
    if 0 in (len(weight), weight.shape[1] if transposed else 1):
        raise RuntimeError(f"{function}: weight should have at least one output channel, got {list(weight.shape)}")
    if len(weight) % groups:
        raise RuntimeError(
            f"groups={groups}: should divide the weight's first dimension, got {len(weight)} of {list(weight.shape)}"
        )
    in_channels, out_channels = weight.shape[1] * groups, len(weight)
    if transposed:
        in_channels, out_channels = len(weight), weight.shape[1] * groups
    if input.shape[-3] != in_channels:
        raise RuntimeError(
            f"{function}: input should have {in_channels} channels for a weight of shape {list(weight.shape)} with"
            f" groups={groups}, got {input.shape[-3]}: {list(input.shape)}"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise RuntimeError(f"{function}: bias should have shape [{out_channels}], got {list(bias.shape)}")


def _check_fits(function: str, images: Tensor, kernel_size: Pair, dilation: Pair) -> None:
    covered = span(kernel_size, dilation)
    if covered[0] > images.shape[2] or covered[1] > images.shape[3]:
        raise RuntimeError(
            f"{function}: the kernel covers {covered[0]}×{covered[1]} pixels, more than the padded input's"
            f" {images.shape[2]}×{images.shape[3]}; use a smaller kernel or more padding"
        )


def _side_by_side(
    module: ModuleType,
    function: Callable[[Tensor, Tensor, Pair, Pair], Tensor],
    images: Tensor,
    weight: Tensor,
    groups: int,
    stride: Pair,
    dilation: Pair,
) -> Tensor:
    """Let an algorithm compute each group; the result is in working precision."""
    # Half precision is summed up in single precision, as PyTorch does. A Fourier transform knows no integers; as
    # float64 they are exact up to 2^53.
    if images.dtype in (torch.bfloat16, torch.float16):
        images, weight = images.float(), weight.float()
    elif module is fft and not images.is_floating_point():
        images, weight = images.double(), weight.double()
    with torch.autocast(images.device.type, enabled=False) if _has_autocast(images) else nullcontext():
        if groups == 1:
            return function(images, weight, stride, dilation)
        parts = zip(images.chunk(groups, dim=1), weight.chunk(groups), strict=True)
        return torch.cat([function(part, kernels, stride, dilation) for part, kernels in parts], dim=1)


def _has_autocast(values: Tensor) -> bool:
    """Whether the tensor's device has autocast at all; the meta device has not."""
    return torch.amp.is_autocast_available(values.device.type)


def _finished(output: Tensor, bias: Tensor | None, input: Tensor, weight: Tensor) -> Tensor:
    """The output with its bias, in the precision of the input and batched as the input was.

    As in PyTorch, the output of tensors in the standard layout is contiguous, so that `view` works. If one of them lies
    in memory otherwise, in channels-last layout or as an algorithm left it, the output stays as the algorithm made it.
    """
    if output.is_floating_point() and not input.is_floating_point():
        output = output.round()
    if bias is not None:
        output = output + bias[:, None, None]
    output = (output if input.dim() == 4 else output[0]).to(input.dtype)
    return output.contiguous() if _rows_are_innermost(input) and _rows_are_innermost(weight) else output


def _rows_are_innermost(values: Tensor) -> bool:
    """Whether a row of pixels lies together in memory, not interleaved with other channels or images."""
    return all(values.stride(dimension) >= values.stride(-2) for dimension in range(values.dim() - 2))
