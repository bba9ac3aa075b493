"""Convolution and pooling as functions, with the signatures and the meaning of torch.nn.functional's.

    conv2d(images, weight, padding=2, algorithm="fft")

This file checks the arguments and handles padding, groups and bias: padding makes a larger image, groups are
convolutions side by side, and the bias is added at the end. The sums themselves are computed in a file for each
algorithm: loops.py, taps.py, im2col.py, kernel_matrix.py and fft.py. `algorithm` names one of them; an unknown name
raises a ValueError. Shapes, dtypes or numbers that do not fit together raise a RuntimeError.

The input is (N, C, H, W), or (C, H, W) for one image; then the output has no N either.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lenet.layers import fft, im2col, kernel_matrix, loops, taps
from lenet.layers.geometry import (
    Pair,
    Size,
    as_batch,
    batched_as,
    padded,
    padding_at_edges,
    pair,
    span,
    spread,
    transposed_size,
)
from lenet.layers.plane import convolution, cross_correlation
from lenet.layers.pooling import avg_pool2d, max_pool2d

__all__ = ["ALGORITHMS", "avg_pool2d", "conv2d", "conv_transpose2d", "convolution", "cross_correlation", "max_pool2d"]

Algorithm = Callable[[Tensor, Tensor, Pair, Pair], Tensor]  # of input, weight, stride and dilation

ALGORITHMS: dict[str, Algorithm] = {
    "loops": loops.conv2d,
    "taps": taps.conv2d,
    "im2col": im2col.conv2d,
    "kernel_matrix": kernel_matrix.conv2d,
    "fft": fft.conv2d,
}


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
    """Cross-correlation of images with kernels.

    Shapes: input (N, C, H, W), weight (O, C / groups, k_h, k_w), bias (O); output (N, O, H', W'), where
    H' = floor((H + 2·padding - dilation·(k_h - 1) - 1) / stride) + 1.

    `padding` is zeros at each edge; "valid" is none, "same" as many as keep the size (stride 1 only).
    """
    convolve = algorithm_named(algorithm)
    images, weight, bias = _checked(input, weight, bias, groups, transposed=False)
    steps, spacing = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    edges = padding_at_edges(padding, (weight.shape[2], weight.shape[3]), steps, spacing)
    output = _convolved(convolve, padded(images, edges), weight, groups, steps, spacing)
    return batched_as(input, _finished(output, bias, images, weight))


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
    """The transpose of `conv2d` as a linear map: each value stamps the kernel, times itself, on the output.

        output[n, o, y·s + i·d, x·s + j·d] += input[n, c, y, x] · weight[c, o, i, j]

    Collected by each output instead of stamped, that is a convolution again: of the input with its values a stride
    apart and zeros around, with the kernel flipped.

    Shapes: input (N, C, H, W), weight (C, O / groups, k_h, k_w), bias (O); output (N, O, H', W'), where
    H' = (H - 1)·stride - 2·padding + dilation·(k_h - 1) + output_padding + 1.

    `padding` is that of the convolution which this reverses: as much is cut off at each edge. `output_padding` is more
    rows and columns at the end; with a stride above 1 several sizes are possible.
    """
    convolve = algorithm_named(algorithm)
    images, weight, bias = _checked(input, weight, bias, groups, transposed=True)
    steps, spacing = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    cut, extra = pair("padding", padding, least=0), pair("output_padding", output_padding, least=0)
    if any(extra[i] >= max(steps[i], spacing[i]) for i in (0, 1)):
        raise RuntimeError(f"output_padding={extra}: should be less than stride={steps} or dilation={spacing}")
    full = transposed_size(images, weight, steps, spacing)
    if any(full[i] + extra[i] <= 2 * cut[i] for i in (0, 1)):
        raise RuntimeError(f"padding={padding}: leaves nothing of the output's {full[0]}×{full[1]} pixels; use less")
    rows, columns = (covered - 1 for covered in span((weight.shape[2], weight.shape[3]), spacing))
    apart = padded(spread(images, steps), (columns, columns, rows, rows))
    flipped = (
        weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1).flip(2, 3)
    )  # (O, C / groups, k_h, k_w)
    output = _convolved(convolve, apart, flipped, groups, (1, 1), spacing)
    output = padded(output, (-cut[1], extra[1] - cut[1], -cut[0], extra[0] - cut[0]))
    return batched_as(input, _finished(output, bias, images, weight))


def algorithm_named(name: str) -> Algorithm:
    """The function of an algorithm; a ValueError if there is none of this name."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm={name!r}: should be one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def _checked(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The images as a batch, the weight and the bias, if they fit together; under autocast in its dtype."""
    tensors = [value for value in (as_batch(input), weight, bias) if value is not None]
    tensors = [value.to(_autocast_dtype(value) or value.dtype) for value in tensors]
    images, weight = tensors[:2]
    if len({value.dtype for value in tensors}) > 1 or images.dtype == torch.bool or images.is_complex():
        dtypes = ", ".join(str(value.dtype) for value in tensors)
        raise RuntimeError(f"input, weight and bias should have the same real dtype, got {dtypes}")
    if weight.dim() != 4 or 0 in weight.shape[2:]:
        raise RuntimeError(f"weight should be four-dimensional with pixels, got shape {list(weight.shape)}")
    if weight.shape[0] % groups:
        raise RuntimeError(f"groups={groups}: should divide {weight.shape[0]}, the weight's first dimension")
    channels = (weight.shape[1] * groups, weight.shape[0])
    in_channels, out_channels = reversed(channels) if transposed else channels
    if images.shape[1] != in_channels:
        raise RuntimeError(
            f"input should have {in_channels} channels for a weight of shape {list(weight.shape)} with"
            f" groups={groups}, got {images.shape[1]}"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise RuntimeError(f"bias should have shape [{out_channels}], got {list(bias.shape)}")
    return images, weight, None if bias is None else tensors[2]


def _autocast_dtype(values: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants for the tensor; None if it is off, or unknown to the device as to "meta"."""
    device = values.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    casts = on and values.is_floating_point() and values.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else None


def _convolved(
    convolve: Algorithm, images: Tensor, weight: Tensor, groups: int, stride: Pair, dilation: Pair
) -> Tensor:
    """The algorithm applied to each group of channels. Half precision is summed up in single precision."""
    if images.dtype in (torch.bfloat16, torch.float16):
        images, weight = images.float(), weight.float()
    elif convolve is fft.conv2d and not images.is_floating_point():
        images, weight = images.double(), weight.double()  # exact up to 2^53
    if convolve is fft.conv2d and images.numel() == 0:
        convolve = taps.conv2d  # MKL refuses to transform nothing
    with torch.autocast(images.device.type, enabled=False) if _autocast_dtype(images) else nullcontext():
        if groups == 1:  # without chunks, whose backward copies
            return convolve(images, weight, stride, dilation)
        parts = zip(images.chunk(groups, dim=1), weight.chunk(groups), strict=True)
        return torch.cat([convolve(part, kernels, stride, dilation) for part, kernels in parts], dim=1)


def _finished(output: Tensor, bias: Tensor | None, images: Tensor, weight: Tensor) -> Tensor:
    """The output with its bias, in the dtype of the images."""
    if output.is_floating_point() and not images.is_floating_point():
        output = output.round()
    if bias is not None:
        output = output + bias[:, None, None]
    output = output.to(images.dtype)
    # As in PyTorch, the output is contiguous, so that `view` works, if images and weight are in the standard layout:
    # the pixels of a row lie together in memory. Otherwise it stays as the algorithm made it.
    standard = all(values.stride(i) >= values.stride(2) for values in (images, weight) for i in (0, 1))
    return output.contiguous() if standard else output
