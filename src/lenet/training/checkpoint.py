"""A saved run, written and read: its checkpoints, and run.json, which has what it takes to run it again.

A run is saved at the end of an epoch alone. The order of the images and dropout are functions of (seed, epoch), so
nothing else is needed to resume exactly where it was. A checkpoint is what torch.save writes, which is a zip archive;
the checksums in it are verified, which torch.load does not do.
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lenet.errors import UserError, printable
from lenet.files import read_json, write_json, write_whole
from lenet.folders import RESULT
from lenet.monitor.throughput import TimedCallback
from lenet.training.module import Classifier
from lenet.training.signals import EndOnSignal

log = logging.getLogger(__name__)

CHECKPOINTS, LAST, BEST, PREVIOUS = "checkpoints", "last.ckpt", "best.ckpt", "previous.ckpt"
"""The folder in a run's folder, and the files in it; previous.ckpt is the last.ckpt before."""

RUN_FILE = "run.json"


class WholeFileIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue(), path.with_name(PREVIOUS) if path.name == LAST else None)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read(Path(path), map_location)


def file_of(path: Path) -> Path:
    """The last checkpoint in a run's folder, or the file itself; a UserError if there is none."""
    file = path / CHECKPOINTS / LAST if path.is_dir() else path
    if not file.is_file():
        what = "has no checkpoint" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {what}; name a run's folder, such as outputs/DATE/TIME, or a file in its checkpoints")
    return file


def folder_of(path: Path) -> Path:
    """The run's folder, of itself or of a checkpoint in it; of another file the folder that it is in."""
    folder = path if path.is_dir() else path.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint in a file: tensors and plain values. Nothing in the file is executed.

    Raises a UserError if the file cannot be read, is no checkpoint, or is damaged: its checksums are those that
    torch.save writes by default; a file in its old form, which is no archive, has none.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as archive:
                if part := archive.testzip():
                    raise ValueError(f"{part} is not what its checksum says")
        content.seek(0)
        return dict(torch.load(content, map_location=map_location, weights_only=True))
    except Exception:  # of many kinds, with advice that does not apply here
        raise UserError(f"{path}: is damaged, or no checkpoint") from None


def find(folder: Path) -> Path | None:
    """The checkpoint in a run's folder to resume from: that of the latest epoch; None if the run has saved nothing yet.

    Raises a UserError if all are damaged; or the best one is, which cannot be made again.
    """
    epochs: dict[Path, int] = {}
    damaged: dict[str, str] = {}
    for name in (LAST, BEST, PREVIOUS):
        path = folder / CHECKPOINTS / name
        try:
            if path.exists():
                epochs[path] = read(path)["epoch"] + 1
        except UserError as error:
            damaged[name] = str(error)
    if BEST in damaged:
        raise UserError(f"{damaged[BEST]}; its weights are lost: delete the file to resume without them")
    if damaged and not epochs:
        raise UserError(f"{'; '.join(damaged.values())}; no other is left to resume from: start a new run")
    latest = max(epochs, key=lambda path: epochs[path], default=None)
    if damaged and latest is not None:
        log.warning("%s; %s, of epoch %d, is used", "; ".join(damaged.values()), latest.name, epochs[latest])
    return latest


def classifier_of(content: dict[str, Any], path: object) -> Classifier:
    """The module that a checkpoint holds, with its network's weights; a UserError if it does not say which it is."""
    parts: dict[str, Any] = dict(content.get("hyper_parameters", {}))
    if not parts.get("net"):
        raise UserError(
            f"{path}: does not say which network it is of; use Classifier.load_from_checkpoint(PATH, net=NETWORK)"
        )
    classifier = Classifier(parts["net"], loss=parts.get("loss"), init="none")
    try:
        classifier.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its network: {error}") from None
    return classifier


class SaveRun(TimedCallback, Checkpoint):
    """Saves a run at the end of an epoch: the best weights always, the last if it is due.

    It is due after the last epoch, at a signal, and if the last save is more than `every_seconds` ago. Lightning calls
    it after all other callbacks. `stopwatch` has the time that training waited for it.
    """

    def __init__(self, folder: Path, every_seconds: float, signals: EndOnSignal) -> None:
        super().__init__()
        self.folder, self.every_seconds, self.signals = folder / CHECKPOINTS, every_seconds, signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._saved, self._best = time.monotonic(), pl_module.best_val_acc

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        is_due = self._is_due(trainer)
        for callback in trainer.callbacks if is_due else ():  # type: ignore[attr-defined]
            if isinstance(callback, TimedCallback):
                callback.catch_up(trainer)
        with self.stopwatch:
            for logger in trainer.loggers:
                if hasattr(logger, "flush"):  # the disk is to have the events that belong to a checkpoint
                    logger.flush()
            if pl_module.best_val_acc != self._best:
                self._best = pl_module.best_val_acc
                trainer.save_checkpoint(self.folder / BEST)
            if is_due:
                trainer.save_checkpoint(self.folder / LAST)
                self._saved = time.monotonic()

    def _is_due(self, trainer: pl.Trainer) -> bool:
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = ends or self.signals.received is not None or time.monotonic() - self._saved >= self.every_seconds
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning marks the epoch as done a moment after this. Without the mark, a run that is resumed would take the
        # epoch for one that was cut off, and with max_steps Lightning does not put that right itself.
        loops = checkpoint["loops"]["fit_loop"]
        for progress in loops["epoch_progress"].values():
            progress["completed"] = progress["processed"]
        batches = loops["epoch_loop.batch_progress"]
        batches.update(current=dict.fromkeys(batches["current"], 0), is_last_batch=False)


def write_run(folder: Path, settings: dict[str, Any]) -> None:
    """Keep in a run's folder what it was made from: settings, command, versions, commit. Each resume adds its own.

    Raises a UserError if what was kept there is damaged.
    """
    start = {"command": ["python", *map(printable, sys.argv)], "versions": versions(), "git": _git()}
    content: dict[str, Any] = {"settings": settings, **start}
    if (folder / RUN_FILE).exists():
        before = read_run(folder)
        content = {**before, "settings": settings, "resumed": [*before.get("resumed", []), start]}
    write_json(folder / RUN_FILE, {**content, "sha256": _sha256(content)})


def read_run(folder: Path) -> dict[str, Any]:
    """What `write_run` kept; a UserError if that is damaged."""
    path = folder / RUN_FILE
    try:
        content = dict(read_json(path))
        if content.pop("sha256") != _sha256(content):
            raise ValueError("its checksum is not that of its content")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); put the file back as it was, or start a new run") from None


def read_result(folder: Path) -> dict[str, Any]:
    """The metrics.json of a run that is done; if it is damaged, a UserError names the remedy."""
    path = folder / RESULT
    try:
        result = dict(read_json(path))
        return result | {"seconds": float(result["seconds"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!r}); delete the file, and resume the run (of a sweep: sweep.resume=FOLDER)"
        ) from None


def versions() -> dict[str, str]:
    """Of the packages that a run computes with, and the processor's instructions, on which the last bits depend."""
    names = ("torch", "torchvision", "lightning", "numpy", "hydra-core", "tensorboard")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found, "processor": torch.backends.cpu.get_cpu_capability()}


def warn_of_other_versions(folder: Path) -> None:
    """Warn if a run was begun with other packages, or on another processor: it continues, but not bit for bit."""
    then = read_run(folder)["versions"]
    for name in ("torch", "lightning", "numpy", "processor"):
        if then.get(name, versions()[name]) != versions()[name]:
            log.warning("The run was begun with %s %s, and continues with %s", name, then.get(name), versions()[name])


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _git() -> dict[str, Any] | None:
    """The commit, and whether files differ from it; None where there is no repository, or no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
