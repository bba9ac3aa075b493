"""A saved run, written and read: its checkpoints, and run.json, which has what it takes to run it again.

A run is saved at the end of an epoch alone. Order, augmentation and dropout are functions of (seed, epoch), so nothing
else is needed to go on exactly where it was. A checkpoint is what torch.save writes, which is a zip archive, with its
SHA-256 as the archive's comment: torch.load reads it as ever, and a damaged one is recognised.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lenet.errors import UserError, printable
from lenet.files import read_json, write_json, write_whole
from lenet.monitor.throughput import Stopwatch
from lenet.training.module import Classifier
from lenet.training.signals import EndOnSignal

log = logging.getLogger(__name__)

CHECKPOINTS, LAST, BEST, PREVIOUS = "checkpoints", "last.ckpt", "best.ckpt", "previous.ckpt"
"""The folder in a run's folder, and the files in it; previous.ckpt is the last.ckpt before."""

RUN_FILE, RESULT = "run.json", "metrics.json"

_PREFIX, _COMMENT_SIZE = b"sha256:", 7 + 64
_END_RECORD_SIZE = 22
"""A zip archive without a comment ends with a record of this size; its last two bytes are the comment's length."""


# Checkpoints


class WholeFileIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: whole or not at all, with a checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = bytearray(buffer.getbuffer())
        content[-2:] = _COMMENT_SIZE.to_bytes(2, "little")
        checksum = _PREFIX + hashlib.sha256(content).hexdigest().encode()
        write_whole(path, bytes(content) + checksum, path.with_name(PREVIOUS) if path.name == LAST else None)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read(Path(path), map_location)


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint in a file: tensors and plain values. Nothing in the file is executed.

    Raises:
        UserError: it cannot be read, is damaged, or is no checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    comment = content[-_COMMENT_SIZE:]
    if comment != _PREFIX + hashlib.sha256(content[:-_COMMENT_SIZE]).hexdigest().encode():
        raise UserError(f"{path}: is damaged: its checksum is not that of its content")
    checkpoint = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: is no checkpoint of a run of this program")
    return checkpoint


def find(folder: Path) -> Path | None:
    """The checkpoint in a run's folder to go on from: of those that are whole, the one of the latest epoch.

    Returns:
        None if the run has saved nothing yet.

    Raises:
        UserError: all are damaged; or the best one is, which cannot be made again.
    """
    whole: dict[Path, int] = {}
    damaged: list[str] = []
    for name in (LAST, BEST, PREVIOUS):
        path = folder / CHECKPOINTS / name
        if path.exists():
            try:
                whole[path] = read(path)["epoch"]
            except UserError as error:
                if name == BEST:
                    raise UserError(f"{error}; its weights are lost: delete the file to go on without them") from None
                damaged.append(str(error))
    if not whole:
        if damaged:
            raise UserError(f"{damaged[0]}; no other is left to resume from: start a new run")
        return None
    latest = max(whole, key=lambda path: whole[path])
    if damaged:
        log.warning("%s; the run goes on from %s, of epoch %d", "; ".join(damaged), latest.name, whole[latest] + 1)
        (folder / CHECKPOINTS / LAST).unlink(missing_ok=True)  # so that it does not become the previous one
    return latest


class SaveRun(Checkpoint):
    """Saves a run at the end of an epoch: the best weights always, the last if it is due.

    It is due after the last epoch, at a signal, and if the last save is more than `every_seconds` ago. Of Lightning's
    callbacks this is the last one.

    Args:
        folder: of the run.
        every_seconds: how much of a run may be lost.
        signals: knows whether the run is to end.

    Attributes:
        stopwatch: for how long training has waited.
    """

    def __init__(self, folder: Path, every_seconds: float, signals: EndOnSignal) -> None:
        self.folder, self.every_seconds, self.signals = folder / CHECKPOINTS, every_seconds, signals
        self.stopwatch = Stopwatch()
        self._saved = time.monotonic()
        self._best: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with self.stopwatch:
            for logger in trainer.loggers:
                if hasattr(logger, "flush"):
                    logger.flush()
            if pl_module.best_val_acc != self._best:
                self._best = pl_module.best_val_acc
                trainer.save_checkpoint(self.folder / BEST)
            if self._is_due(trainer):
                trainer.save_checkpoint(self.folder / LAST)
                self._saved = time.monotonic()

    def _is_due(self, trainer: pl.Trainer) -> bool:
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = ends or self.signals.received is not None or time.monotonic() - self._saved >= self.every_seconds
        return due if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(due, all=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning takes the epoch for done a moment after this; a run that is resumed begins the next one.
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress["completed"] = progress["processed"]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"best": self._best, "seconds": self.stopwatch.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self.stopwatch = state_dict["best"], Stopwatch(state_dict["seconds"])


# run.json


def write_run(folder: Path, settings: dict[str, Any]) -> None:
    """Keep in a run's folder what it was made from; of a run that is resumed, each start.

    Args:
        folder: of the run.
        settings: plain values, all of them.

    Raises:
        OSError: it cannot be written.
        UserError: what was kept there is damaged.
    """
    start: dict[str, Any] = {
        "command": ["python", *map(printable, sys.argv)],
        "versions": versions(),
        "platform": {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()},
        "git": _git(Path(__file__).parent),
    }
    content = {"settings": settings, **start}
    if (folder / RUN_FILE).exists():
        before = read_run(folder)
        content = {**before, "settings": settings, "resumed": [*before.get("resumed", []), start]}
    content = json.loads(json.dumps(content))
    write_json(folder / RUN_FILE, {**content, "sha256": _checksum(content)})


def read_run(folder: Path) -> dict[str, Any]:
    """What `write_run` kept, without the checksum.

    Raises:
        UserError: there is no run, or its file is damaged.
    """
    path = folder / RUN_FILE
    try:
        content = read_json(path)
        checksum = content.pop("sha256")
    except (FileNotFoundError, NotADirectoryError):
        where = f"holds no {RUN_FILE}, so no run to go on with" if folder.is_dir() else "is no folder"
        raise UserError(f"resume={folder}: {where}; name the folder of a run, such as outputs/DATE/TIME") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put the file back as it was, or start a new run") from None
    if checksum != _checksum(content):
        raise UserError(
            f"{path}: is damaged or was altered: its checksum is not that of its content; put the file back as it was,"
            " or start a new run"
        )
    return dict(content)


def versions() -> dict[str, str]:
    """Of the packages that this one needs, and of NumPy."""
    try:
        lines = importlib.metadata.requires("lenet") or []
    except importlib.metadata.PackageNotFoundError:
        lines = ["torch", "lightning"]
    names = {re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line}
    found = {}
    for name in sorted({"numpy", *names}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def warn_of_other_versions(folder: Path) -> None:
    """Warn if a run that is resumed was begun with other packages: it goes on, but not bit for bit."""
    then = read_run(folder)["versions"]
    for name, version in versions().items():
        if name in ("torch", "numpy", "lightning") and then.get(name) != version:
            log.warning("The run was begun with %s %s, and goes on with %s", name, then.get(name), version)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None where there is no repository, or no git."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words],  # noqa: S607
                capture_output=True, text=True, timeout=10, check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
