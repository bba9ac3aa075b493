"""What a run has saved: `last.ckpt`, `previous.ckpt` which was the last one before, and `best.ckpt`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenet.errors import UserError
from lenet.nested import parts
from lenet.preflight import rank
from lenet.training.checkpoint_file import DamagedError, read, reason_of, refuse_not_finite

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""In the run's."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

OURS = "lenet"
"""The key, in a checkpoint as Lightning makes it, of what `lenet.training.checkpoints` adds."""

MOST = 2**53
"""No run counts further: a float can tell so many numbers apart."""

_COUNTS = ("epochs", "global_step", "images_trained", "steps_in_epoch")
_KINDS: dict[str, Any] = {
    **dict.fromkeys(_COUNTS, int),
    **dict.fromkeys(("metrics", "events", "callbacks", "random"), dict),
    **{"settings": str, "tallies": list, "checkpoint_seconds": float, "best_val_acc": (float, type(None))},
}


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and looked through.

    Attributes:
        path: of its file.
        content: as Lightning makes it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def progress(self) -> dict[str, Any]:
        """Where the run was."""
        progress: dict[str, Any] = self.content[OURS]
        return progress

    @property
    def place(self) -> tuple[int, int]:
        """Epochs that are done, and steps in the next one."""
        return self.progress["epochs"], self.progress["steps_in_epoch"]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of the run, as plain values."""
        with self.looked_at():
            settings: dict[str, Any] = json.loads(self.progress["settings"])
            if not isinstance(settings, dict):
                raise TypeError("its configuration is none")
        return settings

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Whatever goes wrong meanwhile is the file's fault: it is whole, but not what this program has written.

        Raises:
            UserError: says so.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.path}: is no checkpoint of a run of this program ({reason_of(error)})") from None


def find(folder: Path) -> Saved | None:
    """The last checkpoint of a run that is whole; None if there is none. A damaged one is reported.

    Raises:
        DamagedError: all are damaged.
        UserError: one is no checkpoint of a run.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if not path.exists():
            continue
        try:
            saved = _looked_through(path, read(path))
        except DamagedError as error:
            damaged.append(str(error))
            continue
        except UserError:
            if path.exists():
                raise
            continue  # the first of several processes has just put it out of the way
        if damaged and rank() == 0:  # of several processes, which all find the same, one alone touches the files
            log.warning("%s; %s is used instead, of step %d", *damaged, path.name, saved.progress["global_step"])
            # Out of the way: it must not become the previous one.
            path.with_name(LAST).replace(path.with_name(f"damaged.{LAST}"))
        return saved
    if damaged:
        raise DamagedError(f"{'; '.join(damaged)}; no other is left, and the run cannot be resumed: start it anew")
    return None


def refuse_damaged_best(folder: Path) -> None:
    """A damaged best.ckpt cannot be made again from the last one.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FOLDER / BEST
    if path.exists():
        try:
            read(path)
        except UserError as error:
            raise UserError(f"{error}; these weights are lost: delete the file to go on without them") from None


def _looked_through(path: Path, content: dict[str, Any]) -> Saved:
    saved = Saved(path, content)
    with saved.looked_at():
        sections = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, OURS: dict}
        right = all(isinstance(content.get(key), kind) for key, kind in sections.items())
        if not right or not all(isinstance(content[OURS].get(key), kind) for key, kind in _KINDS.items()):
            raise UserError(f"{path}: is no checkpoint of a run of this program")
        refuse_not_finite(path, {key: content[key] for key in sections})
        _refuse_impossible(path, saved)
    return saved


def _refuse_impossible(path: Path, saved: Saved) -> None:
    """Refuse numbers that no run has; which ones do not fit the run at hand, `lenet.training.restore` finds."""
    progress = saved.progress
    numbers = {name: progress[name] for name in (*_COUNTS, "checkpoint_seconds")}
    numbers |= dict(parts(progress["tallies"], "tallies") + parts(progress["callbacks"], "callbacks"))
    for place, state in enumerate(saved.content["optimizer_states"]):
        for group in state["param_groups"]:
            numbers[f"optimizer_states.{place}.lr"] = group["lr"]
    for name, value in numbers.items():
        most = MOST if isinstance(value, int) else math.inf
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise UserError(f"{path}: is no checkpoint of a run: it holds {name}={value}")
