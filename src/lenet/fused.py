"""LeNet on the CPU: the same results as layer by layer, up to rounding, with a backward written by hand.

Layer by layer, three tenths of a training step go into average pooling, which PyTorch computes value by value, and
activations of several megabytes are written and read again and again. Here convolution, activation and pooling are one
stage, which arranges their values in memory so that each is quick, and the whole network is one node of autograd. What
that gains is measured by `scripts/benchmark.py train`: compare its `own step` with `plain`.

A stage has a `forward`, which returns its output and what its backward will need, and a `backward`, which returns the
gradients of its input and of its parameters. Both are what the chain rule says, in the order that suits the machine:

    z = w * x + b       dw = x * dz,  db = Σ dz,  dx = dz transposed-convolved with w
    s = f(z)            dz = f'(z)·ds, where f' can be told from s, so that s may take the memory of z
    p = pool(s)         ds = dp / 4 in each of a window's four values; for the maximum, dp where it was found
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lenet.model import LeNet

Saved = tuple[Tensor, ...]
Pair = tuple[int, int]


class Stage(Protocol):
    """One step through the network, and back."""

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
        """The stage's output, and what `backward` needs."""

    def backward(self, saved: Saved, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient of the output to those of the input, the weight and the bias."""


class Fused:
    """A LeNet as fused stages.

    Args:
        net: its parameters are used where they are, not copied.

    Raises:
        ValueError: there are no stages for its layers: they are not PyTorch's own, or others are among them.
    """

    def __init__(self, net: LeNet) -> None:
        layers: dict[str, Any] = dict(net.named_children())
        activation, pooling = type(layers["act1"]), type(layers["pool1"])
        if activation not in ACTIVATIONS or pooling not in POOLINGS:
            raise ValueError(f"{activation.__name__} and {pooling.__name__} cannot be fused")
        with torch.device("meta"):
            known = LeNet(nn.Conv2d, pooling, activation)
        if str(net) != str(known) or getattr(layers["pool1"], "divisor_override", None) is not None:
            raise ValueError("only a LeNet of PyTorch's own layers, without further arguments, can be fused")
        f, pool = ACTIVATIONS[activation], POOLINGS[pooling]
        self.net = net
        self.layers = [layers[name] for name in ("conv1", "conv2", "fc1", "fc2", "fc3")]
        self.stages = (FirstBlock(f, pool), Block(f, pool), Linear(f), Linear(f), Linear(NONE))

    def fits(self, images: Tensor) -> bool:
        """Whether the stages are made for these images: 28×28, on the CPU, in single precision, without a gradient.

        And whether nobody listens to a layer, which would not be called.
        """
        return (
            images.device.type == "cpu"
            and images.dtype == self.layers[0].weight.dtype == torch.float32
            and images.shape[1:] == (1, 28, 28)
            and not images.requires_grad
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.net)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """From images (N, 1, 28, 28) to logits (N, 10); differentiable once, with respect to the parameters.

        Under autocast all stages compute in its dtype; the logits, the parameters and their gradients keep theirs.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        # Read anew each time: of a network that was moved to another device and back, they are other objects.
        parameters = [parameter for layer in self.layers for parameter in (layer.weight, layer.bias)]
        logits: Tensor = _Network.apply(images, self.stages, dtype, *parameters)
        return logits


def fused(net: nn.Module) -> Fused | None:
    """The network as fused stages, or None if there are none for it."""
    try:
        return Fused(net) if isinstance(net, LeNet) else None
    except ValueError:
        return None


class _Network(torch.autograd.Function):
    """All stages as one node. The parameters are arguments so that autograd knows of them."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, stages: Sequence[Stage], dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        values, ctx.stages, ctx.dtype, ctx.counts = images.to(dtype), stages, dtype, []
        kept: list[Tensor] = []
        for stage, weight, bias in zip(stages, parameters[::2], parameters[1::2], strict=True):
            values, saved = stage.forward(values, weight.to(dtype), bias.to(dtype))
            ctx.counts.append(len(saved))
            kept += saved
        # Autograd's own keeping: it lets go of them in time, and notices if one was changed in between.
        ctx.save_for_backward(*kept)
        return values.to(images.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dtype, gradient, gradients = gradient.dtype, gradient.to(ctx.dtype), list[Tensor]()
        kept = list(ctx.saved_tensors)
        for stage, count in zip(reversed(ctx.stages), reversed(ctx.counts), strict=True):
            saved = tuple(kept[-count:])
            del kept[-count:]
            gradient, weight, bias = stage.backward(saved, gradient)
            gradients[:0] = weight.to(dtype), bias.to(dtype)
        return None, None, None, *gradients


class Activation(NamedTuple):
    """An activation whose derivative can be told from its output."""

    apply_: Callable[[Tensor], Tensor]
    """In place."""

    backward: Callable[[Tensor, Tensor], Tensor]
    """From the output's gradient, which may be broadcast, and the output to the gradient of the input."""


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Sigmoid: Activation(torch.sigmoid_, torch.ops.aten.sigmoid_backward),
    nn.ReLU: Activation(torch.relu_, lambda gradient, output: torch.ops.aten.threshold_backward(gradient, output, 0)),
}
NONE = Activation(lambda values: values, lambda gradient, output: gradient)


Taps = Callable[[Tensor], Sequence[Tensor]]
"""Takes windows apart: a view of the first value of each, of the second, third and fourth."""


class Pooling(NamedTuple):
    """Pooling of windows of four values."""

    forward: Callable[[Sequence[Tensor]], Tensor]
    """From the taps of the windows to one value for each."""

    backward: Callable[[Tensor, Tensor, Tensor, Taps], Tensor]
    """From the output's gradient, the output (both with dimensions of size 1 where the windows have theirs), and the
    windows to their gradient, which may be broadcast."""


def _average(taps: Sequence[Tensor]) -> Tensor:
    first, second, third, fourth = taps
    return (first + second).add_(third).add_(fourth).mul_(1 / 4)


def _average_backward(gradient: Tensor, pooled: Tensor, windows: Tensor, taps: Taps) -> Tensor:
    return (gradient / 4).expand_as(windows)


def _largest(taps: Sequence[Tensor]) -> Tensor:
    first, second, third, fourth = taps
    largest = torch.maximum(first, second)
    torch.maximum(largest, third, out=largest)
    return torch.maximum(largest, fourth, out=largest)


def _largest_backward(gradient: Tensor, pooled: Tensor, windows: Tensor, taps: Taps) -> Tensor:
    result = torch.empty_like(windows)
    (largest, *_), (left, *_) = taps(pooled.expand_as(windows)), taps(gradient.expand_as(windows))
    for tap, place in zip(taps(windows), taps(result), strict=True):
        # As numbers: truth values take several times longer. Of equal values the first gets it all.
        won = torch.eq(tap, largest, out=torch.empty_like(largest)).mul_(left)
        place.copy_(won)
        left = left - won
    return result


POOLINGS: dict[type[nn.Module], Pooling] = {
    nn.AvgPool2d: Pooling(_average, _average_backward),
    nn.MaxPool2d: Pooling(_largest, _largest_backward),
}


class Block:
    """Convolution, activation and 2×2 pooling; channels-last in between, where PyTorch's convolution is fastest."""

    def __init__(self, activation: Activation, pooling: Pooling) -> None:
        self.activation, self.pooling = activation, pooling

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
        images = values.contiguous(memory_format=torch.channels_last)
        outputs = self.activation.apply_(F.conv2d(images, weight, bias))
        count, channels, height, width = outputs.shape
        windows = outputs.permute(0, 2, 3, 1).view(count, height // 2, 2, width // 2, 2, channels)
        pooled = self.pooling.forward(self._taps(windows))
        return pooled.permute(0, 3, 1, 2).contiguous(), (images, weight, windows, pooled)

    def backward(self, saved: Saved, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, own, windows, pooled = saved
        count, rows, _, columns, _, channels = windows.shape
        gradient, pooled = (
            each.reshape(count, rows, 1, columns, 1, channels)
            for each in (gradient.permute(0, 2, 3, 1).contiguous(), pooled)
        )
        outer = self.activation.backward(self.pooling.backward(gradient, pooled, windows, self._taps), windows)
        outer = outer.reshape(count, 2 * rows, 2 * columns, channels).permute(0, 3, 1, 2)
        stride, padding = (1, 1), (0, 0)
        _, weight, bias = _convolution_backward(outer, images, own, stride, padding, inner=False)
        # The gradient of the input comes faster in the standard layout, the copy included. Of the input only the shape
        # matters here.
        standard, shape = outer.contiguous(), images.new_empty(images.shape)
        inner, _, _ = _convolution_backward(standard, shape, own, stride, padding, inner=True)
        return inner, weight, bias

    @staticmethod
    def _taps(windows: Tensor) -> Sequence[Tensor]:
        return [value for row in windows.unbind(2) for value in row.unbind(3)]


class FirstBlock:
    """Convolution, activation and 2×2 pooling of images, which themselves need no gradient.

    The eight outputs in two pooling windows side by side are computed as eight channels of one convolution with stride
    (2, 4), whose kernels hold the layer's own at eight places, and zeros. So LeNet's six channels become 48, which fill
    the processor's registers, of sixteen numbers, without a rest, and pooling adds up whole channels. It takes 48
    products instead of 25 for each output, and is faster all the same.
    """

    STRIDE, PADDING = (2, 4), (2, 2)

    def __init__(self, activation: Activation, pooling: Pooling) -> None:
        self.activation, self.pooling = activation, pooling
        self._places = _places(5, 5)

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
        channels, inputs, height, width = weight.shape
        kernels = (weight.reshape(channels * inputs, -1) @ self._places.to(weight)).view(channels, inputs, 8, -1)
        kernels = kernels.permute(2, 0, 1, 3).reshape(8 * channels, inputs, height + 1, width + 3)
        outputs = F.conv2d(values, kernels, bias.repeat(8), self.STRIDE, self.PADDING)
        count, _, rows, pairs = outputs.shape
        windows = self.activation.apply_(outputs).view(count, 2, 4, channels, rows, pairs)
        pooled = self.pooling.forward(self._taps(windows))
        images = pooled.permute(0, 3, 4, 1, 2).reshape(count, rows, 2 * pairs, channels).permute(0, 3, 1, 2)
        return images, (values, kernels, windows, pooled)

    def backward(self, saved: Saved, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, kernels, windows, pooled = saved
        count, _, _, channels, rows, pairs = windows.shape
        gradient = gradient.reshape(count, channels, rows, pairs, 2).permute(0, 4, 1, 2, 3).contiguous()
        each = self.pooling.backward(gradient[:, :, None], pooled[:, :, None], windows, self._taps)
        outer = self.activation.backward(each, windows).reshape(count, 8 * channels, rows, pairs)
        inner, places, bias = _convolution_backward(outer, values, kernels, self.STRIDE, self.PADDING, inner=False)
        at_places = places.view(8, channels * kernels.shape[1], -1).transpose(0, 1).flatten(1)
        weight = (at_places @ self._places.to(places).T).view(channels, -1, 5, 5)
        return inner, weight, bias.view(8, channels).sum(0)

    @staticmethod
    def _taps(windows: Tensor) -> Sequence[Tensor]:
        return windows.unbind(2)


class Linear:
    """Linear layer and activation; flattens its input."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Saved]:
        outputs = self.activation.apply_(F.linear(values.flatten(1), weight, bias))
        return outputs, (values, weight, outputs)

    def backward(self, saved: Saved, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, weight, outputs = saved
        outer = self.activation.backward(gradient, outputs)
        return (outer @ weight).view_as(values), outer.T @ values.flatten(1), outer.sum(0)


def _places(height: int, width: int) -> Tensor:
    """Where a kernel's weights stand in the eight kernels of two pooling windows, (height + 1)×(width + 3) each.

    Shape: (height·width, 8·(height + 1)·(width + 3)), zeros and ones. The eight: by window, by row, by column.
    """
    places = torch.zeros(height, width, 2, 2, 2, height + 1, width + 3)
    for i, j, window, row, column in product(range(height), range(width), (0, 1), (0, 1), (0, 1)):
        places[i, j, window, row, column, i + row, j + 2 * window + column] = 1
    return places.flatten(2).flatten(0, 1)


def _convolution_backward(
    gradient: Tensor, values: Tensor, weight: Tensor, stride: Pair, padding: Pair, inner: bool
) -> Any:
    """The gradients of a convolution's input, or else those of its weight and bias; the others are None."""
    return torch.ops.aten.convolution_backward(
        gradient,
        values,
        weight,
        bias_sizes=[len(weight)],
        stride=stride,
        padding=padding,
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[inner, not inner, not inner],
    )
