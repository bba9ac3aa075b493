"""Any picture as the network sees it: grey, 28×28, light on dark as in Fashion-MNIST."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lenet.errors import UserError, flat

SIZE = 28
Inversion = Literal["auto", "yes", "no"]


def read_picture(path: Path, invert: Inversion = "auto") -> Tensor:
    """A picture file as (28, 28) uint8, turned as its EXIF data says, on a square ground.

    The ground is what the border shows. With `invert="auto"`, a picture on a light ground is inverted. Raises a
    UserError if the file is no picture.
    """
    try:
        with Image.open(path) as file:
            picture = _opaque(ImageOps.exif_transpose(file))
            picture = _in_bytes(picture) if picture.mode[0] in "IF" else picture.convert("L")
    except Exception as error:  # Pillow raises many kinds, by format
        raise UserError(f"{path}: is no picture that can be read ({flat(error)})") from None
    pixels = np.asarray(picture)
    border = int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
    square = ImageOps.pad(picture, (max(picture.size),) * 2, color=border)
    small = square.resize((SIZE, SIZE), Image.Resampling.BOX if min(square.size) >= SIZE else Image.Resampling.BICUBIC)
    if invert == "yes" or (invert == "auto" and border > 127):
        small = ImageOps.invert(small)
    return torch.from_numpy(np.array(small))


def _in_bytes(picture: Image.Image) -> Image.Image:
    """Whole numbers of 16 or 32 bits, or floats, as 0–255: from 0 to their range, or to the largest of floats."""
    values = np.asarray(picture, dtype=np.float64)
    highest = 65535 if picture.mode.startswith("I") and values.max() <= 65535 else max(values.max(), 1e-9)
    return Image.fromarray((values.clip(0) * 255 / highest).round().astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture without transparency: on white, or on black if what is opaque is light."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    grey, alpha = np.asarray(picture.convert("L")), np.asarray(picture.getchannel("A"))
    is_light = bool((grey[alpha > 127] > 127).mean() > 0.5) if (alpha > 127).any() else False
    ground = Image.new("RGBA", picture.size, "black" if is_light else "white")
    return Image.alpha_composite(ground, picture)
