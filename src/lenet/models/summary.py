"""A table of a model's stages: output shape, parameters, multiply-adds, receptive field."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        output_shape: without the batch dimension.
        multiply_adds: for the forward pass of one image.
        input_multiply_adds: further ones in the backward pass, for the gradient of the stage's input.
        receptive_field: (height, width) of the pixels that one output value depends on.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    input_multiply_adds: int
    receptive_field: tuple[int, int]


@torch.no_grad()
def stages(model: nn.Sequential, input_shape: tuple[int, int, int] = (1, 28, 28)) -> list[Stage]:
    """Measure each stage of a sequential model on one image of zeros of shape (C, H, W).

    Multiply-adds are those of convolutions and linear layers; biases, activations and pooling are not counted.
    The backward pass costs as many again for the weights, and as many for the stage's input, except that the
    image itself needs no gradient.

    Receptive field of a window of size k, stride s and dilation d over a field of r pixels whose neighbours lie
    j pixels apart: r + (k - 1) * d * j pixels, neighbours then j * s apart. (Dumoulin and Visin, "A guide to
    convolution arithmetic for deep learning", 2016.)
    """
    image_size = input_shape[1:]
    field, jump = (1, 1), (1, 1)
    values = next(model.parameters()).new_zeros(1, *input_shape)
    rows: list[Stage] = []
    for name, stage in model.named_children():
        output = stage(values)
        if isinstance(stage, nn.Linear):
            field = image_size
        elif hasattr(stage, "kernel_size"):
            kernel, stride, dilation = (_pair(getattr(stage, key, 1)) for key in ("kernel_size", "stride", "dilation"))
            field = _both(min(image_size[i], field[i] + (kernel[i] - 1) * dilation[i] * jump[i]) for i in (0, 1))
            jump = _both(jump[i] * stride[i] for i in (0, 1))
        cost = _multiply_adds(stage, output)
        rows.append(
            Stage(
                name=name,
                kind=type(stage).__name__,
                output_shape=tuple(output.shape[1:]),
                parameters=sum(p.numel() for p in stage.parameters()),
                multiply_adds=cost,
                input_multiply_adds=cost if any(row.parameters for row in rows) else 0,
                receptive_field=field,
            )
        )
        values = output
    return rows


def multiply_adds(rows: Iterable[Stage]) -> tuple[int, int]:
    """Multiply-adds for one image: (forward, forward and backward)."""
    rows = list(rows)
    forward = sum(row.multiply_adds for row in rows)
    return forward, 2 * forward + sum(row.input_multiply_adds for row in rows)


def table(rows: list[Stage]) -> str:
    """The stages as aligned text, totals below."""
    line = "{:<9}{:<12}{:>12}{:>12}{:>15}{:>17}".format
    forward, both = multiply_adds(rows)
    return "\n".join(
        [
            line("stage", "layer", "output", "parameters", "multiply-adds", "receptive field"),
            *(
                line(
                    row.name,
                    row.kind,
                    "×".join(map(str, row.output_shape)),
                    f"{row.parameters:,}" if row.parameters else "",
                    f"{row.multiply_adds:,}" if row.multiply_adds else "",
                    "×".join(map(str, row.receptive_field)),
                )
                for row in rows
            ),
            line("total", "", "", f"{sum(row.parameters for row in rows):,}", f"{forward:,}", ""),
            f"Multiply-adds are per image, forward; forward and backward together: {both:,}.",
        ]
    )


def _multiply_adds(stage: nn.Module, output: Tensor) -> int:
    # Each output value of a convolution or a linear layer is a sum over one output channel's weights.
    weight = getattr(stage, "weight", None)
    return output[0].numel() * prod(weight.shape[1:]) if isinstance(weight, Tensor) and weight.dim() >= 2 else 0


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _both(values: Iterable[int]) -> tuple[int, int]:
    height, width = values
    return height, width
