"""A folder of its own for each run and each sweep: never one that another has, never one that holds something."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lenet.errors import UserError

RESULT = "metrics.json"
"""In a run's folder; written last, so that a run which has it is done."""

LEFTOVERS = {".hydra", "train.log", ".lock"}
"""What a run that was killed before it was under way may leave; with resume=auto it begins again."""


def chosen(config: DictConfig, key: str) -> Path | None:
    """The folder that a key names, if the user chose it."""
    if any(str(item).lstrip("+").startswith(f"{key}=") for item in config.hydra.overrides.hydra):
        return Path(str(OmegaConf.select(config, key))).expanduser().absolute()
    return None


def claim(config: DictConfig, key: str) -> Path:
    """Create the folder that a key names, with a number added if another run has it; the key then names it.

    Raises a UserError if the user chose a folder that is not empty, or it cannot be created.
    """
    wanted = refuse_taken(config, key)
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        folder = wanted
        if chosen(config, key):
            folder.mkdir(exist_ok=True)
            # Hydra's own, which marks it as taken: of two runs at once, one finds it.
            (folder / ".hydra").mkdir(exist_ok=begins_anew(config))
        else:
            folder = _make_new(wanted)
    except OSError as error:
        raise UserError(f"{key}={wanted}: cannot be created ({error.strerror}); name another folder") from None
    with read_write(config), open_dict(config):
        OmegaConf.update(config, key, str(folder))
    return folder


def refuse_taken(config: DictConfig, key: str) -> Path:
    """The folder that a key names; raises a UserError if the user chose it and it is not empty."""
    wanted = Path(str(OmegaConf.select(config, key))).expanduser().absolute()
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be created either, which says more
        allowed = LEFTOVERS if begins_anew(config) else set()
        found = wanted.is_dir() and {path.name for path in wanted.iterdir()} <= allowed
        if chosen(config, key) and wanted.exists() and not found:
            raise UserError(f"{key}={wanted}: is not an empty folder; name a new one")
    return wanted


@contextlib.contextmanager
def locked(folder: Path, key: str, seconds: float = 0) -> Iterator[None]:
    """Keep other processes out of the folder of a run or a sweep, which `key` resumes, however this one ends.

    If another process has it, waits for so many seconds, and then raises a UserError. Raises an OSError if the folder
    cannot be written.
    """
    try:
        with FileLock(folder / ".lock").acquire(timeout=seconds):
            yield
    except Timeout:
        raise UserError(f"{key}={folder}: another process is at work on it; wait for its end") from None


def begins_anew(config: DictConfig) -> bool:
    """Whether the user allowed with resume=auto that a first try has been in the folder."""
    return "resume=auto" in map(str, config.hydra.overrides.get("task", ()))


def _make_new(wanted: Path) -> Path:
    folder, numbers = wanted, itertools.count(2)
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder = wanted.with_name(f"{wanted.name}-{next(numbers)}")
