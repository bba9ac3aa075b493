"""Whether two runs gave the same, bit for bit: weights, optimizer, measures, curves; but not how long they took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lenet.files import read_json
from lenet.monitor import events
from lenet.nested import parts
from lenet.training import checkpoint_file, saved

TIMINGS = {"train/examples_per_sec", "final/examples_per_sec", "seconds", "dashboard_seconds", "checkpoint_seconds"}
"""What differs from run to run."""


def differences(run: Path, other: Path) -> list[str]:
    """What differs between the runs in two folders; empty if they gave the same.

    Raises:
        UserError, OSError: a run has not ended, or its files are damaged.
    """
    found = []
    for name in (saved.LAST, saved.BEST):
        paths = [folder / saved.FOLDER / name for folder in (run, other)]
        if len({path.exists() for path in paths}) == 2:
            found.append(f"{name}: one has it, the other does not")
        elif paths[0].exists():
            ours, theirs = (_states(checkpoint_file.read(path)) for path in paths)
            found += [
                f"{name}: {key}" for key in ours.keys() | theirs.keys() if not _equal(ours.get(key), theirs.get(key))
            ]
    ours, theirs = (read_json(folder / "metrics.json") for folder in (run, other))
    found += [f"metrics.json: {key}" for key in ours.keys() | theirs.keys() if not _same(key, ours, theirs)]
    ours, theirs = scalars(run), scalars(other)
    for tag in ours.keys() | theirs.keys():
        if tag in TIMINGS:  # at the same steps, all the same
            ours[tag], theirs[tag] = ([step for step, _ in each.get(tag, [])] for each in (ours, theirs))
        if repr(ours.get(tag)) != repr(theirs.get(tag)):  # NaN is like NaN
            found.append(f"curve {tag}")
    return found


def scalars(folder: Path) -> dict[str, list[Any]]:
    """By tag, the steps and values in a run's event files."""
    read = events.read(folder)
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def _states(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Weights, optimizer and schedule, by their full names."""
    names = ("state_dict", "optimizer_states", "lr_schedulers")
    return dict(part for name in names for part in parts(checkpoint[name], name))


def _equal(ours: Any, theirs: Any) -> bool:
    if torch.is_tensor(ours) and torch.is_tensor(theirs):
        return torch.equal(ours, theirs)
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def _same(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return key in TIMINGS or (key in ours and key in theirs and ours[key] == theirs[key])
