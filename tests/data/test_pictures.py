"""Pictures of many kinds as the network sees them, and the command that predicts their classes."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from lenet.data.pictures import read_picture
from lenet.errors import UserError
from tests.commands import Commands
from tests.conftest import Finished


def drawn(ground: int = 0, ink: int = 255, size: int = 280) -> Image.Image:
    """A bar, longer than wide, in the upper half of a grey picture."""
    picture = Image.new("L", (size, size), ground)
    ImageDraw.Draw(picture).rectangle((size // 7, size // 7, size // 7 * 5, size // 7 * 2), fill=ink)
    return picture


def transparent(ink: int) -> Image.Image:
    grey = drawn()
    return Image.merge("RGBA", [Image.new("L", grey.size, ink)] * 3 + [grey])


def turned(picture: Image.Image) -> Image.Image:
    """Stored on its side, with EXIF data that says so."""
    picture = picture.rotate(90, expand=True)
    picture.getexif()[0x0112] = 6  # turn clockwise by 90°
    return picture


KINDS: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "light on dark": ("png", drawn),
    "dark on light": ("png", lambda: drawn(255, 0)),
    "grey on white": ("jpg", lambda: drawn(250, 10)),
    "colour": ("jpg", lambda: ImageOps.colorize(drawn(), "black", "yellow")),
    "colour on light": ("webp", lambda: ImageOps.colorize(drawn(), "white", "navy")),
    "palette": ("gif", lambda: drawn().convert("P")),
    "one bit": ("bmp", lambda: drawn().convert("1")),
    "sixteen bits": ("png", lambda: Image.fromarray(np.asarray(drawn()).astype(np.uint16) * 257)),
    "dark and transparent": ("png", lambda: transparent(0)),
    "light and transparent": ("png", lambda: transparent(255)),
    "on its side": ("jpg", lambda: turned(drawn())),
    "small": ("png", lambda: drawn(size=14)),
    "as large as needed": ("tiff", lambda: drawn(size=28)),
    "high": ("png", lambda: ImageOps.expand(drawn(), (0, 70), 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_light_on_dark_upright_and_whole(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    picture = make()
    picture.save(tmp_path / f"picture.{suffix}", exif=picture.getexif())
    seen = read_picture(tmp_path / f"picture.{suffix}")
    assert (seen.shape, seen.dtype) == ((28, 28), torch.uint8)
    ink = seen > 127
    assert 0.04 < ink.float().mean() < 0.2
    rows, columns = (ink.any(dim=dim).sum() for dim in (1, 0))
    assert columns > 2 * rows
    assert ink[:14].sum() > 0.9 * ink.sum()


def test_inversion_can_be_chosen(tmp_path: Path) -> None:
    drawn().save(tmp_path / "picture.png")
    seen = {invert: read_picture(tmp_path / "picture.png", invert) for invert in ("auto", "yes", "no")}
    assert torch.equal(seen["auto"], seen["no"])
    assert torch.equal(seen["yes"], 255 - seen["no"])


def test_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"text\.png: is no picture"):
        read_picture(tmp_path / "text.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        drawn().save(folder / f"{name}.png")
    return folder


def test_the_command_predicts_a_folder_in_three_forms(
    commands: Commands, pictures: Path, finished_run: Finished
) -> None:
    words = ["scripts/predict.py", str(finished_run.folder), str(pictures)]
    text = commands.run(*words, "--page", cwd=pictures.parent)
    assert text.returncode == 0, text.stderr
    first, _ = text.stdout.splitlines()
    assert str(pictures / "a.png") in first
    assert first.count("%") == 3
    assert "data:image/png" in (pictures.parent / "predictions.html").read_text()
    objects = [json.loads(line) for line in commands.run(*words, "--json").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(commands.run(*words, "--csv").stdout)))
    for found, row in zip(objects, rows, strict=True):
        assert (found["file"], found["class"]) == (row["file"], row["class"])
        assert found["probabilities"]["disc"] == float(row["disc"])


def test_what_is_no_picture_is_skipped_and_the_status_says_so(
    commands: Commands, pictures: Path, finished_run: Finished
) -> None:
    (pictures / "notes.txt").write_text("text")
    done = commands.run("scripts/predict.py", str(finished_run.folder), str(pictures))
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith(f"error: {pictures / 'notes.txt'}: is no picture")


@pytest.mark.parametrize("kind", ["16 bits", "32 bits", "floats"])
def test_numbers_of_more_bits_look_like_those_of_eight(tmp_path: Path, kind: str) -> None:
    pixels = np.tile(np.linspace(0, 255, 28).round(), (28, 1))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "8.png")
    if kind == "16 bits":
        Image.fromarray((pixels * 257).astype(np.uint16)).save(tmp_path / "other.png")
    else:
        scaled = pixels * 2**20 if kind == "32 bits" else pixels / 255
        Image.fromarray(scaled.astype(np.int32 if kind == "32 bits" else np.float32)).save(tmp_path / "other.tiff")
    (other,) = tmp_path.glob("other.*")
    assert torch.equal(read_picture(other, "no"), read_picture(tmp_path / "8.png", "no"))
