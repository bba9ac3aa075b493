"""The layers: torch.nn's classes, computing with this package's functions.

Parameters, their initialisation, their names in a checkpoint and the checks of the constructor are inherited: a layer
and its namesake in torch.nn can take each other's place. All take one argument more, `algorithm`, one of
`lenet.layers.functional.ALGORITHMS`; another one raises a ValueError. It makes no difference to a pooling.

Shapes and errors are those of the functions in functional.py: (N, C, H, W) to (N, O, H', W'), or both without N.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import functional
from lenet.layers.geometry import padding_at_edges, pair, transposed_size


class _WithAlgorithm(nn.Module):
    """Adds the argument `algorithm` to the constructor of one of torch.nn's classes."""

    def __init__(self, *arguments: Any, algorithm: str = "im2col", **named: Any) -> None:
        functional.algorithm_named(algorithm)
        super().__init__(*arguments, **named)
        self.algorithm = algorithm

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, algorithm={self.algorithm}"


class Conv2d(_WithAlgorithm, nn.Conv2d):
    """Convolution, with zeros or, by `padding_mode`, other values at the edges."""

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            stride, dilation = pair("stride", self.stride, least=1), pair("dilation", self.dilation, least=1)
            edges = padding_at_edges(padding, (self.kernel_size[0], self.kernel_size[-1]), stride, dilation)
            input, padding = F.pad(input, edges, mode=self.padding_mode), 0
        options = (self.stride, padding, self.dilation, self.groups, self.algorithm)
        return functional.conv2d(input, self.weight, self.bias, *options)


class ConvTranspose2d(_WithAlgorithm, nn.ConvTranspose2d):
    """Transposed convolution; `forward` also takes an `output_size` (H', W') in place of `output_padding`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding, stride, dilation = (pair(name, getattr(self, name), 0) for name in ("padding", "stride", "dilation"))
        extra = self.output_padding
        if output_size is not None:
            full = transposed_size(input, self.weight, stride, dilation)
            extra = tuple(output_size[i - 2] - full[i] + 2 * padding[i] for i in (0, 1))
        options = (stride, padding, extra, self.groups, dilation, self.algorithm)
        return functional.conv_transpose2d(input, self.weight, self.bias, *options)


class MaxPool2d(_WithAlgorithm, nn.MaxPool2d):
    """Max pooling; with `return_indices` it returns the output and the indices."""

    def forward(self, input: Tensor) -> Any:
        windows = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return functional.max_pool2d(input, *windows, self.return_indices)


class AvgPool2d(_WithAlgorithm, nn.AvgPool2d):
    """Average pooling."""

    def forward(self, input: Tensor) -> Tensor:
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return functional.avg_pool2d(input, *windows, self.count_include_pad, self.divisor_override)


def with_builtin_layers(net: nn.Module) -> nn.Module:
    """A copy of a network in which each of these layers is torch.nn's, with the same parameters."""
    net = deepcopy(net)
    for layer in net.modules():
        if type(layer) in (Conv2d, ConvTranspose2d, MaxPool2d, AvgPool2d):
            layer.__class__ = type(layer).__bases__[1]  # they differ in `forward` alone
    return net
