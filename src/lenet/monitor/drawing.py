"""Matrices as aligned text, and planes of numbers as pictures.

A run draws in every epoch: Pillow takes milliseconds for that, a plotting library a hundred times as long.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

Array = NDArray[Any]
Colour = tuple[int, int, int]

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (102, 102, 102)
GREEN, RED, BLUE = (44, 140, 60), (178, 24, 43), (33, 102, 172)

PALETTE = Image.new("P", (1, 1))
SHADES = [np.linspace((252, 252, 252), colour, 64) for colour in (BLACK, GREEN, RED, BLUE)]
PALETTE.putpalette(np.concatenate(SHADES).astype(np.uint8).tobytes())
"""With it, encoding takes a third of the time. Pillow looks a pixel up as if it were darker by up to 3."""

TEXT_SIZE, LINE, GAP = 12, 17, 8
"""In pixels: of letters, from line to line, and between planes."""


def side_by_side(matrices: dict[str, Tensor], form: str = "g") -> str:
    """Matrices (H, W) as one block of aligned text, each under its name."""
    blocks = []
    for name, values in matrices.items():
        cells = [[f"{value:{form}}" for value in row] for row in values.tolist()]
        width = max(len(cell) for row in cells for cell in row)
        blocks.append([name, *(" ".join(cell.rjust(width) for cell in row) for row in cells)])
    widths = [max(map(len, block)) for block in blocks]
    rows = zip_longest(*blocks, fillvalue="")
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


class Tile(NamedTuple):
    """A plane (H, W) with a caption: bytes, of which 255 is black, or numbers, of which the largest is."""

    caption: str
    plane: Array
    colour: Colour = GREY  # of the caption and the frame


def images(planes: Mapping[str, Tensor], width: int = 900, per_row: int = 6, signed: bool = False) -> Image.Image:
    """Planes (H, W) as pictures side by side, each under its name; dark is large, or red and blue if signed."""
    return sheet([Tile(name, plane.detach().numpy()) for name, plane in planes.items()], width, per_row, signed)


def sheet(tiles: Sequence[Tile], width: int = 900, per_row: int = 6, signed: bool = False) -> Image.Image:
    """The tiles in rows, at most `width` pixels wide; see `images`."""
    columns = min(per_row, len(tiles))
    across = (width - GAP) // columns - GAP
    pictures = [_picture(tile.plane, across, signed) for tile in tiles]
    above = LINE * max(tile.caption.count("\n") + 1 for tile in tiles)
    down = above + max(picture.height for picture in pictures) + 2 * GAP
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (GAP + columns * (across + GAP), rows * down), WHITE)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (across + GAP), GAP + row * down
        for line, words in enumerate(tile.caption.split("\n")):
            canvas.paste(tile.colour, (left, top + line * LINE - 2), _text(words, across + GAP - 2))
        canvas.paste(ImageOps.expand(picture, 2, tile.colour), (left - 2, top + above - 2))
    return canvas


def confusion(counts: Array, class_names: Sequence[str]) -> Image.Image:
    """How often images of each class (rows of counts, (N, N)) were taken for each class (columns)."""
    cell = 36 if len(class_names) <= 20 else LINE  # then there is no room for numbers
    edge, size, indent = 84, cell * len(class_names), (cell - LINE) // 2
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    canvas = Image.new("RGB", (edge + max(size, 400), edge + size + LINE + GAP), WHITE)
    canvas.paste(_picture((shares * 255).astype(np.uint8), size), (edge, edge))
    for number, name in enumerate(class_names):
        label, start = _text(name, edge - 6), edge + number * cell + indent
        canvas.paste(BLACK, (edge - 6 - label.width, start), label)
        canvas.paste(BLACK, (start, edge - 6 - label.width), label.transpose(Image.Transpose.ROTATE_90))
    for row, column in np.argwhere(counts) if cell > LINE else ():
        text, colour = _text(f"{counts[row, column]}", cell), WHITE if shares[row, column] > 0.5 else BLACK
        left = edge + column * cell + (cell - text.width) // 2
        canvas.paste(colour, (left, edge + row * cell + indent), text)
    canvas.paste(BLACK, (edge, edge + size + 2), _text("rows: the true class; columns: the predicted class", 400))
    return canvas


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's, which has letters like ×; found without the time that importing matplotlib takes."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    return ImageFont.truetype(Path(package.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", TEXT_SIZE)


@lru_cache(4096)  # the same few words, epoch after epoch
def _text(words: str, room: int) -> Image.Image:
    """A line of text as a mask, which `paste` fills with a colour, cut off where there is no room."""
    image = Image.new("L", (min(int(_font().getlength(words)) + 1, room), LINE))
    ImageDraw.Draw(image).text((0, LINE // 2), words, fill=255, font=_font(), anchor="lm")
    return image


def _picture(plane: Array, across: int, signed: bool = False) -> Image.Image:
    """Zero is white, the largest black, or red and blue; each number a square, `across` pixels wide in all."""
    values = plane / (255 if plane.dtype == np.uint8 else max(float(np.abs(plane).max()), 1e-9))
    if signed or (values < 0).any():
        colours = np.where(values[..., None] > 0, RED, BLUE)
        shades = (255 - np.abs(values)[..., None] * (255 - colours)).round()
        picture = Image.fromarray(shades.astype(np.uint8))
    else:
        picture = Image.fromarray((255 - values * 255).round().astype(np.uint8)).convert("RGB")
    times = max(1, across // picture.width)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
