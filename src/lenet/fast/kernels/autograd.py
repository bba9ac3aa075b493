"""Stages of a network, computed by the kernels, as nodes of autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lenet.fast.kernels import load

Tensors = Sequence[Tensor]


class Stage(ABC):
    """One step through the network, and back."""

    def parameters(self) -> Tensors:
        """Read anew at each step: of a network that was moved to another device and back, they are other objects."""
        return ()

    @abstractmethod
    def forward(self, values: Tensor, parameters: Tensors) -> tuple[Tensor, Tensors]:
        """What comes out, and what `backward` will need besides the parameters."""

    @abstractmethod
    def backward(self, saved: Tensors, parameters: Tensors, gradient: Tensor) -> tuple[Tensor | None, Tensors]:
        """From the gradient of what came out to those of what went in (images need none) and of the parameters."""


class Pack(Stage):
    """Images, bytes or floats, (N, 1, 28, 28), side by side in groups; zeros fill up the last."""

    def forward(self, values: Tensor, parameters: Tensors) -> tuple[Tensor, Tensors]:
        return load().pack(values), ()

    def backward(self, saved: Tensors, parameters: Tensors, gradient: Tensor) -> tuple[None, Tensors]:
        return None, ()


class Unpack(Stage):
    """From groups to images one after the other, each as a row; those that filled up the last group come along."""

    def forward(self, values: Tensor, parameters: Tensors) -> tuple[Tensor, Tensors]:
        return load().unpack(values), ()

    def backward(self, saved: Tensors, parameters: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        return load().pack(gradient), ()


@dataclass(frozen=True)
class Block(Stage):
    """LeNet's first or second convolution, with activation and pooling."""

    number: int
    conv: nn.Conv2d
    activation: str
    pooling: str

    def parameters(self) -> Tensors:
        assert self.conv.bias is not None
        return self.conv.weight, self.conv.bias

    def forward(self, values: Tensor, parameters: Tensors) -> tuple[Tensor, Tensors]:
        outputs, pooled = load().block_forward(self.number, self.activation, self.pooling, values, *parameters)
        return pooled, (values, outputs, pooled)

    def backward(self, saved: Tensors, parameters: Tensors, gradient: Tensor) -> tuple[Tensor | None, Tensors]:
        values, outputs, pooled = saved
        gradient = gradient.view_as(pooled)  # rows, if what follows was unpacked
        inner, *others = load().block_backward(
            self.number, self.activation, self.pooling, parameters[0], values, outputs, pooled, gradient
        )
        return inner, others


class Chain(torch.autograd.Function):
    """Stages that follow each other, as one node. The parameters are arguments so that autograd knows of them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, stages: tuple[Stage, ...], *parameters: Tensor) -> Tensor:
        given, kept, ctx.stages, ctx.shape = iter(parameters), list[Tensor](), [], values.shape
        for stage in stages:
            own = tuple(islice(given, len(stage.parameters())))
            values, saved = stage.forward(values, own)
            ctx.stages.append((stage, len(saved), len(own)))
            kept += [*saved, *own]
        # Autograd's own keeping: it lets go of them in time, and notices if one was changed in between.
        ctx.save_for_backward(*kept)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, gradients = list(ctx.saved_tensors), list[Tensor]()
        for stage, saved_count, own_count in reversed(ctx.stages):
            own = [kept.pop() for _ in range(own_count)][::-1]
            saved = [kept.pop() for _ in range(saved_count)][::-1]
            gradient, others = stage.backward(saved, own, gradient)
            gradients[:0] = others
        return None if gradient is None else gradient.view(ctx.shape), None, *gradients
