"""What the kernels compute, as nodes of autograd.

Images lie side by side in groups: (groups, channels, height, width, lanes), one image in each of the lanes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lenet.fast.kernels import call, empty, lanes, readable


def pack(images: Tensor) -> Tensor:
    """From images (N, ...), float32 or bytes, to groups (groups, ..., lanes), the last filled up with zeros."""
    images = readable(images, torch.uint8, torch.float32)
    count, *shape = images.shape
    groups = empty(math.ceil(count / lanes()), *shape, lanes())
    call("pack", images, images.dtype == torch.uint8, count, math.prod(shape), groups)
    return groups


class Unpack(torch.autograd.Function):
    """From groups (groups, ..., lanes) to the first `count` images, (count, ...)."""

    @staticmethod
    def forward(ctx: Any, groups: Tensor, count: int) -> Tensor:
        groups = readable(groups)
        if groups.shape[-1] != lanes() or len(groups) * lanes() < count:
            raise ValueError(f"{tuple(groups.shape)} is not the shape of {count} images in groups of {lanes()}")
        images = empty(count, *groups.shape[1:-1])
        call("unpack", groups, count, math.prod(images.shape[1:]), images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return pack(gradient), None


class ConvBlock(torch.autograd.Function):
    """One of LeNet's convolutions, with its activation and pooling; kind: see Stage."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, kind: tuple[int, int, int]) -> Tensor:
        values, dense, bias = readable(values), readable(weight), readable(bias)
        padding, *ctx.kind = kind
        half = (values.shape[3] + 2 * padding - weight.shape[3] + 1) // 2
        outputs = empty(len(values), len(bias), 2 * half, 2 * half, lanes())
        pooled = empty(len(values), len(bias), half, half, lanes())
        ctx.sizes = [padding, *values.shape[1:], *weight.shape, *bias.shape]
        call("block_forward", ctx.sizes, len(ctx.sizes), values, dense, bias, *ctx.kind, len(values), outputs, pooled)
        ctx.save_for_backward(values, weight, outputs, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, outputs, pooled = ctx.saved_tensors
        weight, gradient = readable(weight), readable(gradient)
        arrays = values, weight, outputs, pooled, gradient
        inner = torch.empty_like(values) if ctx.needs_input_grad[0] else None  # images need none
        results = inner, torch.empty_like(weight), empty(len(weight))
        call("block_backward", ctx.sizes, len(ctx.sizes), *arrays, *ctx.kind, len(values), *results)
        return *results, None
