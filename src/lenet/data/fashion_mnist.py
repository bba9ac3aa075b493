"""Fashion-MNIST's four files: obtained from the first source that has them, verified, read.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms"
(2017). torchvision knows the mirrors, and downloads; what it does not do is verify the unpacked files, or keep two
processes and a broken download apart. That is done here. It is loaded where something is downloaded alone, as it takes
its time.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shutil
import socket
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lenet.errors import UserError

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the four .gz files."""

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""What the labels 0 to 9 stand for."""

_DOWNLOAD_TIMEOUT_SECONDS = 30


class DataFile(NamedTuple):
    """One of the four files, as it is when unpacked."""

    name: str
    size: int
    sha256: str


FILES = (
    DataFile(
        "train-images-idx3-ubyte",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    DataFile("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    DataFile(
        "t10k-images-idx3-ubyte",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    DataFile("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)


class Images(NamedTuple):
    """Images (N, 28, 28) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


def raw_folder(root: Path) -> Path:
    """Where torchvision keeps the unpacked files below `root`."""
    return root / "FashionMNIST" / "raw"


def obtain(root: Path, mirrors: Sequence[str] | None = None) -> None:
    """Make sure that `root` holds the four files, each with the right SHA-256.

    A missing file comes from its .gz in the same folder, else from the system's copy, else from a mirror;
    nothing is used, or put in its place, before its checksum was found right. Any number of processes may call
    this at once: one obtains the files and the others wait.

    Args:
        root: holds, or will hold, FashionMNIST/raw/.
        mirrors: addresses to download from, instead of torchvision's.

    Raises:
        UserError: a file is damaged, cannot be obtained from any source, or cannot be written.
    """
    raw = raw_folder(root)
    try:
        if not all((raw / file.name).exists() for file in FILES):
            _make_folder(root)
            raw.mkdir(parents=True, exist_ok=True)
            with FileLock(raw / ".lock"):
                _fetch_missing(raw, mirrors)
    except OSError as error:
        raise UserError(
            f"{raw}: cannot be used ({error.strerror or error}); set data.root to a folder that can be read and written"
        ) from error
    for file in FILES:
        _verify(raw / file.name, file)


def load(root: Path) -> tuple[Images, Images]:
    """The 60,000 training and the 10,000 test images from files that `obtain` has verified."""
    # torchvision.datasets.FashionMNIST itself would prefer a processed/training.pt, which nobody verified.
    raw = raw_folder(root)
    train, test = (
        Images(
            _read(raw / f"{part}-images-idx3-ubyte", dimensions=3).view(-1, 28, 28),
            _read(raw / f"{part}-labels-idx1-ubyte", dimensions=1).long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def _read(path: Path, dimensions: int) -> Tensor:
    """The bytes behind the header of an IDX file, which has four bytes, and four for each dimension."""
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=4 + 4 * dimensions))


def _make_folder(root: Path) -> None:
    # Only the last folder of the path is made: a longer missing path is more likely a slip of the pen.
    if not root.parent.is_dir():
        raise UserError(f"data.root={root}: {root.parent} is not a folder; create it or name another folder")
    try:
        root.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"data.root={root}: is a file; name a folder") from None
    except OSError as error:
        raise UserError(
            f"data.root={root}: cannot be created ({error.strerror}); set data.root to a folder that can be written"
        ) from None


_verified: set[tuple[str, int, int, int]] = set()
"""Files that this process, or the one it was forked from, has read and found right; with what tells of a change."""


def _verify(path: Path, file: DataFile) -> None:
    try:
        found = path.stat()
        state = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
        if state in _verified:
            return
        if not stat.S_ISREG(found.st_mode):  # a pipe could not be read to its end
            raise UserError(f"{path}: is no file; delete it, and the next run obtains it anew")
        with path.open("rb") as stream:
            content = stream.read(file.size + 1)  # one byte too many is enough to know
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or set data.root") from None
    if fault := _fault(content, file):
        raise UserError(f"{path}: {fault}; delete the file, and the next run obtains it anew")
    _verified.add(state)


def _fault(content: bytes, file: DataFile) -> str | None:
    if len(content) != file.size:
        found = f"more than {file.size:,}" if len(content) > file.size else f"{len(content):,}"
        return f"has {found} bytes where Fashion-MNIST has {file.size:,}"
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        return f"has SHA-256 {found} where Fashion-MNIST has {file.sha256}"
    return None


def _fetch_missing(raw: Path, mirrors: Sequence[str] | None) -> None:
    for leftover in raw.glob(".partial-*"):  # of a process that was killed; the lock says nobody is at it now
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=raw) as scratch:
        for file in FILES:
            if not (raw / file.name).exists():
                unpacked = Path(scratch) / file.name
                unpacked.write_bytes(_content(file, raw, mirrors, Path(scratch)))
                unpacked.replace(raw / file.name)


def _content(file: DataFile, raw: Path, mirrors: Sequence[str] | None, scratch: Path) -> bytes:
    """The file's verified content from the first source that has it."""
    tried = []
    for archive in (raw / f"{file.name}.gz", SYSTEM_FOLDER / f"{file.name}.gz"):
        if not archive.is_file():
            tried.append(f"{archive} (not there)")
            continue
        try:
            return _unpack(archive, file)
        except _SourceError as reason:
            tried.append(f"{archive} ({reason})")
    if mirrors is None:
        from torchvision.datasets import FashionMNIST

        mirrors = FashionMNIST.mirrors
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}.gz"
        try:
            return _unpack(_download(url, scratch), file)
        except _SourceError as reason:
            tried.append(f"{url} ({reason})")
    raise UserError(
        f"{raw / file.name}: is missing and could not be obtained from {', '.join(tried)}; connect to a network, or"
        f" install Debian's package dataset-fashion-mnist, or copy the four .gz files into {raw}, or go on without"
        " them: data=synthetic"
    )


class _SourceError(Exception):
    """Why one source of a file is of no use."""


def _unpack(archive: Path, file: DataFile) -> bytes:
    try:
        with gzip.open(archive) as stream:
            content = stream.read(file.size + 1)  # one byte too many is enough to know
    except (OSError, EOFError, zlib.error) as error:
        raise _SourceError(f"cannot be unpacked: {error}") from error
    if fault := _fault(content, file):
        raise _SourceError(fault)
    return content


def _download(url: str, folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    name = url.rsplit("/", 1)[-1]
    # The checksum of the .gz is known as well: nothing else is ever unpacked.
    md5 = dict(FashionMNIST.resources)[name]
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS), _progress_bar_on_terminals_only():
            download_url(url, str(folder), filename=name, md5=md5)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise _SourceError(getattr(error, "reason", None) or error) from error
    return folder / name


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens its addresses without one, and would wait for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _progress_bar_on_terminals_only() -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
