"""One's own pictures: a folder for each class, with pictures of any size and format in it."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenet.data.module import ImageDataModule, Images
from lenet.data.pictures import Inversion, read_picture
from lenet.errors import UserError

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Pictures below ROOT/CLASS/, made grey, 28×28 and light on dark (see read_picture).

    Of each class, `test_share` of the pictures are for testing and `val_share` for validation, drawn with `split_seed`.
    A file that is no picture is left out, and a line says so. Raises a UserError if there are no two classes with three
    pictures each.
    """

    source = "Pictures from a folder of the user's own."

    def __init__(
        self,
        root: str | Path,
        val_share: float = 0.1,
        test_share: float = 0.2,
        split_seed: int = 0,
        invert: Inversion = "auto",
        **batching: Any,
    ) -> None:
        self.root, self.test_share, self.split_seed, self.invert = (
            Path(root).expanduser(),
            test_share,
            split_seed,
            invert,
        )
        if not 0 <= val_share < 1 or not 0 < test_share < 1 or val_share + test_share >= 1:
            raise UserError(
                f"data.val_share={val_share}, data.test_share={test_share}: should leave pictures to train on"
            )
        folders = sorted(path for path in self.root.glob("*") if path.is_dir() and not path.name.startswith("."))
        self.class_names = tuple(path.name for path in folders)
        self.paths = [sorted(path for path in folder.rglob("[!.]*") if path.is_file()) for folder in folders]
        if len(folders) < 2 or min(map(len, self.paths)) < 3:
            found = [f"{path.name} ({len(files)})" for path, files in zip(folders, self.paths, strict=True)]
            raise UserError(
                f"data.root={root}: should have a folder for each class, with three pictures or more; found"
                f" {', '.join(found) or 'none'}"
            )
        sizes = [round(val_share * len(files)) for files in self.paths]
        super().__init__(val_size=sum(sizes), **batching)
        self.val_sizes = sizes

    def load(self) -> tuple[Images, Images]:
        random = np.random.default_rng(self.split_seed)
        parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
        for label, (paths, val_size) in enumerate(zip(self.paths, self.val_sizes, strict=True)):
            order = [(paths[index], label) for index in random.permutation(len(paths))]
            test_size = max(1, round(self.test_share * len(paths)))
            parts["test"] += order[:test_size]
            parts["val"] += order[test_size : test_size + val_size]
            parts["train"] += order[test_size + val_size :]
        return self._read(parts["train"] + parts["val"]), self._read(parts["test"])

    def _read(self, part: Sequence[tuple[Path, int]]) -> Images:
        found = [(image, label) for path, label in part if (image := read(path, self.invert)) is not None]
        return Images(torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found]))


@cache  # a run loads its data twice: to check the settings, and to train
def read(path: Path, invert: Inversion) -> Tensor | None:
    """The picture (28, 28) uint8; None, and a warning, if the file is none."""
    try:
        return read_picture(path, invert)
    except UserError as error:
        log.warning("%s; it is left out", error)
        return None
