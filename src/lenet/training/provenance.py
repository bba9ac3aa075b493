"""What a run was made from: `run.json`, in its folder, with all that is needed to run it again.

It holds the resolved configuration, the versions of the packages, and the state of the program's own repository.
Nothing of the environment is in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from lenet.errors import UserError, without_passwords
from lenet.files import read_json, write_json
from lenet.requirements import requirements

FILE = "run.json"

CHECKSUM = "sha256"
"""The key that holds the checksum of all others."""


def write(folder: Path, settings: dict[str, Any]) -> None:
    """Keep in a run's folder what it is made from; of a run that is resumed, each start.

    Raises:
        OSError: it cannot be written.
        UserError: what was kept there is damaged.
    """
    start: dict[str, Any] = {
        "command": ["python", *map(without_passwords, sys.argv)],
        "versions": versions(),
        "platform": {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()},
        "git": _git(Path(__file__).parent),
    }
    if (folder / FILE).exists():
        before = read(folder)
        content = {**before, "settings": settings, "resumed": [*before.get("resumed", []), start]}
    else:
        content = {"settings": settings, **start}
    content = json.loads(json.dumps(content))
    write_json(folder / FILE, {**content, CHECKSUM: _checksum(content)})


def read(folder: Path) -> dict[str, Any]:
    """What was kept.

    Raises:
        UserError: there is nothing, or it is damaged or was altered.
    """
    path = folder / FILE
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise TypeError("it is not what a run writes")
        checksum = content.pop(CHECKSUM)
        if checksum != _checksum(content):
            raise UserError(
                f"{path}: is damaged or was altered: its checksum is not that of its content; a resumed run keeps its"
                " configuration, so put the file back as it was, or start a new run"
            )
        kinds = {"settings": dict, "versions": dict, "resumed": list}
        if not all(isinstance(content.get(key, []), kind) for key, kind in kinds.items()):
            raise TypeError("it is not what a run writes")
    except (FileNotFoundError, NotADirectoryError):
        where = f"holds no {FILE}, so no run to go on with" if folder.is_dir() else "is no folder"
        raise UserError(f"resume={folder}: {where}; name the folder of a run, such as outputs/DATE/TIME") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put the file back as it was, or start a new run") from None
    return dict(content)


def versions() -> dict[str, str]:
    """Of the packages that this one needs, and of those that they compute with."""
    needed, _ = requirements("lenet")
    found = {}
    for name in sorted({"numpy", *needed}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None where there is no repository, or no git."""
    try:
        commit, changes = (
            subprocess.run(
                # The repository's own settings could name programs to start.
                ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],  # noqa: S607
                capture_output=True, text=True, timeout=10, check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
