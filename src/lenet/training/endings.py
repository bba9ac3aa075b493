"""How a run ends before its end: in one line that says why, what is left of it, and how it goes on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lenet.errors import DivergenceError, UserError
from lenet.training.provenance import FILE
from lenet.training.saved import FOLDER, LAST
from lenet.training.signals import Interrupted, Leave, saying


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Whatever ends the run in that folder meanwhile, becomes a line.

    Raises:
        UserError: training diverged, or something cannot be written.
        Interrupted: a signal asked the run to end.
    """
    try:
        yield
    except DivergenceError as error:
        last = folder / FOLDER / LAST
        left = f"the last good weights are in {last}" if last.exists() else "no checkpoint was written"
        raise UserError(f"{error}; {left}") from None
    except Leave as leave:
        raise Interrupted(leave.signum, f"{resuming(folder)} goes on after step {leave.step}") from None
    except SystemExit as error:
        # What Lightning makes of a signal outside of training, once it has closed the files.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise saying(error.__context__, what_is_left(folder)) from None
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error, folder) from None


def what_is_left(folder: Path) -> str:
    """Of a run that has saved nothing just now."""
    if (folder / FOLDER / LAST).exists():
        return f"{resuming(folder)} goes on from the last checkpoint"
    return "no checkpoint was written"


def cannot_write(path: Path, error: OSError, folder: Path, left: str = "") -> UserError:
    """The line about a file of the run in that folder, with what is left of the run, if it is said."""
    if not folder.is_dir():
        return UserError(f"{folder}: was removed or moved away while the run wrote to it; put it back, or start anew")
    left = f" {left};" if left else ""
    how = f"{resuming(folder)} goes on" if (folder / FILE).exists() else "start the run again, in another folder"
    return UserError(
        f"{path}: cannot be written ({error.strerror or error});{left} make room or let it be written, and {how}"
    )


def resuming(folder: Path) -> str:
    """The command that resumes the run in that folder, for a shell."""
    plain = re.fullmatch(r"[\w./\\ -]+", str(folder)) is not None
    word = f"resume={folder}" if plain else f"resume='{folder}'"
    return f"python train.py {shlex.quote(word)}"
