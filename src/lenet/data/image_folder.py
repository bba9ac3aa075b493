"""One's own pictures: a folder for each class, with pictures of any size and format in it."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from lenet.data.module import ImageDataModule, Images
from lenet.data.pictures import Inversion, read_picture
from lenet.errors import UserError

log = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Pictures below ROOT/CLASS/, made grey, 28×28 and light on dark (see read_picture).

    Of each class, `test_share` of the pictures are for testing and `val_share` for validation, drawn with `split_seed`.
    A file that is no picture is left out, and a line says so. Raises a UserError if there are no two classes with three
    pictures each, or the shares leave none to train on.
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
        if not 0 <= val_share < 1 or not 0 < test_share < 1 - val_share:
            raise UserError(f"data.val_share={val_share}, data.test_share={test_share}: should leave pictures to train")
        try:
            root = Path(root).expanduser()
            found = datasets.ImageFolder(root, is_valid_file=lambda path: not Path(path).name.startswith("."))
        except FileNotFoundError as error:
            raise UserError(f"data.root={root}: should have a folder for each class ({error})") from None
        counts = np.bincount(found.targets)
        if len(counts) < 2 or counts.min() < 3:
            raise UserError(f"data.root={root}: needs two classes with three pictures each; found {found.class_to_idx}")
        self.class_names, self.invert, random = tuple(found.classes), invert, np.random.default_rng(split_seed)
        self.parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
        for label, count in enumerate(counts):
            order = [
                found.samples[index] for index in random.permutation(np.flatnonzero(np.equal(found.targets, label)))
            ]
            for_test, for_val = max(1, round(test_share * count)), round(val_share * count)
            self.parts["test"] += order[:for_test]
            self.parts["val"] += order[for_test : for_test + for_val]
            self.parts["train"] += order[for_test + for_val :]
        super().__init__(val_size=len(self.parts["val"]), **batching)

    def load(self) -> tuple[Images, Images]:
        pairs = []
        for part in (self.parts["train"] + self.parts["val"], self.parts["test"]):
            read = [(image, label) for path, label in part if (image := picture(path, self.invert)) is not None]
            images, labels = zip(*read, strict=True)
            pairs.append(Images(torch.stack(images), torch.tensor(labels)))
        return pairs[0], pairs[1]


@cache  # a run loads its data twice: to check the settings, and to train
def picture(path: str, invert: Inversion) -> Tensor | None:
    """The picture (28, 28) uint8; None, and a warning, if the file is none."""
    try:
        return read_picture(Path(path), invert)
    except UserError as error:
        log.warning("%s; it is left out", error)
        return None
