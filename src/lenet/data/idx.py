"""Data sets in MNIST's format IDX: four files, obtained from the first source that has them, verified, read."""

import gzip
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lenet.data.module import ImageDataModule, Images
from lenet.errors import UserError
from lenet.files import write_whole


class IdxDataModule(ImageDataModule):
    """A data set in four IDX files. A subclass is a table: `class_names` and the attributes below.

    A missing file comes from its .gz in the same folder, else from the system's copy, else from a mirror, and is used
    only when its checksum is right. Of several processes one obtains the files and the others wait.

    `root` has torchvision's layout, ROOT/FOLDER_NAME/raw/; `mirrors`, addresses of folders, replace the data set's own.
    `load` raises a UserError if a file is damaged, or cannot be obtained, read or written.
    """

    folder_name: str
    files: ClassVar[dict[str, str]]  # name: SHA-256, unpacked; training images, their labels, test images, their labels
    mirrors: Sequence[str]
    system_folder: Path  # where a package of the operating system puts the .gz files
    hint: str  # how to get them there, and "or "
    timeout_seconds = 30.0

    def __init__(self, root: str | Path = "data", mirrors: Sequence[str] | None = None, **batching: Any) -> None:
        super().__init__(**batching)
        if isinstance(mirrors, str):
            raise UserError(f"data.mirrors={mirrors}: should be a list of addresses, such as [http://ADDRESS/FOLDER]")
        self.root = Path(root).expanduser().absolute()
        self.folder = self.root / self.folder_name / "raw"
        self.mirrors = self.mirrors if mirrors is None else mirrors

    def prepare_data(self) -> None:
        self.load()

    def load(self) -> tuple[Images, Images]:
        try:
            if not all((self.folder / name).exists() for name in self.files):
                self._obtain()
            images, labels, *test = [read(self.folder / name, sha256) for name, sha256 in self.files.items()]
        except OSError as error:
            raise UserError(f"data.root={self.root}: {error}; name a folder that can be made and used") from error
        return Images(images, labels.long()), Images(test[0], test[1].long())

    def _obtain(self) -> None:
        self.root.mkdir(exist_ok=True)  # but not its parents: a longer missing path is more likely a typo
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            for name in self.files:
                if not (self.folder / name).exists():
                    write_whole(self.folder / name, self._from_first_source(name))

    def _from_first_source(self, name: str) -> bytes:
        failures = []
        for folder in (self.folder.as_uri(), self.system_folder.as_uri(), *self.mirrors):
            url = f"{folder.rstrip('/')}/{name}.gz"
            try:
                with urlopen(url, timeout=self.timeout_seconds) as response:  # noqa: S310 -- file: is meant, too
                    content = gzip.decompress(response.read())
                if hashlib.sha256(content).hexdigest() == self.files[name]:
                    return content
                failures.append(f"{url} (wrong SHA-256)")
            except Exception as error:  # whatever is wrong with this source, the next one may do
                failures.append(f"{url} ({error})")
        raise UserError(
            f"{self.folder / name}: is missing and could not be obtained from {', '.join(failures)}; connect to a"
            f" network, or {self.hint}copy the four .gz files into {self.folder}, or do without them: data=synthetic"
        )


@lru_cache(maxsize=4)  # a run loads its data twice: to check the settings, and to train
def read(path: Path, sha256: str) -> Tensor:
    """The bytes in an IDX file, in the shape that its header gives: 0, 0, type, dimensions, and the size of each."""
    content = np.fromfile(path, np.uint8)
    if (found := hashlib.sha256(content.data).hexdigest()) != sha256:
        raise UserError(f"{path}: has SHA-256 {found}, not {sha256}; delete the file, and the next run obtains it anew")
    header = 4 + 4 * int(content[3])
    return torch.from_numpy(content[header:]).view(content[4:header].view(">u4").tolist())
