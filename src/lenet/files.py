"""Files that are there whole or not at all, also after a crash or a power failure."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file under another name, bring it to the disk, then rename it.

    The file that was there before is renamed to `previous`. Raises an OSError if the new one cannot be written; the
    old one is then still there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk has none
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object whole or not at all; raises an OSError."""
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises an OSError or a ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def _sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot, nor can some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
