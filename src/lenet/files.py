"""Files that are there whole or not at all, also after a power failure."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write the file whole or not at all: under another name, brought to the disk, then renamed.

    Args:
        path: of the file.
        content: of the file.
        previous: the name that the file's content before is kept under.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        part.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot, nor can some file systems of a network
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk, if it is there."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        os.fsync(stream.fileno())


def _keep(path: Path, previous: Path) -> None:
    """A second name, so that the first one never is without a file; where there are no links, a moment without."""
    link = previous.with_name(f".{previous.name}.part")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(previous)
        return
    path.replace(previous)
