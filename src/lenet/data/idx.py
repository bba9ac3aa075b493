"""Data sets in MNIST's format IDX: four files, obtained from the first source that has them, verified, read.

torchvision knows the mirrors, and downloads; what it does not do is verify the unpacked files, or keep two processes
and a broken download apart. It is imported only where something is downloaded, as that takes long.
"""

import contextlib
import gzip
import hashlib
import io
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

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

    Args:
        root: holds the files, or will, in torchvision's layout: ROOT/NAME/raw/.
        mirrors: addresses to download from, instead of torchvision's.
        **batching: see ImageDataModule.

    Attributes:
        torchvision_name: of the class in torchvision.datasets that knows the mirrors; names the folder, too.
        files: name and SHA-256, unpacked, of the training images, training labels, test images, test labels.
        system_folder, hint: where a package of the system puts the .gz files, and what to do for that.

    Raises:
        UserError: in `prepare_data` and `setup`, if a file is damaged, or cannot be obtained, read or written.
    """

    torchvision_name: str
    files: ClassVar[dict[str, str]]
    system_folder: Path | None = None
    hint = ""

    def __init__(self, root: str | Path = "data", mirrors: Sequence[str] | None = None, **batching: Any) -> None:
        super().__init__(**batching)
        self.root = Path(root).expanduser().absolute()
        self.folder = self.root / self.torchvision_name / "raw"
        self.mirrors = mirrors

    def prepare_data(self) -> None:
        """Obtain the files that are missing, and verify all; Lightning calls it in one process a machine."""
        try:
            if not all((self.folder / name).exists() for name in self.files):
                self.root.mkdir(exist_ok=True)  # but not its parents: a longer missing path is more likely a typo
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / ".lock"):
                    for name in self.files:
                        if not (self.folder / name).exists():
                            write_whole(self.folder / name, self._from_first_source(name))
            self.load()
        except OSError as error:
            raise UserError(f"data.root={self.root}: {error}; name a folder that can be made and used") from error

    def load(self) -> tuple[Images, Images]:
        train_images, train_labels, test_images, test_labels = (
            read(self.folder / name, sha256, (self.folder / name).stat().st_mtime_ns)
            for name, sha256 in self.files.items()
        )
        return Images(train_images, train_labels.long()), Images(test_images, test_labels.long())

    def _from_first_source(self, name: str) -> bytes:
        tried = []
        for source in self._sources(f"{name}.gz"):
            try:
                content = gzip.decompress(source.read_bytes() if isinstance(source, Path) else download(source))
                if hashlib.sha256(content).hexdigest() == self.files[name]:
                    return content
                tried.append(f"{source} (wrong SHA-256)")
            except Exception as error:  # whatever is wrong with this source, the next one may do
                tried.append(f"{source} ({getattr(error, 'strerror', None) or error})")
        raise UserError(
            f"{self.folder / name}: is missing and could not be obtained from {', '.join(tried)}; connect to a"
            f" network, or {self.hint}copy the four .gz files into {self.folder}, or go on without them: data=synthetic"
        )

    def _sources(self, name: str) -> Iterator[Path | str]:
        yield from (folder / name for folder in (self.folder, self.system_folder) if folder)
        if (mirrors := self.mirrors) is None:
            import torchvision.datasets

            mirrors = getattr(torchvision.datasets, self.torchvision_name).mirrors
        yield from (f"{mirror.rstrip('/')}/{name}" for mirror in mirrors)


@lru_cache(maxsize=4)  # Lightning prepares the data for training and for test; reading and verifying takes 0.1 s
def read(path: Path, sha256: str, modified_ns: int) -> Tensor:
    """The bytes in an IDX file, in the shape that its header gives: 0, 0, type, dimensions, and the size of each."""
    content = np.fromfile(path, np.uint8)
    if (found := hashlib.sha256(content.data).hexdigest()) != sha256:
        raise UserError(f"{path}: has SHA-256 {found}, not {sha256}; delete the file, and the next run obtains it anew")
    header = 4 + 4 * int(content[3])
    return torch.from_numpy(content[header:]).view(content[4:header].view(">u4").tolist())


def download(url: str, timeout_seconds: float = 30) -> bytes:
    """The content of a file on a server; with a progress bar, if somebody sees it."""
    from torchvision.datasets.utils import download_url

    name = url.rsplit("/", 1)[-1]
    progress_bar = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_seconds)  # torchvision sets none, and would wait for ever
    try:
        with tempfile.TemporaryDirectory() as scratch, progress_bar:
            download_url(url, scratch, filename=name)
            return (Path(scratch) / name).read_bytes()
    finally:
        socket.setdefaulttimeout(before)
