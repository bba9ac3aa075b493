"""Whether two runs gave the same, bit for bit: weights, optimizer, metrics and scalars; but not how long they took."""

from pathlib import Path
from typing import Any

import torch

from lenet.files import read_json
from lenet.folders import RESULT
from lenet.monitor.tensorboard import read_events
from lenet.training.checkpoint import BEST, CHECKPOINTS, LAST, read

TIMINGS = {"train/examples_per_sec", "final/examples_per_sec", "seconds", "dashboard_seconds", "checkpoint_seconds"}
"""What differs from run to run."""


def differences(undisturbed: Path, harmed: Path, lossy: bool = False) -> list[str]:
    """What differs between the runs in two folders; `lossy`: of the harmed one, scalars may be missing.

    Raises:
        UserError, OSError: a run has not ended, or its files are damaged.
    """
    ours, theirs = _values(undisturbed), _values(harmed)
    found = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    ours, theirs = _scalars(undisturbed), _scalars(harmed)
    for tag in sorted(ours.keys() | theirs.keys()):
        points, rest = theirs.get(tag, []), iter(ours.get(tag, []))
        if not (all(point in rest for point in points) if lossy else points == list(rest)):
            found.append(f"scalar {tag}")
    return found


def _values(folder: Path) -> dict[str, Any]:
    """Every number in a run's checkpoints and metrics.json, by a full name."""
    metrics = {key: value for key, value in read_json(folder / RESULT).items() if key not in TIMINGS}
    found = _flat(metrics, f"{RESULT}: ")
    for name in (LAST, BEST):
        path = folder / CHECKPOINTS / name
        checkpoint = read(path) if path.exists() else {}
        for section in ("state_dict", "optimizer_states", "lr_schedulers"):
            found |= _flat(checkpoint.get(section), f"{name}: {section}.")
    return found


def _flat(value: Any, name: str) -> dict[str, Any]:
    """The parts of nested values: tensors as bytes, numbers as text, so that NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        return {name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())}
    if not isinstance(value, dict | list | tuple):
        return {name: repr(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: part for inner, each in items for key, part in _flat(each, f"{name}{inner}.").items()}


def _scalars(folder: Path) -> dict[str, list[str]]:
    """By tag, the points in a run's event files; of timings only the steps."""
    events = read_events(folder)
    return {
        # A point that stands twice is of an epoch that was done again (figure/* has epochs for steps: no purge).
        tag: list(dict.fromkeys(str(p.step) if tag in TIMINGS else f"{p.step}: {p.value}" for p in events.Scalars(tag)))
        for tag in events.Tags()["scalars"]
    }
