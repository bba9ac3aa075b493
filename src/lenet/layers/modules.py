"""The layers: torch.nn's classes, computing with this package's functions.

Parameters, how they are initialised, their names in a checkpoint and the checks of the constructor are inherited, so
that a layer and its namesake in torch.nn can take each other's place. What is computed is computed here.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import functional
from lenet.layers.geometry import Pair, Size, padding_at_edges, pair, span


class _WithAlgorithm(nn.Module):
    """Adds the argument `algorithm` to the constructor of one of torch.nn's classes."""

    def __init__(self, *arguments: Any, algorithm: str = "im2col", **named: Any) -> None:
        functional.algorithm_named(algorithm)
        super().__init__(*arguments, **named)
        self.algorithm = algorithm

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, algorithm={self.algorithm}"


class Conv2d(_WithAlgorithm, nn.Conv2d):
    """Convolution: all arguments of torch.nn.Conv2d, and `algorithm`, one of `lenet.layers.functional.ALGORITHMS`.

    Shapes: (N, C, H, W) to (N, O, H', W'), or the same without N; see `lenet.layers.functional.conv2d`.

    Raises:
        ValueError: an unknown algorithm, or an argument that torch.nn.Conv2d refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            stride, dilation = pair("stride", self.stride, least=1), pair("dilation", self.dilation, least=1)
            edges = padding_at_edges(padding, (self.kernel_size[0], self.kernel_size[-1]), stride, dilation)
            input, padding = F.pad(input, edges, mode=self.padding_mode), 0
        return functional.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups, self.algorithm
        )


class ConvTranspose2d(_WithAlgorithm, nn.ConvTranspose2d):
    """Transposed convolution: all arguments of torch.nn.ConvTranspose2d, and `algorithm`.

    Shapes: (N, C, H, W) to (N, O, H', W'), or the same without N; see `lenet.layers.functional.conv_transpose2d`.

    Raises:
        ValueError: an unknown algorithm, or an argument that torch.nn.ConvTranspose2d refuses.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Transposed convolution; `output_size` (H', W'), if given, takes the place of `output_padding`.

        Raises:
            ValueError: no output padding gives that size.
        """
        padding: Any = self.output_padding if output_size is None else self._padding_for(input, output_size)
        return functional.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            cast(Size, self.padding),  # a string is refused there
            padding,
            self.groups,
            self.dilation,
            self.algorithm,
        )

    def _padding_for(self, input: Tensor, output_size: list[int]) -> Pair:
        if len(output_size) not in (2, input.dim()):
            raise ValueError(f"output_size={output_size}: should be (height, width), or a size for each dimension")
        stride, cut = pair("stride", self.stride, least=1), pair("padding", cast(Size, self.padding), least=0)
        dilation = pair("dilation", self.dilation, least=1)
        covered = span((self.kernel_size[0], self.kernel_size[-1]), dilation)
        extra = []
        for i in (0, 1):
            least = (input.shape[i - 2] - 1) * stride[i] - 2 * cut[i] + covered[i]
            extra.append(output_size[i - 2] - least)
            if not 0 <= extra[i] < stride[i]:
                raise ValueError(
                    f"output_size={output_size}: should be from {least} to {least + stride[i] - 1} in dimension"
                    f" {i - 2}, got {output_size[i - 2]}"
                )
        return extra[0], extra[1]


class MaxPool2d(_WithAlgorithm, nn.MaxPool2d):
    """Max pooling: all arguments of torch.nn.MaxPool2d, and `algorithm`, which makes no difference to a pooling.

    Shapes: (N, C, H, W) to (N, C, H', W'), or the same without N; see `lenet.layers.functional.max_pool2d`.

    Raises:
        ValueError: an unknown algorithm.
    """

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(_WithAlgorithm, nn.AvgPool2d):
    """Average pooling: all arguments of torch.nn.AvgPool2d, and `algorithm`, which makes no difference to a pooling.

    Shapes: (N, C, H, W) to (N, C, H', W'), or the same without N; see `lenet.layers.functional.avg_pool2d`.

    Raises:
        ValueError: an unknown algorithm.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
