"""LeNet on the CPU with its convolutions compiled: the same results as layer by layer, up to rounding.

Layer by layer, four fifths of a training step go into convolutions with few channels, which PyTorch's library was not
made for, into activations and poolings, and into moving them through memory. Here convolution, activation and pooling
are one node of autograd, computed by kernels.c with images side by side in vector registers. All other layers are the
network's own, called as they are. What that gains is measured by `scripts/benchmark.py train`: compare its `own step`
with `plain`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lenet import kernels
from lenet.kernels import Block, Kernels

log = logging.getLogger(__name__)

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.ReLU: "relu"}
POOLINGS: dict[type[nn.Module], str] = {nn.AvgPool2d: "average", nn.MaxPool2d: "maximum"}

BETWEEN = (nn.Sigmoid, nn.ReLU, nn.ELU, nn.GELU, nn.BatchNorm2d)
"""What may follow a pooling: layers to which it is all the same whether images lie one after the other."""


class Compiled(NamedTuple):
    """A convolution of the network, and what is computed together with it."""

    conv: nn.Conv2d
    block: Block


class Fused:
    """A network whose convolutions, with what follows them up to the pooling, are compiled.

    Args:
        net: begins with the convolutions of a LeNet. Its layers are used where they are, not copied.

    Raises:
        ValueError: it does not, or there are others than PyTorch's own layers among them.
        UnavailableError: nothing can be compiled on this machine.
    """

    def __init__(self, net: nn.Sequential) -> None:
        self.net = net
        self.steps, self.rest = _steps(net)
        self.kernels = kernels.load()

    def fits(self, images: Tensor) -> bool:
        """Whether the kernels are made for these images: 28×28, on the CPU, in single precision, without a gradient.

        And whether nobody listens to a layer, which would not be called.
        """
        return (
            images.device.type == "cpu"
            and images.dtype in (torch.uint8, torch.float32)
            and images.shape[1:] == (1, 28, 28)
            and not images.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.net)
            and all(step.conv.weight.dtype == torch.float32 for step in self.steps if isinstance(step, Compiled))
            and (len(images) % self.kernels.lanes == 0 or not self._mixes_images())
        )

    def _mixes_images(self) -> bool:
        """Whether a normalisation would take what fills up the last group for images."""
        return any(isinstance(step, nn.BatchNorm2d) and step.training for step in self.steps)

    def __call__(self, images: Tensor) -> Tensor:
        """From images (N, 1, 28, 28) to logits (N, 10); differentiable once, with respect to the parameters.

        Images are bytes 0–255, or numbers in [0, 1].
        """
        values = self.kernels.pack(images)
        for step in self.steps:
            if isinstance(step, Compiled):
                values = _Block.apply(values, step.conv.weight, step.conv.bias, step.block, self.kernels)
            else:  # in four dimensions: groups, channels, pixels, images of a group
                values = step(values.flatten(2, 3)).view_as(values)
        features: Tensor = _Unpack.apply(values, len(images), self.kernels)
        for layer in self.rest:
            features = layer(features)
        return features


def fused(net: nn.Module) -> Fused | None:
    """The network with compiled convolutions, or None if it has none that can be compiled, or the machine cannot."""
    if not isinstance(net, nn.Sequential):
        return None
    try:
        return Fused(net)
    except ValueError:
        return None
    except kernels.UnavailableError as reason:
        log.warning("fuse=true: %s; LeNet is computed layer by layer, which takes several times longer", reason)
        return None


class _Block(torch.autograd.Function):
    """A compiled block as one node; of the first, the images get no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, block: Block, kernels: Kernels) -> Tensor:
        outputs, pooled = kernels.forward(block, values, weight, bias)
        ctx.block, ctx.kernels = block, kernels
        # Autograd's own keeping: it lets go of them in time, and notices if one was changed in between.
        ctx.save_for_backward(values, weight, outputs, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.backward(ctx.block, *ctx.saved_tensors, gradient), None, None


class _Unpack(torch.autograd.Function):
    """From groups to images one after the other, each as a row."""

    @staticmethod
    def forward(ctx: Any, groups: Tensor, count: int, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.shape = kernels, groups.shape
        return kernels.unpack(groups, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kernels.pack(gradient).view(ctx.shape), None, None


def _steps(net: nn.Sequential) -> tuple[list[Compiled | nn.Module], list[nn.Module]]:
    """A network's layers up to where it flattens its images, convolutions and poolings as compiled blocks; the rest."""
    layers, steps = deque(net.children()), list[Compiled | nn.Module]()
    with torch.device("meta"):  # without weights, so that no random numbers are drawn
        convolutions = nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Conv2d(6, 16, kernel_size=5)
    for number, convolution in enumerate(convolutions, start=1):
        conv = _take(layers, [convolution])
        activation = _take(layers, [kind() for kind in ACTIVATIONS])
        pooling = _take(layers, [kind(kernel_size=2) for kind in POOLINGS])
        if conv is None or pooling is None or getattr(pooling, "divisor_override", None) is not None:
            raise ValueError("only LeNet's convolutions and poolings, of PyTorch's own layers, can be compiled")
        assert isinstance(conv, nn.Conv2d)
        name = "none" if activation is None else ACTIVATIONS[type(activation)]
        steps.append(Compiled(conv, Block(number, name, POOLINGS[type(pooling)])))
        while layers and type(layers[0]) in BETWEEN and not getattr(layers[0], "inplace", False):
            steps.append(layers.popleft())
    if _take(layers, [nn.Flatten()]) is None:
        raise ValueError(f"{layers[0] if layers else 'nothing'} stands where nn.Flatten() should")
    return steps, list(layers)


def _take(layers: deque[nn.Module], wanted: Sequence[nn.Module]) -> nn.Module | None:
    """The first of the layers, if it is one of those wanted, arguments and all."""
    if layers and any(type(layers[0]) is type(each) and repr(layers[0]) == repr(each) for each in wanted):
        return layers.popleft()
    return None
