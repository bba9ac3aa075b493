"""LeNet compiled for the CPU: the same results as layer by layer, up to rounding.

Layer by layer, most of a training step goes into convolutions of few channels, which PyTorch's library was not made
for, and into moving activations through memory again and again. `lenet.kernels` computes with images side by side in
vector registers instead, in two ways:

- Convolution, activation and pooling as one stage. Stages that follow each other are one node of autograd; all other
  layers, such as normalisations, are the network's own, called as they are.
- A LeNet's whole training step: forward, loss and gradients in one call, without autograd, a few images at a time, so
  that their activations never leave the processor's cache.

What that gains is measured by `scripts/benchmark.py train`: compare its `own step` with `plain`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lenet.kernels import UnavailableError, load
from lenet.model import LeNet

log = logging.getLogger(__name__)

Tensors = Sequence[Tensor]

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.ReLU: "relu"}
POOLINGS: dict[type[nn.Module], str] = {nn.AvgPool2d: "average", nn.MaxPool2d: "maximum"}

BETWEEN = (nn.Sigmoid, nn.ReLU, nn.ELU, nn.GELU, nn.BatchNorm2d)
"""What may follow a pooling: layers to which it is all the same whether images lie one after the other."""


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
        inner, *others = load().block_backward(
            self.number, self.activation, self.pooling, parameters[0], values, outputs, pooled, gradient
        )
        return inner, others


class Fused:
    """A network with compiled convolutions, activations and poolings; if it is a LeNet, with a compiled training step.

    Args:
        net: begins with the convolutions of a LeNet. Its layers are used where they are, not copied.

    Raises:
        ValueError: it does not, or there are others than PyTorch's own layers among them.
        UnavailableError: nothing can be compiled on this machine.
    """

    def __init__(self, net: nn.Sequential) -> None:
        self.net = net
        layers = deque(net.children())
        parts: list[Stage | nn.Module] = [Pack()]
        for number in (1, 2):
            parts.append(_take_block(number, layers))
            while layers and type(layers[0]) in BETWEEN and not getattr(layers[0], "inplace", False):
                parts.append(layers.popleft())
        if _take(layers, [nn.Flatten()]) is None:
            raise ValueError(f"{layers[0] if layers else 'nothing'} stands where nn.Flatten() should")
        parts.append(Unpack())
        self.on_groups = _chains(parts)
        self.on_rows = list(layers)
        self._lenet = _whole_lenet(net)
        # Looked at in each step, so kept at hand.
        self._first = next(part.conv for part in parts if isinstance(part, Block))
        self._listeners = [hooks for layer in net for hooks in (layer._forward_hooks, layer._forward_pre_hooks)]
        self._norms = [layer for layer in parts if isinstance(layer, nn.BatchNorm2d)]
        load()

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
            and self._first.weight.dtype == torch.float32
            and not any(self._listeners)
            # A normalisation would take what fills up the last group for images.
            and (len(images) % load().lanes == 0 or not any(norm.training for norm in self._norms))
        )

    def __call__(self, images: Tensor) -> Tensor:
        """From images (N, 1, 28, 28) to logits (N, 10); differentiable once, with respect to the parameters.

        Images are bytes 0–255, or numbers in [0, 1].
        """
        values = images
        for part in self.on_groups:
            if isinstance(part, tuple):
                parameters = [parameter for stage in part for parameter in stage.parameters()]
                values = _Chain.apply(values, part, *parameters)
            else:  # in four dimensions: groups, channels, pixels, images of a group
                values = part(values.flatten(2, 3)).view_as(values)
        values = values if len(values) == len(images) else values[: len(images)]
        for layer in self.on_rows:
            values = layer(values)
        return values

    def trains(self, images: Tensor) -> bool:
        """Whether `training_step` can be called with these images."""
        return self._lenet is not None and self.fits(images) and self._lenet.all_are_trained()

    def training_step(self, images: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Leave the gradients of `scale` times the summed cross entropies in the parameters, instead of what was there.

        Args:
            images: (N, 1, 28, 28), bytes 0–255 or numbers in [0, 1].
            labels: (N,) int64, 0 to 9.

        Returns:
            The cross entropies summed up, (), and the logits (N, 10), without a graph.

        Raises:
            IndexError: a label is something else.
        """
        assert self._lenet is not None
        return self._lenet.training_step(images, labels, scale)


def fused(net: nn.Module) -> Fused | None:
    """The network with compiled stages, or None if it has none that can be compiled, or the machine cannot."""
    if not isinstance(net, nn.Sequential):
        return None
    try:
        return Fused(net)
    except ValueError:
        return None
    except UnavailableError as reason:
        log.warning("fuse=true: %s; LeNet is computed layer by layer, which takes several times longer", reason)
        return None


class _Chain(torch.autograd.Function):
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


@dataclass(frozen=True)
class _WholeLeNet:
    """The layers of a LeNet that have parameters, and the kinds of its others."""

    layers: Sequence[Any]
    activation: str
    pooling: str

    def all_are_trained(self) -> bool:
        return all(layer.weight.requires_grad and layer.bias.requires_grad for layer in self.layers)

    def training_step(self, images: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        gradients = [_gradient(parameter) for parameter in (*weights, *biases)]
        into = gradients[: len(weights)], gradients[len(weights) :]
        return load().training_step(self.activation, self.pooling, images, labels, scale, weights, biases, *into)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Where a parameter's gradient is to be put."""
    if parameter.grad is None or not parameter.grad.is_contiguous():
        parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    return parameter.grad


def _whole_lenet(net: nn.Sequential) -> _WholeLeNet | None:
    layers = list(net)
    for (activation, its_name), (pooling, name) in product(ACTIVATIONS.items(), POOLINGS.items()):
        with torch.device("meta"):
            known = list(LeNet(nn.Conv2d, pooling, activation))
        if len(layers) == len(known) and all(map(_is, layers, known)):
            return _WholeLeNet([layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)], its_name, name)
    return None


def _chains(parts: Sequence[Stage | nn.Module]) -> list[tuple[Stage, ...] | nn.Module]:
    """The same, with stages that follow each other as one."""
    chains: list[tuple[Stage, ...] | nn.Module] = []
    for part in parts:
        if not isinstance(part, Stage):
            chains.append(part)
        elif chains and isinstance(chains[-1], tuple):
            chains[-1] += (part,)
        else:
            chains.append((part,))
    return chains


def _take_block(number: int, layers: deque[nn.Module]) -> Block:
    with torch.device("meta"):  # without weights, so that no random numbers are drawn
        wanted = nn.Conv2d(1, 6, kernel_size=5, padding=2) if number == 1 else nn.Conv2d(6, 16, kernel_size=5)
    conv = _take(layers, [wanted])
    activation = _take(layers, [kind() for kind in ACTIVATIONS])
    pooling = _take(layers, [kind(kernel_size=2) for kind in POOLINGS])
    if conv is None or pooling is None or getattr(pooling, "divisor_override", None) is not None:
        raise ValueError("only LeNet's convolutions and poolings, of PyTorch's own layers, can be compiled")
    assert isinstance(conv, nn.Conv2d)
    name = "none" if activation is None else ACTIVATIONS[type(activation)]
    return Block(number, conv, name, POOLINGS[type(pooling)])


def _take(layers: deque[nn.Module], wanted: Sequence[nn.Module]) -> nn.Module | None:
    """The first of the layers, if it is one of those wanted."""
    return layers.popleft() if layers and any(_is(layers[0], each) for each in wanted) else None


def _is(layer: nn.Module, wanted: nn.Module) -> bool:
    """Whether it is of that kind exactly, arguments and all."""
    return type(layer) is type(wanted) and repr(layer) == repr(wanted)
