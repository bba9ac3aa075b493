"""Files that are there whole or not at all, also after a power failure; and what others may have put in their place."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""What is in a run's folder is read as a whole; so much of one file, and no more."""

DEEPEST = 20
"""A run's configuration has five levels."""


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
        part.unlink(missing_ok=True)  # of a process that was killed; or a link to somewhere else
        with part.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk has none
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds, whoever has written it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or more than a run writes.
    """
    refuse_endless(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [part for each in level if isinstance(each, dict | list) for part in _inside(each)]
    if level:
        raise ValueError("it is nested too deeply")
    return content


def refuse_endless(path: Path) -> None:
    """Refuse what is no file, such as a pipe or a device, or too large.

    Raises:
        OSError: there is nothing.
        ValueError: says what it is.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size:,} bytes, and may have {MOST_BYTES:,}")


def _inside(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


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
