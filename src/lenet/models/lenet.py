"""LeNet as a readable list of named stages.

61,706 parameters and 416,520 multiply-adds for an image; a test accuracy of 0.82 on Fashion-MNIST as published, and of
0.90 with ReLU-like activations and batch normalisation. LeCun et al., "Gradient-based learning applied to document
recognition" (1998), in the simplified form that d2l.ai teaches: plain average pooling, full connections between the
convolutions, no Gaussian output layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from lenet.errors import UserError

ModuleFactory = Callable[..., nn.Module]

IMAGE_SIZE = 28
"""Height and width of the images, in pixels."""


class LeNet(nn.Sequential):
    """Two convolutions and some linear layers: from a 28×28 image to the logits of the classes.

    Args:
        channels: output channels of the two convolutions.
        kernel_size: of both convolutions. The first one pads the image so that an odd kernel keeps its size.
        hidden: outputs of the linear layers before the last.
        activation: makes an activation, called without arguments.
        pool: makes a pooling layer, called as `pool(kernel_size=2)`.
        norm: makes a normalisation, called as `norm(channels)`. It comes after the pooling, where there are fewer
            values, and before the activation. None leaves it out.
        hidden_norm: the same for the linear layers.
        dropout: probability of dropping a value before the second and each later linear layer; 0 leaves the layer out.
        in_channels: channels of the images.
        classes: how many logits.
        conv: makes a convolution from torch.nn.Conv2d's arguments.

    Attributes:
        description: the arguments as plain values, from which the same network can be made again; None if one of them
            has no name that could be imported, as a lambda.

    Shapes: input (N, in_channels, 28, 28), floating point; output (N, classes).

    Raises:
        UserError: the kernel leaves nothing of the image.
    """

    def __init__(
        self,
        channels: Sequence[int] = (6, 16),
        kernel_size: int = 5,
        hidden: Sequence[int] = (120, 84),
        activation: ModuleFactory = nn.Sigmoid,
        pool: ModuleFactory = nn.AvgPool2d,
        norm: ModuleFactory | None = None,
        hidden_norm: ModuleFactory | None = None,
        dropout: float = 0.0,
        in_channels: int = 1,
        classes: int = 10,
        conv: ModuleFactory = nn.Conv2d,
    ) -> None:
        first, second = channels
        padding = kernel_size // 2
        size = (IMAGE_SIZE + 2 * padding - kernel_size + 1) // 2  # 28 → 14
        size = (size - kernel_size + 1) // 2  # 14 → 10 → 5
        if size < 1:
            raise UserError(f"model.kernel_size={kernel_size}: leaves nothing of the image; use 13 or less")

        def block(number: int, convolution: nn.Module, outputs: int) -> Iterator[tuple[str, nn.Module]]:
            yield f"conv{number}", convolution
            if norm is None:
                yield f"act{number}", activation()
                yield f"pool{number}", pool(kernel_size=2)
            else:
                yield f"pool{number}", pool(kernel_size=2)
                yield f"norm{number}", norm(outputs)
                yield f"act{number}", activation()

        def head() -> Iterator[tuple[str, nn.Module]]:
            width = second * size * size  # 16·5·5 = 400
            for number, outputs in enumerate(hidden, start=1):
                yield f"fc{number}", nn.Linear(width, outputs)
                if hidden_norm is not None:
                    yield f"norm{number + 2}", hidden_norm(outputs)
                yield f"act{number + 2}", activation()
                if dropout > 0:
                    yield f"drop{number}", nn.Dropout(dropout)
                width = outputs
            yield f"fc{len(hidden) + 1}", nn.Linear(width, classes)

        stages = [
            *block(1, conv(in_channels, first, kernel_size=kernel_size, padding=padding), first),  # 6×14×14
            *block(2, conv(first, second, kernel_size=kernel_size), second),  # 16×5×5
            ("flatten", nn.Flatten()),
            *head(),  # 120, 84, 10
        ]
        super().__init__(OrderedDict(stages))
        arguments = {
            "channels": list(channels), "kernel_size": kernel_size, "hidden": list(hidden), "activation": activation,
            "pool": pool, "norm": norm, "hidden_norm": hidden_norm, "dropout": dropout, "in_channels": in_channels,
            "classes": classes, "conv": conv,
        }  # fmt: skip
        self.description = _described(arguments)


def _described(arguments: dict[str, Any]) -> dict[str, Any] | None:
    described: dict[str, Any] = {"_target_": "lenet.models.LeNet"}
    for name, value in arguments.items():
        if callable(value):
            factory = value.func if isinstance(value, partial) else value
            keywords = value.keywords if isinstance(value, partial) else {}
            if not isinstance(factory, type) or "<locals>" in factory.__qualname__:
                return None
            path = f"{factory.__module__}.{factory.__qualname__}"
            described[name] = {"_target_": path, "_partial_": True, **keywords}
        else:
            described[name] = value
    return described


def xavier_uniform_(model: nn.Module) -> None:
    """Draw every weight of two or more dimensions from Xavier's uniform distribution; leave the others as they are.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010): the
    bound sqrt(6 / (fan_in + fan_out)) keeps the variance of activations and gradients alike from layer to layer.
    """
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.xavier_uniform_(parameter)
