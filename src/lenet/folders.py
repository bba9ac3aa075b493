"""A folder of its own for each run and each sweep: never one that another has, never one that holds something."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lenet.errors import UserError

JOBS = ".submitit"
"""In the folder of a sweep, what submitit keeps of its jobs."""


def claim(config: DictConfig, key: str) -> Path:
    """Create the folder that the key names, with a number added if another run has it; the key then names it.

    Raises:
        UserError: the user chose a folder that is not empty, or it cannot be created.
    """
    wanted = _wanted(config, key)
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        folder = _take_empty(wanted, key) if _chosen_by_user(config, key) else _make_new(wanted)
    except OSError as error:
        raise UserError(f"{key}={wanted}: cannot be created ({error.strerror}); name another folder") from None
    with read_write(config), open_dict(config):
        OmegaConf.update(config, key, str(folder))
    return folder


@contextlib.contextmanager
def alone(folder: Path, key: str, seconds: float = 0) -> Iterator[None]:
    """No other process gets the folder of a run or a sweep meanwhile, however this one ends.

    Args:
        folder: of the run or sweep.
        key: with which it can be resumed.
        seconds: for so long, another one that has it is waited for.

    Raises:
        UserError: another one has it.
        OSError: the folder cannot be written.
    """
    try:
        with FileLock(folder / ".lock").acquire(timeout=seconds):
            yield
    except Timeout:
        raise UserError(f"{key}={folder}: another process is at work on it; wait for its end") from None


def refuse_foreign(folder: Path) -> None:
    """Refuse what no run or sweep puts into its folder: what is written through it would be elsewhere, or never end.

    What submitit keeps of a sweep's jobs is let be: it has links, and nothing is read or written where it was before.

    Raises:
        UserError: names the link, pipe or device, or the folder in which there could be one.
    """

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # whoever reads a file there, says more
            raise UserError(f"{error.filename}: cannot be looked into ({error.strerror}); let it be read")

    for place, names, files in os.walk(folder, onerror=closed):
        for path in (Path(place, name) for name in (*names, *files)):
            try:
                mode = path.lstat().st_mode
            except OSError as error:  # of a run at work, files come and go
                closed(error)
                continue
            if stat.S_ISLNK(mode):
                raise UserError(
                    f"{path}: is a link, and no run makes one; put the file itself there, or remove the link"
                )
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UserError(f"{path}: is a pipe or a device, and no run makes one; remove it")
        if JOBS in names:
            names.remove(JOBS)


def refuse_shared(folder: Path) -> None:
    """Refuse files that have another name outside of the folder: what is added to them would be added there too.

    Raises:
        UserError: names the file.
    """
    found: dict[tuple[int, int], list[Path]] = {}
    links: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # of a run at work, files come and go
            continue
        if stat.S_ISREG(status.st_mode):
            file = (status.st_dev, status.st_ino)
            found.setdefault(file, []).append(path)
            links[file] = status.st_nlink
    for file, names in found.items():
        # A checkpoint has two for a moment, and for longer if the run is killed in it.
        if links[file] > len(names):
            raise UserError(
                f"{names[0]}: has another name elsewhere, and would change there too; go on with a copy (cp -r)"
            )


def refuse_taken(config: DictConfig, key: str) -> None:
    """Refuse a folder that the user chose and that is not empty: at once, and once more when it is claimed.

    Raises:
        UserError: it is not empty.
    """
    wanted = _wanted(config, key)
    if not _chosen_by_user(config, key):
        return
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be created either, which says more
        if wanted.exists() and not (wanted.is_dir() and not any(wanted.iterdir())):
            raise _taken(wanted, key)


def _wanted(config: DictConfig, key: str) -> Path:
    return Path(str(OmegaConf.select(config, key))).absolute()


def _chosen_by_user(config: DictConfig, key: str) -> bool:
    return any(str(item).lstrip("+").startswith(f"{key}=") for item in config.hydra.overrides.hydra)


def _taken(folder: Path, key: str) -> UserError:
    return UserError(f"{key}={folder}: is not an empty folder; name a new one")


def _make_new(wanted: Path) -> Path:
    folder, numbers = wanted, itertools.count(2)
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder = wanted.with_name(f"{wanted.name}-{next(numbers)}")


def _take_empty(folder: Path, key: str) -> Path:
    try:
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError
        # Hydra's own folder marks it as taken: of two runs at once, one finds it there.
        (folder / ".hydra").mkdir()
    except (FileExistsError, NotADirectoryError):
        raise _taken(folder, key) from None
    return folder
