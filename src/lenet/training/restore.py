"""Puts a run to where a checkpoint was: weights, optimizer, schedule, what Lightning counts, and random numbers.

Lightning's own restart knows blocks alone (see `lenet.data.module`), and checks nothing.
"""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from lenet.data.module import ImageDataModule
from lenet.errors import UserError
from lenet.nested import parts
from lenet.training.module import Classifier, steps_per_epoch
from lenet.training.saved import Saved


def take_up(saved: Saved, trainer: pl.Trainer, module: Classifier) -> None:
    """Put weights, optimizer, schedule and place in the run to where they were.

    Raises:
        UserError: it is of another model, optimizer or schedule, or was at a place that this run does not have.
    """
    content, progress = saved.content, saved.progress
    if _shapes(module.state_dict()) != _shapes(content["state_dict"]):
        raise UserError(f"{saved.path}: is a checkpoint of another model than the configuration of the run")
    trainer.fit_loop.setup_data()
    _refuse_another_place(saved, steps_per_epoch(trainer))
    module.load_state_dict(content["state_dict"])
    module.go_on_from(progress)
    _take_up_optimizer(saved, trainer, module)
    _place(trainer, progress["epochs"], progress["global_step"], _blocks(trainer, progress["steps_in_epoch"]))


def _refuse_another_place(saved: Saved, steps: int) -> None:
    """Refuse a place in the run that one with so many steps an epoch does not have."""
    (epochs, done), total = saved.place, saved.progress["global_step"]
    if done >= steps or not done <= total <= epochs * steps + done:
        raise UserError(
            f"{saved.path}: is a checkpoint of another run: it holds epochs={epochs}, steps_in_epoch={done} and"
            f" global_step={total}, and here an epoch has {steps} steps"
        )


def _take_up_optimizer(saved: Saved, trainer: pl.Trainer, module: Classifier) -> None:
    (optimizer,), states = trainer.optimizers, saved.content["optimizer_states"]
    try:
        (state,) = states
        for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
            for key in ours.keys() - {"params", "lr"}:
                if ours[key] != (tuple(theirs[key]) if isinstance(ours[key], tuple) else theirs[key]):
                    raise ValueError(key)
        # What is computed with is taken for what it should be, without a look: one value in the place of many, say.
        if _shapes(state["state"]) != _shapes(_state_after_a_step(module)):
            raise ValueError("its state")
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
            if not _is_later(state, scheduler.state_dict(), saved.progress["global_step"]):
                raise UserError(f"{saved.path}: is a checkpoint of another scheduler than the configuration of the run")
            scheduler.load_state_dict(state)
        else:
            # A run that is made longer gets the schedule of its new length, and is placed in it.
            for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = base
            for _ in range(saved.progress["global_step"]):
                scheduler.step()


def _shapes(state: dict[Any, Any]) -> dict[str, Any]:
    """Of all tensors, by their full names, and of other values what kinds they are."""
    found = dict(parts(state, ""))
    return {n: (v.shape, v.dtype) if torch.is_tensor(v) else type(v) for n, v in found.items()}


def _state_after_a_step(module: Classifier) -> dict[int, Any]:
    """Of an optimizer like the module's, with parameters like the module's."""
    twins = [nn.Parameter(torch.zeros_like(parameter)) for parameter in module.parameters()]
    for twin in twins:
        twin.grad = torch.zeros_like(twin)
    optimizer = module.optimizer_factory(twins)
    optimizer.step()
    state: dict[int, Any] = optimizer.state_dict()["state"]
    return state


def _is_later(state: Any, first: dict[str, Any], steps: int) -> bool:
    """Whether a scheduler that had the state `first` can have this one after so many steps."""
    if not isinstance(state, dict) or state.keys() != first.keys() or state["last_epoch"] != steps:
        return False
    moving = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}
    same = all(repr(state[key]) == repr(first[key]) for key in first.keys() - moving)
    return same and all(type(state[key]) is type(first[key]) for key in moving & first.keys())


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
    # From these it tells when to validate, if that is not once an epoch.
    batches = loop.epoch_loop.batch_progress
    done = epochs * int(trainer.num_training_batches) + blocks
    vars(batches.total).update(ready=done, started=done, processed=done, completed=done)
    if blocks > 0:
        # As Lightning has it of an epoch that was about to start, but for its blocks.
        loop.epoch_progress.total.ready = loop.epoch_progress.current.ready = epochs + 1
        vars(batches.current).update(ready=blocks, started=blocks, processed=blocks, completed=blocks)
        loop.restarting = True


def random_numbers() -> dict[str, Any]:
    """The states of all generators that a run may draw from, as tensors and plain values; and how many threads add.

    What are long lists elsewhere are tensors here: Lightning goes through the values of a checkpoint one by one.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    version, state, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if _cuda_is_used() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [name, torch.tensor(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, torch.tensor(state), gauss],
        "threads": torch.get_num_threads(),
    }


def set_random_numbers(states: dict[str, Any]) -> None:
    """Go on with what `random_numbers` gave."""
    torch.set_rng_state(states["torch"])
    if _cuda_is_used() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, *rest = states["numpy"]
    if not 0 <= position <= 624:  # NumPy would read on from there, wherever it is
        raise ValueError(f"position {position}")
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, *rest))
    version, state, gauss = states["python"]
    random.setstate((version, tuple(torch.as_tensor(state).tolist()), gauss))
    if not 1 <= int(states["threads"]) <= 1024:
        raise ValueError(f"{states['threads']} threads")
    torch.set_num_threads(int(states["threads"]))  # a sum by two threads may round otherwise than one by four


def _cuda_is_used() -> bool:
    """A run on the CPU leaves the GPU alone: asking for its state would set it up, which takes seconds and memory."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
