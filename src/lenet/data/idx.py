"""Data sets in MNIST's format IDX: four files, obtained from the first source that has them, verified, read."""

import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
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
    """A data set in four IDX files. A subclass is a table: `class_names`, `source` and the attributes below.

    `root` has torchvision's layout, ROOT/TITLE/raw/; `mirrors`, addresses of folders, replace the data set's own. A
    file that the user has put there or into ROOT counts, packed or unpacked, also as 7-Zip names it. A missing one
    comes from the system's copy, else from a mirror. A checksum tells whether it is the right one. Of several
    processes one obtains the files and the others wait.

    `load` raises a UserError if a file is damaged, is another data set's, or cannot be obtained, read or written.
    """

    title: ClassVar[str]  # as torchvision's folder
    choice: ClassVar[str]  # in the group data
    archives: ClassVar[Mapping[str, str | None]]  # MD5 of each .gz; training images, their labels, test images, labels
    files: ClassVar[Mapping[str, str]] = {}  # SHA-256 of the unpacked files, where known
    mirrors: Sequence[str]
    system_folder: Path | None = None  # where a package of the operating system puts the .gz files
    hint = ""  # how to get them there, and "or "
    timeout_seconds = 30.0

    def __init__(self, root: str | Path = "data", mirrors: Sequence[str] | None = None, **batching: Any) -> None:
        super().__init__(**batching)
        if isinstance(mirrors, str):
            raise UserError(f"data.mirrors={mirrors}: should be a list of addresses, such as [http://ADDRESS/FOLDER]")
        self.root = Path(root).expanduser().absolute()
        self.folder = self.root / self.title / "raw"
        self.mirrors = self.mirrors if mirrors is None else mirrors

    def prepare_data(self) -> None:
        self.load()

    def load(self) -> tuple[Images, Images]:
        try:
            if not all(self._brought(name) for name in self.archives):
                self._obtain()
            images, labels, *test = [self._read(name) for name in self.archives]
        except OSError as error:
            raise UserError(f"data.root={self.root}: {error}; name a folder that can be made and used") from error
        return Images(images, labels.long()), Images(test[0], test[1].long())

    def _brought(self, name: str, suffix: str = "") -> Path | None:
        """The file where a user may have put it."""
        forms = [f"{form}{suffix}" for form in (name, name.replace("-idx", ".idx"))]
        paths = (folder / form for folder in (self.folder, self.folder.parent, self.root) for form in forms)
        return next((path for path in paths if path.is_file()), None)

    def _read(self, name: str) -> Tensor:
        path = self._brought(name) or self.folder / name
        values, sha256 = read(path, path.stat().st_mtime_ns)
        if values is None or (name in self.files and sha256 != self.files[name]):
            raise UserError(f"{path}: {self._what_is(sha256)}")
        return values

    def _obtain(self) -> None:
        self.root.mkdir(exist_ok=True)  # but not its parents: a longer missing path is more likely a typo
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            for name in self.archives:
                if self._brought(name):
                    continue
                if path := self._brought(name, ".gz"):
                    archive = path.read_bytes()
                    if (content := self._unpacked(name, archive)) is None:
                        raise UserError(f"{path}: {self._what_is(md5_of(archive))}")
                else:
                    content = self._from_a_source(name)
                write_whole(self.folder / name, content)

    def _unpacked(self, name: str, archive: bytes) -> bytes | None:
        """What is in a .gz file; None if that is not the right content."""
        try:
            content = gzip.decompress(archive)
        except (OSError, EOFError):
            return None
        known = hashlib.sha256(content).hexdigest() == self.files.get(name)
        return content if known or self.archives[name] in (None, md5_of(archive)) else None

    def _from_a_source(self, name: str) -> bytes:
        folders = [self.system_folder.as_uri()] if self.system_folder else []
        return self._first([*folders, *self.mirrors], f"{name}.gz", partial(self._unpacked, name))

    def _first(self, folders: Iterable[str], name: str, accepted: Callable[[bytes], bytes | None]) -> bytes:
        """What is `accepted` of a file, from the first of the addresses that has it."""
        failures = []
        for folder in folders:
            url = f"{folder.rstrip('/')}/{name}"
            try:
                with urlopen(url, timeout=self.timeout_seconds) as response:  # noqa: S310 -- file: is meant, too
                    if (content := accepted(response.read())) is not None:
                        return content
                failures.append(f"{url} (wrong checksum)")
            except Exception as error:  # whatever is wrong with this source, the next one may do
                failures.append(f"{url} ({error})")
        raise UserError(
            f"{self.folder / name}: is missing and could not be obtained from {', '.join(failures)}; connect to a"
            f" network, or {self.hint}copy {name} and its like into {self.folder}, or do without: data=synthetic"
        )

    def _what_is(self, checksum: str) -> str:
        """What a file is that is not this data set's, and what to do about it."""
        for other in IdxDataModule.__subclasses__():
            if checksum in {*other.files.values(), *other.archives.values()} and other is not type(self):
                return f"is {other.title}'s; use data={other.choice}, or move it away for {self.title}'s to be obtained"
        found = f"{self.title}'s (its checksum is {checksum})"
        return f"is damaged, or not {found}; move it away, and the next run obtains another"


@lru_cache(maxsize=4)  # a run loads its data twice: to check the settings, and to train
def read(path: Path, changed: int) -> tuple[Tensor | None, str]:
    """The bytes in an IDX file that was `changed` then, in the shape that its header gives, and the file's SHA-256.

    A header is 0, 0, type (8 is bytes), dimensions, and the size of each. None in place of a content that differs.
    """
    content = np.fromfile(path, np.uint8)
    sha256 = hashlib.sha256(content.data).hexdigest()
    header = 4 + 4 * int(content[3]) if len(content) > 3 else 4
    shape = content[4:header].view(">u4").tolist() if len(content) >= header else []
    if bytes(content[:3]) != b"\0\0\x08" or not shape or np.prod(shape) != len(content) - header:
        return None, sha256
    return torch.from_numpy(content[header:]).view(shape), sha256


def md5_of(archive: bytes) -> str:
    return hashlib.md5(archive, usedforsecurity=False).hexdigest()
