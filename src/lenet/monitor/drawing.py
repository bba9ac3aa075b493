"""Matrices as aligned text, and planes of numbers as pictures.

Pictures are put together from arrays, pixel by pixel, because a training run draws some in every epoch: that takes
milliseconds, where a plotting library needs tenths of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Array = NDArray[Any]
Pixels = NDArray[np.uint8]
"""(H, W), indices into the palette."""


class Ink(NamedTuple):
    """A part of the palette: from white to a colour, in so many steps."""

    first: int
    steps: int
    colour: tuple[int, int, int]


GREY, GREEN = Ink(0, 160, (0, 0, 0)), Ink(160, 32, (44, 140, 60))
RED, BLUE = Ink(192, 32, (178, 24, 43)), Ink(224, 32, (33, 102, 172))
PALETTE = np.concatenate(
    [255 + np.linspace(0, 1, ink.steps)[:, None] * (np.array(ink.colour) - 255) for ink in (GREY, GREEN, RED, BLUE)]
).astype(np.uint8)
"""One byte a pixel is saved in a third of the time that three take."""

TEXT_SIZE, LINE, GAP = 13, 17, 8
"""In pixels: of letters, from line to line, and between planes."""


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


class Tile(NamedTuple):
    """A plane with what is to stand above it.

    Attributes:
        caption: a line, or several.
        plane: (H, W); bytes, of which 255 is black, or numbers, of which the largest is.
        ink: of the caption, and of the frame around the plane.
    """

    caption: str
    plane: Array
    ink: Ink = GREY


def images(planes: Mapping[str, Tensor], width: int = 900, per_row: int = 6, signed: bool = False) -> Image.Image:
    """Planes (H, W) as pictures side by side, each under its name; dark is large, or red and blue if signed."""
    return sheet([Tile(name, plane.detach().numpy()) for name, plane in planes.items()], width, per_row, signed)


def sheet(tiles: Sequence[Tile], width: int = 900, per_row: int = 6, signed: bool = False) -> Image.Image:
    """The tiles in rows, at most `width` pixels wide; see `images`."""
    columns = min(per_row, len(tiles))
    across = (width - GAP) // columns - GAP
    pictures = [_enlarged(_inked(tile.plane, signed), across) for tile in tiles]
    height = max(len(picture) for picture in pictures)
    above = LINE * max(tile.caption.count("\n") + 1 for tile in tiles)
    rows = -(-len(tiles) // columns)
    canvas = np.zeros((rows * (above + height + 2 * GAP), columns * (across + GAP) + GAP), np.uint8)
    for number, (picture, tile) in enumerate(zip(pictures, tiles, strict=True)):
        row, column = divmod(number, columns)
        top, left = GAP + row * (above + height + 2 * GAP) + above, GAP + column * (across + GAP)
        bottom, right = top + len(picture), left + picture.shape[1]
        canvas[top - 2 : bottom + 2, left - 2 : right + 2] = _shade(0.6 if tile.ink == GREY else 1.0, tile.ink)
        canvas[top:bottom, left:right] = picture
        for line, words in enumerate(tile.caption.split("\n")):
            _put(canvas, _text(words, tile.ink), top - above + line * LINE - 2, left)
    return _image(canvas)


def confusion(counts: Array, classes: Sequence[str]) -> Image.Image:
    """How often images of each class (rows of counts, (N, N)) were taken for each class (columns)."""
    cell, left, above = 36, 84, 84
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = cell * len(classes)
    canvas = np.zeros((above + size + LINE + GAP, left + size + GAP), np.uint8)
    canvas[above : above + size, left : left + size] = _enlarged(_shade(shares, GREY), size)
    indent = (cell - LINE) // 2
    for number, name in enumerate(classes):
        text = _text(name, GREY)
        start = number * cell + indent
        _put(canvas, text, above + start, left - 6 - text.shape[1])
        _put(canvas, np.rot90(text), above - 6 - text.shape[1], left + start)
    for (true, given), count in np.ndenumerate(counts):
        if count:
            ink, share = _ink(f"{count}"), shares[true, given]
            # Black on what is light, white on what is dark.
            text = _shade(share + ink * ((share < 0.5) - share), GREY)
            top, side = above + true * cell + indent, left + given * cell + (cell - ink.shape[1]) // 2
            _put(canvas, text, top, side)
    _put(canvas, _text("rows: the true class; columns: the one that was predicted", GREY), above + size + 2, left)
    return _image(canvas)


def _image(canvas: Pixels) -> Image.Image:
    image = Image.frombytes("P", canvas.shape[::-1], canvas.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def _put(canvas: Pixels, text: Pixels, top: int, left: int) -> None:
    """What does not fit is left out."""
    place = canvas[top : top + text.shape[0], left : left + text.shape[1]]
    place[:] = text[: place.shape[0], : place.shape[1]]


@lru_cache(4096)  # the same few words, epoch after epoch
def _text(words: str, ink: Ink) -> Pixels:
    """A line of text on white: (LINE, W)."""
    return _shade(_ink(words), ink)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_SIZE)


@lru_cache(4096)
def _ink(words: str) -> NDArray[np.float32]:
    """A line of text: (LINE, W), 1 where there is ink, 0 where there is none."""
    font = _font()
    image = Image.new("L", (int(font.getlength(words)) + 1, LINE))
    ImageDraw.Draw(image).text((0, LINE // 2), words, fill=255, font=font, anchor="lm")
    ink: NDArray[np.float32] = np.asarray(image, dtype=np.float32) / np.float32(255)
    return ink


def _inked(plane: Array, signed: bool) -> Pixels:
    """White is zero, and the largest there is black; if there are negative numbers, red and blue."""
    if plane.dtype == np.uint8:
        return _shade(plane / np.float32(255), GREY)
    values = plane / max(float(np.abs(plane).max()), 1e-9)
    if not (signed or (values < 0).any()):
        return _shade(values, GREY)
    return np.where(values > 0, _shade(np.abs(values), RED), _shade(np.abs(values), BLUE))


def _shade(shares: Array | float, ink: Ink) -> Pixels:
    """From 0, white, to 1, the ink's colour."""
    return (ink.first + np.asarray(shares) * (ink.steps - 1) + 0.5).astype(np.uint8)


def _enlarged(pixels: Pixels, across: int) -> Pixels:
    """Each number a square of pixels, so many that `across` is filled as far as it goes."""
    times = max(1, across // pixels.shape[1])
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
