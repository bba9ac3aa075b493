"""The table of a network's stages: output shape, parameters, multiply-adds, receptive field."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lenet.models.lenet import LeNet


class LayerRow(NamedTuple):
    """One row of the table: a layer of the network; output_shape is that for one image."""

    name: str  # path in the network, such as `conv1` or `block.0.conv`
    kind: str  # name of its class
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int  # of the forward pass of one image
    input_multiply_adds: int  # further ones of the backward pass, for the gradient of the layer's input
    receptive_field: tuple[int, int] | None  # height and width, in pixels; None if the network is no sequence of layers


@torch.no_grad()
def stages(net: nn.Module, input_shape: Sequence[int] = (1, 28, 28)) -> list[LayerRow]:
    """Run a network on one image of zeros of shape (C, H, W), and describe each layer that has no layers inside.

    A layer that is used twice has two rows, the second without parameters. One that returns something else than a
    tensor has no output shape, and its cost is not counted.

    Multiply-adds are those of convolutions and linear layers; biases, activations and pooling are not counted.
    The backward pass costs as many again for the weights, and as many for the layer's input, except that the
    image itself needs no gradient.

    A window of size k, stride s and dilation d over a receptive field of r pixels whose neighbours lie j pixels apart
    sees r + (k - 1)·d·j pixels; neighbours then lie j·s apart. (Dumoulin and Visin, "A guide to convolution arithmetic
    for deep learning", 2016.)
    """
    rows: list[LayerRow] = []
    names = {module: name for name, module in net.named_modules() if not any(module.children())}
    is_sequence = type(net).forward in (nn.Sequential.forward, LeNet.forward) and len(names) == len(
        list(net.children())
    )
    field, distance = [1, 1], [1, 1]

    def describe(layer: nn.Module, _: Any, output: Any) -> None:
        shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        # Each output value of a convolution or a linear layer is a sum over one output channel's weights.
        weight, cost = getattr(layer, "weight", None), 0
        if shape and isinstance(weight, Tensor) and weight.dim() >= 2:
            cost = prod(shape) * prod(weight.shape[1:])
        if isinstance(layer, nn.Linear):
            field[:] = input_shape[-2:]
        elif hasattr(layer, "kernel_size") and len(shape) == 3:
            window = [getattr(layer, key, 1) for key in ("kernel_size", "stride", "dilation")]
            kernel, stride, dilation = ((value, value) if isinstance(value, int) else value for value in window)
            for side in (0, 1):
                field[side] += (kernel[side] - 1) * dilation[side] * distance[side]
                field[side] = min(field[side], input_shape[side - 2])
                distance[side] *= stride[side]
        input_cost = cost if any(row.parameters for row in rows) else 0
        is_known = names[layer] in [row.name for row in rows]
        count = 0 if is_known else sum(parameter.numel() for parameter in layer.parameters())
        seen = (field[0], field[1]) if is_sequence else None
        rows.append(LayerRow(names[layer], type(layer).__name__, shape, count, cost, input_cost, seen))

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


def multiply_adds(rows: Sequence[LayerRow]) -> tuple[int, int]:
    """Multiply-adds for one image: (forward, forward and backward)."""
    forward = sum(row.multiply_adds for row in rows)
    return forward, 2 * forward + sum(row.input_multiply_adds for row in rows)


def table(rows: Sequence[LayerRow]) -> str:
    """The stages as aligned text, totals below."""
    width = max([9, *(len(row.name) + 1 for row in rows)])
    line = f"{{:<{width}}}{{:<12}}{{:>12}}{{:>12}}{{:>15}}{{:>17}}".format
    lines = [line("stage", "layer", "output", "parameters", "multiply-adds", "receptive field")]
    for row in rows:
        numbers = (f"{number:,}" if number else "" for number in (row.parameters, row.multiply_adds))
        lines.append(line(row.name, row.kind, _times(row.output_shape), *numbers, _times(row.receptive_field or ())))
    forward, both = multiply_adds(rows)
    lines.append(line("total", "", "", f"{sum(row.parameters for row in rows):,}", f"{forward:,}", "").rstrip())
    lines.append(f"Multiply-adds are per image, forward; forward and backward together: {both:,}.")
    return "\n".join(lines)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
