"""A step of the optimizer without what Lightning does around it, where nobody needs that.

It takes 0.2 ms, some hundredths of LeNet's step on a CPU: hooks that nobody uses are looked for, and profilers started
that measure nothing.
"""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.profilers import PassThroughProfiler

STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls around each step of an optimizer that a module takes itself."""


def is_possible(module: pl.LightningModule) -> bool:
    """Whether Lightning has nothing to do in a backward and a step.

    With several devices it brings their gradients together; in float16 it scales losses.
    """
    trainer = module.trainer
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    listens = _listens(module, pl.LightningModule) or any(_listens(each, pl.Callback) for each in callbacks)
    return (
        not listens
        and trainer.world_size == 1
        and getattr(trainer.precision_plugin, "scaler", None) is None
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
    )


def _listens(owner: object, base: type) -> bool:
    """Whether one of its hooks, of its class or set on itself, is another than that of `base`, which does nothing."""
    return any(getattr(getattr(owner, hook), "__func__", None) is not getattr(base, hook) for hook in STEP_HOOKS)


def step(optimizer: LightningOptimizer, trainer: pl.Trainer) -> None:
    """A step of the optimizer itself, which Lightning's global step counts."""
    optimizer.optimizer.step()
    counter = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    counter.increment_ready()
    counter.increment_completed()
