"""A run's checkpoints: `last.ckpt`, `previous.ckpt` which was the last one before, and `best.ckpt`.

They are written after each epoch, every so many seconds, and when a signal asks the run to end. From the last one a run
goes on exactly where it was, in the middle of an epoch too. Lightning's own restart knows blocks alone (see
`lenet.data`), and leaves the random numbers, the curves and the running sums to others: so the place in the run is
kept and taken up here.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lenet.checkpoint_file import DamagedError, encode, read, reason_of, refuse_not_finite
from lenet.data import ImageDataModule
from lenet.errors import UserError
from lenet.events import PATTERN
from lenet.files import sync_file, write_whole
from lenet.interrupts import Interrupts, Leave
from lenet.module import Classifier
from lenet.preflight import rank
from lenet.tensorboard import RunLogger
from lenet.throughput import Stopwatch

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""In the run's."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

OURS = "lenet"
"""The key, in a checkpoint as Lightning makes it, of what this file adds."""

_KINDS: dict[str, Any] = {
    **dict.fromkeys(("epochs", "global_step", "images_trained", "steps_in_epoch"), int),
    **dict.fromkeys(("metrics", "events", "callbacks", "random"), dict),
    **{"settings": str, "tallies": list, "best_val_acc": (float, type(None))},
}


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, after the events that belong to it.

    Attributes:
        error: why the last one could not be written.
        written: the number of steps after which the last one that could be was made.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.written: int | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            for events in path.parent.parent.glob(PATTERN):
                sync_file(events)
            write_whole(path, encode(checkpoint), path.with_name(PREVIOUS) if path.name == LAST else None)
            self.written = checkpoint["global_step"]
        except OSError as error:
            self.error = error


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
        UserError: all are damaged, or one is no checkpoint of a run.
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
        raise UserError(f"{'; '.join(damaged)}; no other is left, and the run cannot be resumed: start it anew")
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
    sections = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, OURS: dict}
    right = all(isinstance(content.get(key), kind) for key, kind in sections.items())
    if not right or not all(isinstance(content[OURS].get(key), kind) for key, kind in _KINDS.items()):
        raise UserError(f"{path}: is no checkpoint of a run of this program")
    refuse_not_finite(path, {key: content[key] for key in sections})
    return Saved(path, content)


class Checkpoints(Checkpoint):
    """Saves a run, and takes it up again. The last of the callbacks, by its base class.

    Args:
        folder: of the run.
        settings: of the run, as plain values.
        every_seconds: save so often, between the end of an epoch and the next.
        interrupts: what asks the run to end.
        logger: whose events belong to a checkpoint.
        stateful: callbacks with a `state_dict`.
        saved: where to go on from.

    Attributes:
        stopwatch: for how long training has waited for checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        every_seconds: float,
        interrupts: Interrupts,
        logger: RunLogger,
        stateful: Sequence[pl.Callback],
        saved: Saved | None = None,
    ) -> None:
        self.folder, self.settings, self.every_seconds = folder / FOLDER, json.dumps(settings), every_seconds
        self.interrupts, self.logger, self.stateful, self.saved = interrupts, logger, stateful, saved
        self.io = WholeFileIO()
        self.plugin = AsyncCheckpointIO(self.io)  # training waits for a copy of the weights alone; a thread writes
        self.stopwatch = Stopwatch()
        self._epochs = saved.progress["epochs"] if saved is not None else 0
        self._best: float | None = saved.progress["best_val_acc"] if saved is not None else None
        self._when = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.saved is None:
            return
        with self.saved.looked_at():
            _take_up(self.saved, trainer, pl_module)
            states = self.saved.progress["callbacks"]
            for callback in self.stateful:
                if (state := states.get(type(callback).__name__)) is not None:
                    callback.load_state_dict(state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interrupts.listen()
        self._when = time.monotonic()
        if self.saved is not None:
            with self.saved.looked_at():
                _set_random_numbers(self.saved.progress["random"])
            self.saved = None  # its memory is wanted no more

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if self.io.error is not None:
            self._give_up()
        due = time.monotonic() - self._when >= self.every_seconds and pl_module.steps_in_epoch > 0
        due, interrupted = self._agreed(trainer, due, self.interrupts.received or 0)
        if due or interrupted:
            self._save(trainer, LAST)
        if interrupted:
            self._leave(interrupted)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.is_cut:
            self._save(trainer, LAST)
            self._leave(self.interrupts.received or 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        acc = pl_module.best_val_acc
        if not trainer.sanity_checking and acc is not None and (self._best is None or acc > self._best):
            # Before the last one: a run that is killed between the two does this epoch again, and finds it best again.
            self._best = acc
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.finish_epoch()
        self._epochs += 1
        pl_module.steps_in_epoch = 0
        self._save(trainer, LAST)
        _, interrupted = self._agreed(trainer, False, self.interrupts.received or 0)
        if interrupted:
            self._leave(interrupted)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.wait()
        if self.io.error is not None:
            self._give_up()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Classifier)
        checkpoint[OURS] = {
            **pl_module.progress(),
            "settings": self.settings,
            "epochs": self._epochs,
            "global_step": trainer.global_step,
            "events": self.logger.state(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.stateful},
            "random": _random_numbers(),
        }

    def wait(self) -> None:
        """Return when all that was saved is written, or could not be."""
        self.plugin.teardown()

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        with self.stopwatch:
            trainer.save_checkpoint(self.folder / name)
        self._when = time.monotonic()

    def _leave(self, signum: int) -> None:
        self.wait()
        if self.io.error is not None:
            self._give_up()
        raise Leave(signum)

    def _give_up(self) -> None:
        """Raises a UserError: what is the use of training on if nothing of it is kept?"""
        error = self.io.error
        assert error is not None
        step = self.io.written
        good = "the last good checkpoint is whole" if (self.folder / LAST).exists() else "no checkpoint was written"
        left = good if step is None else f"the last good checkpoint, of step {step}, is whole"
        raise UserError(
            f"{self.folder / LAST}: cannot be written ({error.strerror}); {left}; make room or let it be written, and"
            f" python train.py resume={self.folder.parent} goes on"
        )

    def _agreed(self, trainer: pl.Trainer, due: bool, signum: int) -> tuple[bool, int]:
        """What one of several devices has met holds for all of them."""
        if trainer.world_size == 1:
            return due, signum
        both = torch.tensor([float(due and trainer.is_global_zero), float(signum)], device=trainer.strategy.root_device)
        met = trainer.strategy.reduce(both, reduce_op="max").tolist()
        return bool(met[0]), int(met[1])


def _take_up(saved: Saved, trainer: pl.Trainer, module: Classifier) -> None:
    """Put weights, optimizer, schedule and place in the run to where they were.

    Raises:
        UserError: it is of another model, or of another optimizer.
    """
    content, progress = saved.content, saved.progress
    ours, theirs = module.state_dict(), content["state_dict"]
    if {name: value.shape for name, value in ours.items()} != {
        name: getattr(value, "shape", None) for name, value in theirs.items()
    }:
        raise UserError(f"{saved.path}: is a checkpoint of another model than the configuration of the run")
    module.load_state_dict(theirs)
    module.go_on_from(progress)
    _take_up_optimizer(saved, trainer, module)
    _place(trainer, progress["epochs"], progress["global_step"], _blocks(trainer, progress["steps_in_epoch"]))


def _take_up_optimizer(saved: Saved, trainer: pl.Trainer, module: Classifier) -> None:
    (optimizer,), states = trainer.optimizers, saved.content["optimizer_states"]
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    try:
        (state,) = states
        for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
            for key in ours.keys() - {"params", "lr", "initial_lr"}:
                if ours[key] != (tuple(theirs[key]) if isinstance(ours[key], tuple) else theirs[key]):
                    raise ValueError(key)
        for number, values in state["state"].items():
            for value in values.values():
                if torch.is_tensor(value) and value.dim() > 0 and value.shape != shapes[number]:
                    raise ValueError("shape")
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{saved.path}: is a checkpoint of another optimizer than the configuration of the run ({error})"
        ) from None
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    if not schedulers:
        return
    planned = saved.settings["trainer"]["max_epochs"]
    for scheduler, state in zip(schedulers, saved.content["lr_schedulers"], strict=False):
        if planned == trainer.max_epochs:
            known = scheduler.state_dict()
            if not isinstance(state, dict) or {k: type(v) for k, v in known.items()} != {
                k: type(v) for k, v in state.items()
            }:
                raise UserError(f"{saved.path}: is a checkpoint of another scheduler than the configuration of the run")
            scheduler.load_state_dict(state)
        else:
            # A run that is made longer gets the schedule of its new length, and is placed in it.
            for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = base
            for _ in range(saved.progress["global_step"]):
                scheduler.step()


def _blocks(trainer: pl.Trainer, steps: int) -> int:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return steps // data.block_steps


def _place(trainer: pl.Trainer, epochs: int, steps: int, blocks: int) -> None:
    """Set what Lightning counts: epochs that are done, steps in all, blocks of the next epoch that are done."""
    loop = trainer.fit_loop
    for tracker in (loop.epoch_progress.total, loop.epoch_progress.current):
        vars(tracker).update(ready=epochs, started=epochs, processed=epochs, completed=epochs)
    vars(loop.epoch_loop.manual_optimization.optim_step_progress.total).update(ready=steps, completed=steps)
    if blocks > 0:
        # As Lightning has it of an epoch that was about to start, but for its blocks.
        loop.epoch_progress.total.ready = loop.epoch_progress.current.ready = epochs + 1
        batches = loop.epoch_loop.batch_progress
        for tracker in (batches.total, batches.current):
            vars(tracker).update(ready=blocks, started=blocks, processed=blocks, completed=blocks)
        loop.restarting = True


def _random_numbers() -> dict[str, Any]:
    """The states of all generators that a run may draw from, as tensors and plain values; and how many threads add."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, state, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(state), gauss],
        "threads": torch.get_num_threads(),
    }


def _set_random_numbers(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    torch.set_num_threads(states["threads"])  # a sum by two threads may round otherwise than one by four
