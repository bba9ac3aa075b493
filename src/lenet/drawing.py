"""Matrices as aligned text, and planes of numbers as pictures."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor


def matrix_text(values: Tensor, form: str = "g") -> str:
    """A matrix (H, W) as aligned lines."""
    cells = [[f"{value:{form}}" for value in row] for row in values.tolist()]
    width = max(len(cell) for row in cells for cell in row)
    return "\n".join(" ".join(cell.rjust(width) for cell in row) for row in cells)


def side_by_side(matrices: dict[str, Tensor], form: str = "g") -> str:
    """Matrices as one block of text, each under its name."""
    blocks = [[name, *matrix_text(values, form).splitlines()] for name, values in matrices.items()]
    height = max(len(block) for block in blocks)
    columns = [[line.ljust(max(map(len, block))) for line in block + [""] * (height - len(block))] for block in blocks]
    return "\n".join("   ".join(line).rstrip() for line in zip(*columns, strict=True))


def images(planes: dict[str, Tensor], width: float = 8, per_row: int = 6, signed: bool = False) -> Figure:
    """Planes (H, W) as pictures side by side, each under its name; dark is large, or red and blue if signed."""
    rows = -(-len(planes) // per_row)
    columns = min(len(planes), per_row)
    figure = Figure(figsize=(width, rows * (width / columns + 0.35)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, plane) in zip(axes, planes.items(), strict=False):
        _draw(axis, plane.detach(), signed or bool((plane < 0).any()))
        axis.set_title(name, fontsize=9)
    return figure


def _draw(axis: Axes, plane: Tensor, signed: bool) -> None:
    most = max(plane.abs().max().item(), 1e-9)
    axis.imshow(plane.numpy(), cmap="RdBu_r" if signed else "Greys", vmin=-most if signed else 0, vmax=most)
    axis.add_patch(Rectangle((-0.5, -0.5), plane.shape[1], plane.shape[0], fill=False, edgecolor="grey", linewidth=0.8))
