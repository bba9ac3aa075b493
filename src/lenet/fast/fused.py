"""LeNet compiled for the CPU: the same results as layer by layer, up to rounding.

Layer by layer, most of a training step goes into convolutions of few channels, which PyTorch's library was not made
for, and into moving activations through memory again and again. `lenet.fast.kernels` computes with images side by side
in vector registers instead, in two ways:

- Convolution, activation and pooling as one stage. Stages that follow each other are one node of autograd; all other
  layers, such as normalisations, are the network's own, called as they are.
- A LeNet's whole training step: forward, loss and gradients in one call, without autograd, a few images at a time, so
  that their activations never leave the processor's cache.

What that gains is measured by `scripts/benchmark.py train`: compare its `own step` with `plain`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lenet.fast.kernels import BLOCKS, KERNEL_SIZE, load
from lenet.fast.kernels.autograd import Block, Chain, Pack, Stage, Unpack
from lenet.fast.kernels.compiler import UnavailableError
from lenet.models.lenet import LeNet

log = logging.getLogger(__name__)

ACTIVATION_NAMES: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.ReLU: "relu"}
POOLING_NAMES: dict[type[nn.Module], str] = {nn.AvgPool2d: "average", nn.MaxPool2d: "maximum"}
"""As `lenet.fast.kernels` calls them."""

BETWEEN = (nn.Sigmoid, nn.ReLU, nn.ELU, nn.GELU, nn.BatchNorm2d)
"""What may follow a pooling: layers that treat each number alike, or all numbers of a channel, wherever they lie."""


MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps what is to be called with it."""


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
        layers = deque(net)
        parts: list[Stage | nn.Module] = [Pack()]
        for number in BLOCKS:
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
        self._blocks = [part for part in parts if isinstance(part, Block)]
        self._norms = [layer for layer in parts if isinstance(layer, nn.BatchNorm2d)]
        self._hooks = [getattr(layer, kind) for layer in net.modules() for kind in MODULE_HOOKS]
        load()

    @property
    def is_lenet(self) -> bool:
        """Whether the network is one that a compiled training step is made for."""
        return self._lenet is not None

    def fits(self, images: Tensor) -> bool:
        """Whether the kernels are made for these images: 28×28, on the CPU, in single precision, without a gradient.

        And for the network as it is now: its parameters are on the CPU in single precision, no layer has a hook, and
        nobody traces or compiles, who would not see the operations.
        """
        return (
            images.device.type == "cpu"
            and images.dtype in (torch.uint8, torch.float32)
            and images.shape[1:] == (1, 28, 28)
            and not images.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not torch._C._is_tracing()
            and not torch.compiler.is_compiling()
            and not any(self._hooks)
            and all(_is_plain(parameter) for block in self._blocks for parameter in block.parameters())
            # A normalisation that looks at the batch would take what fills up the last group for images.
            and (
                len(images) % load().lanes == 0
                or not any(norm.training or norm.running_mean is None for norm in self._norms)
            )
        )

    def __call__(self, images: Tensor) -> Tensor:
        """From images (N, 1, 28, 28) to logits (N, 10); differentiable once, with respect to the parameters.

        Images are bytes 0–255, or numbers in [0, 1].
        """
        logits: Tensor = self.on_rows[-1](self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """The same without the last layer."""
        values = images
        for part in self.on_groups:
            if isinstance(part, tuple):
                parameters = [parameter for stage in part for parameter in stage.parameters()]
                values = Chain.apply(values, part, *parameters)
            else:  # in four dimensions: groups, channels, pixels, images of a group
                values = part(values.flatten(2, 3)).view_as(values)
        values = values if len(values) == len(images) else values[: len(images)]
        for layer in self.on_rows[:-1]:
            values = layer(values)
        return values

    def trains(self, images: Tensor) -> bool:
        """Whether `training_step` can be called with these images."""
        return (
            self._lenet is not None and self.fits(images) and self._lenet.is_ready() and not torch.is_anomaly_enabled()
        )

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
        log.warning("fuse=true: %s; what could be compiled is computed layer by layer, which is slower", reason)
        return None


@dataclass(frozen=True)
class _WholeLeNet:
    """The layers of a LeNet that have parameters, and the kinds of its others."""

    layers: Sequence[Any]
    activation: str
    pooling: str

    def is_ready(self) -> bool:
        """Whether all parameters are trained, lie in memory as C reads them, and nobody listens to a gradient."""
        return all(
            parameter.requires_grad
            and _is_plain(parameter)
            and parameter.is_contiguous()
            and not parameter._backward_hooks
            and not parameter._post_accumulate_grad_hooks
            for layer in self.layers
            for parameter in (layer.weight, layer.bias)
        )

    def training_step(self, images: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        gradients = [_gradient(parameter) for parameter in (*weights, *biases)]
        into = gradients[: len(weights)], gradients[len(weights) :]
        return load().training_step(self.activation, self.pooling, images, labels, scale, weights, biases, *into)


def _is_plain(parameter: Tensor) -> bool:
    """Whether C can read it."""
    return parameter.device.type == "cpu" and parameter.dtype == torch.float32


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Where a parameter's gradient is to be put."""
    if parameter.grad is None or not parameter.grad.is_contiguous():
        parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    return parameter.grad


def _whole_lenet(net: nn.Sequential) -> _WholeLeNet | None:
    layers = list(net)
    for (activation, its_name), (pooling, name) in product(ACTIVATION_NAMES.items(), POOLING_NAMES.items()):
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
    shape = BLOCKS[number]
    with torch.device("meta"):  # without weights, so that no random numbers are drawn
        wanted = nn.Conv2d(shape.inputs, shape.channels, KERNEL_SIZE, padding=shape.padding)
    conv = _take(layers, [wanted])
    activation = _take(layers, [kind() for kind in ACTIVATION_NAMES])
    pooling = _take(layers, [kind(kernel_size=2) for kind in POOLING_NAMES])
    # The repr of a pooling leaves its divisor out.
    if conv is None or pooling is None or getattr(pooling, "divisor_override", None) is not None:
        raise ValueError("only LeNet's convolutions and poolings, of PyTorch's own layers, can be compiled")
    assert isinstance(conv, nn.Conv2d)
    name = "none" if activation is None else ACTIVATION_NAMES[type(activation)]
    return Block(number, conv, name, POOLING_NAMES[type(pooling)])


def _take(layers: deque[nn.Module], wanted: Sequence[nn.Module]) -> nn.Module | None:
    """The first of the layers, if it is one of those wanted."""
    return layers.popleft() if layers and any(_is(layers[0], each) for each in wanted) else None


def _is(layer: nn.Module, wanted: nn.Module) -> bool:
    """Whether it is of that kind exactly, arguments and all: a layer's repr names those that are not the default."""
    return type(layer) is type(wanted) and repr(layer) == repr(wanted)
