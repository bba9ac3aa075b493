"""LeNet compiled for the CPU: the same results as layer by layer, up to rounding, in less time.

PyTorch's convolutions are not made for few channels, and its layers move all activations through memory. The kernels
compute with images side by side in vector registers: each convolution with its activation and pooling is one function,
and so is a whole LeNet's training step, in which activations never leave the processor's cache. All other layers are
the network's own. `scripts/benchmark.py train` measures the gain. What the kernels do not know is refused.
"""

from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lenet.fast.autograd import ConvBlock, Unpack, pack
from lenet.fast.kernels import ACTIVATIONS, POOLINGS, as_c, call, empty, is_readable, lanes, readable
from lenet.models import LeNet

WEIGHTS = ((6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84))
"""The shapes that kernels.c was compiled for; a bias has the first size."""

BETWEEN = (*ACTIVATIONS, nn.BatchNorm2d, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.Tanh)
"""Layers that may follow a pooling: they treat all numbers of a channel alike, wherever these lie."""


class UnsuitableError(Exception):
    """The network cannot be compiled."""


class Stage(NamedTuple):
    """A convolution with activation and pooling, and the layers up to the next convolution."""

    conv: Any
    kind: tuple[int, int, int]  # its padding; its activation and its pooling, as their numbers in lanes.h
    between: tuple[nn.Module, ...]


class Plan(NamedTuple):
    """How a network is computed: compiled stages, then its other layers; of a whole LeNet, these are compiled, too."""

    stages: tuple[Stage, ...]
    rest: tuple[Any, ...]
    is_whole: bool

    def parameters(self) -> list[Tensor]:
        """The weights, then the biases, in C's order, as they are now."""
        return _parameters(self.stages, self.rest)


class CompiledNetwork:
    """A network compiled as far as the kernels know its layers, which are used, not copied.

    Raises an UnsuitableError if the convolutions are not LeNet's, an UnavailableError if nothing can be compiled here.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net, self._plan, self._lanes = net, match(net), lanes()
        self.is_whole = self._plan.is_whole  # so that `gradients` can be called
        between = [layer for stage in self._plan.stages for layer in stage.between]
        self._norms = [layer for layer in between if isinstance(layer, nn.BatchNorm2d)]
        self._prepared: list[tuple[Tensor, int]] = []  # the parameters that C got last, and their addresses

    def is_current(self) -> bool:
        """Whether the network still has the same layers, with settings that the kernels have, and no hooks."""
        try:
            return match(self._net) == self._plan
        except UnsuitableError:
            return False

    def accepts(self, images: Tensor) -> bool:
        """Whether the kernels can compute with these: (N, 1, 28, 28), bytes 0–255 or float32 in [0, 1], on the CPU.

        Not with autocast, a compiler or anomaly detection, which must see each operation. And a batch normalisation
        that looks at the batch must not see the zeros that fill up the last group of images.
        """
        looks_at_batch = any(norm.training or norm.running_mean is None for norm in self._norms)
        return (
            is_readable(images, torch.uint8, torch.float32)
            and images.shape[1:] == (1, 28, 28)
            and not images.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.is_anomaly_enabled()
            and not (looks_at_batch and len(images) % self._lanes)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """From images that `accepts` allows to logits (N, classes), differentiable in the parameters."""
        values = pack(images)
        for conv, kind, between in self._plan.stages:
            values = ConvBlock.apply(values, conv.weight, conv.bias, kind)
            for layer in between:  # in four dimensions: groups, channels, pixels, images of a group
                values = layer(values.flatten(2, 3)).view_as(values)
        values = Unpack.apply(values, len(images))
        for layer in self._plan.rest:
            values = layer(values)
        assert isinstance(values, Tensor)
        return values

    def gradients(self, images: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Make each parameter's `grad` the gradient of `scale` times the sum of the cross entropies.

        The next call writes into the same tensors: copy a gradient that is to be kept.

        Labels are (N,) int64. Returns that sum (), and the logits (N, 10), both without a graph. Raises an IndexError
        if a label is not 0 to 9, a ValueError if the network is not whole, or C cannot read a tensor.
        """
        images, labels = readable(images, torch.uint8, torch.float32), readable(labels, torch.int64)
        if not self.is_whole or labels.shape != images.shape[:1] or images.shape[1:] != (1, 28, 28):
            raise ValueError("C needs a whole LeNet, 28×28 images, and a label for each")
        parameters = self._plan.parameters()  # read anew: they may have been replaced
        now = zip(parameters, self._prepared, strict=False)
        same = all(each is last and each.data_ptr() == place for each, (last, place) in now)
        if not (self._prepared and same):  # a step is so short that it counts to prepare what C gets only once
            if not all(is_readable(each) and each.is_contiguous() for each in parameters):
                raise ValueError("C cannot read these parameters: they should be contiguous float32 on the CPU")
            self._gradients = [empty(*parameter.shape) for parameter in parameters]
            sizes = [1, 28, 28, *(size for parameter in parameters for size in parameter.shape)]
            self._arrays = [as_c(each) for each in (sizes, parameters, self._gradients)]
            self._prepared = [(each, each.data_ptr()) for each in parameters]
        c_sizes, c_parameters, c_gradients = self._arrays
        loss, logits = empty(), empty(len(images), 10)
        inputs = images, images.dtype == torch.uint8, labels, len(images), c_parameters
        kind = self._plan.stages[0].kind[1:]
        call("training_step", c_sizes, len(c_sizes), *inputs, *kind, float(scale), c_gradients, logits, loss)
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return loss, logits


def match(net: nn.Module, device: str = "cpu") -> Plan:
    """How the kernels compute a network whose parameters are on such a device; raises an UnsuitableError."""
    own = type(net).__call__ is not nn.Module.__call__ or type(net).forward not in (
        nn.Sequential.forward,
        LeNet.forward,
    )
    if not isinstance(net, nn.Sequential) or own or "forward" in vars(net) or has_hooks(net):
        raise UnsuitableError(f"{type(net).__name__} is not a plain nn.Sequential without hooks")
    layers, stages = deque(net), []
    for padding, shape in ((2, WEIGHTS[0]), (0, WEIGHTS[1])):
        conv = _take(layers, [nn.Conv2d], padding=padding, stride=1, dilation=1, groups=1, padding_mode="zeros")
        if not _has_parameters(conv, shape, device):
            raise UnsuitableError(f"{conv} needs a weight {shape} and a bias, in float32 on the {device.upper()}")
        activation = ACTIVATIONS[type(layers.popleft())] if layers and _is(layers[0], ACTIVATIONS) else 0
        pool = _take(layers, POOLINGS, kernel_size=2, stride=2, padding=0, dilation=1, divisor_override=None)
        between = []
        while layers and _is(layers[0], BETWEEN, inplace=False):
            between.append(layers.popleft())
        stages.append(Stage(conv, (padding, activation, POOLINGS[type(pool)]), tuple(between)))
    return Plan(tuple(stages), tuple(layers), _is_whole(stages, list(layers), device))


def _take(layers: deque[nn.Module], kinds: Collection[type[nn.Module]], **attributes: Any) -> nn.Module:
    if not layers or not _is(layers[0], kinds, **attributes):
        raise UnsuitableError(f"{layers[0] if layers else 'the end'} is not what the kernels have there")
    return layers.popleft()


def _is(layer: nn.Module, kinds: Collection[type[nn.Module]], **attributes: Any) -> bool:
    """Whether it is exactly of one of the classes, and has these attributes; a number also means a pair of it."""
    same = all(getattr(layer, name, value) in (value, (value, value)) for name, value in attributes.items())
    return type(layer) in kinds and "forward" not in vars(layer) and same


def _has_parameters(layer: Any, shape: tuple[int, ...], device: str) -> bool:
    """Whether its weight has this shape, its bias the first size of it, and C can read both."""
    return all(
        isinstance(parameter, nn.Parameter) and is_readable(parameter, device=device) and parameter.shape == size
        for parameter, size in ((layer.weight, shape), (layer.bias, shape[:1]))
    )


def _is_whole(stages: list[Stage], rest: list[Any], device: str) -> bool:
    """Whether these are the layers of a LeNet with two blocks of one kind, and all parameters are trained."""
    if len(rest) != 6 or stages[0].kind[1:] != stages[1].kind[1:] or any(stage.between for stage in stages):
        return False
    same = [layer for layer, number in ACTIVATIONS.items() if number == stages[0].kind[1]]
    return (
        _is(rest[0], [nn.Flatten], start_dim=1, end_dim=-1)
        and all(_is(layer, same) for layer in rest[2::2])
        and all(_is(layer, [nn.Linear]) for layer in rest[1::2])
        and all(_has_parameters(layer, shape, device) for layer, shape in zip(rest[1::2], WEIGHTS[2:], strict=True))
        and all(each.requires_grad and each.is_contiguous() for each in _parameters(stages, rest))
    )


def _parameters(stages: Collection[Stage], rest: Collection[Any]) -> list[Tensor]:
    """The weights, then the biases, in C's order."""
    layers = [stage.conv for stage in stages] + [layer for layer in rest if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers] + [layer.bias for layer in layers]


def has_hooks(net: nn.Module) -> bool:
    """Whether anybody listens to a layer or a gradient. PyTorch has no public way to ask, hence the private names."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [getattr(layer, kind) for layer in net.modules() for kind in kinds]
    return any(hooks) or any(each._backward_hooks or each._post_accumulate_grad_hooks for each in net.parameters())
