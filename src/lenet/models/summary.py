"""The table of a network's stages: output shape, parameters, multiply-adds, receptive field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One row of the table: a layer of the network.

    Attributes:
        name: path of the layer in the network, such as `conv1` or `block.0.conv`.
        kind: name of its class.
        output_shape: without the batch dimension.
        parameters: how many.
        multiply_adds: of the forward pass of one image.
        input_multiply_adds: further ones of the backward pass, for the gradient of the layer's input.
        receptive_field: (height, width) of the pixels that one output value depends on; None if that is not known,
            because the network is not a sequence of layers.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    input_multiply_adds: int
    receptive_field: tuple[int, int] | None


@torch.no_grad()
def stages(net: nn.Module, input_shape: Sequence[int] = (1, 28, 28)) -> list[Stage]:
    """Run a network on one image of zeros of shape (C, H, W), and describe each layer that has no layers inside.

    Multiply-adds are those of convolutions and linear layers; biases, activations and pooling are not counted.
    The backward pass costs as many again for the weights, and as many for the layer's input, except that the
    image itself needs no gradient.
    """
    rows: list[Stage] = []
    names = {module: name for name, module in net.named_modules() if not any(module.children())}
    is_sequence = type(net).forward is nn.Sequential.forward and len(names) == len(list(net.children()))
    field = _ReceptiveField(input_shape[-2], input_shape[-1])

    def describe(layer: nn.Module, _: Any, output: Tensor) -> None:
        field.pass_through(layer)
        cost = _multiply_adds(layer, output)
        rows.append(
            Stage(
                name=names[layer],
                kind=type(layer).__name__,
                output_shape=tuple(output.shape[1:]),
                parameters=sum(p.numel() for p in layer.parameters()),
                multiply_adds=cost,
                input_multiply_adds=cost if any(row.parameters for row in rows) else 0,
                receptive_field=field.size if is_sequence else None,
            )
        )

    hooks = [layer.register_forward_hook(describe) for layer in names]
    training = net.training
    try:
        example = next(net.parameters(), torch.zeros(()))
        net.eval()(example.new_zeros(1, *input_shape))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return rows


class _ReceptiveField:
    """Grows from layer to layer.

    A window of size k, stride s and dilation d over a field of r pixels whose neighbours lie j pixels apart sees
    r + (k - 1)·d·j pixels; neighbours then lie j·s apart. (Dumoulin and Visin, "A guide to convolution arithmetic for
    deep learning", 2016.)
    """

    def __init__(self, height: int, width: int) -> None:
        self.image_size = (height, width)
        self.size, self._distance = (1, 1), (1, 1)

    def pass_through(self, layer: nn.Module) -> None:
        if isinstance(layer, nn.Linear):
            self.size = self.image_size
        elif hasattr(layer, "kernel_size"):
            kernel, stride, dilation = (_pair(getattr(layer, key, 1)) for key in ("kernel_size", "stride", "dilation"))
            sizes = [self.size[i] + (kernel[i] - 1) * dilation[i] * self._distance[i] for i in (0, 1)]
            self.size = min(self.image_size[0], sizes[0]), min(self.image_size[1], sizes[1])
            self._distance = self._distance[0] * stride[0], self._distance[1] * stride[1]


def multiply_adds(rows: Iterable[Stage]) -> tuple[int, int]:
    """Multiply-adds for one image: (forward, forward and backward)."""
    rows = list(rows)
    forward = sum(row.multiply_adds for row in rows)
    return forward, 2 * forward + sum(row.input_multiply_adds for row in rows)


def table(rows: Sequence[Stage]) -> str:
    """The stages as aligned text, totals below."""
    width = max(9, *(len(row.name) + 1 for row in rows)) if rows else 9
    line = f"{{:<{width}}}{{:<12}}{{:>12}}{{:>12}}{{:>15}}{{:>17}}".format
    forward, both = multiply_adds(rows)
    lines = [line("stage", "layer", "output", "parameters", "multiply-adds", "receptive field")]
    lines += [
        line(
            row.name,
            row.kind,
            _times(row.output_shape),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.multiply_adds:,}" if row.multiply_adds else "",
            _times(row.receptive_field or ()),
        )
        for row in rows
    ]
    lines += [
        line("total", "", "", f"{sum(row.parameters for row in rows):,}", f"{forward:,}", "").rstrip(),
        f"Multiply-adds are per image, forward; forward and backward together: {both:,}.",
    ]
    return "\n".join(lines)


def _multiply_adds(layer: nn.Module, output: Tensor) -> int:
    # Each output value of a convolution or a linear layer is a sum over one output channel's weights.
    weight = getattr(layer, "weight", None)
    return output[0].numel() * prod(weight.shape[1:]) if isinstance(weight, Tensor) and weight.dim() >= 2 else 0


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
