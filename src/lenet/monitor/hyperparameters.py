"""The settings by which TensorBoard's HParams tab compares runs."""

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"
"""Where a run has no such setting: SGD has no betas."""

NUMBERS = ("optimizer.lr", "optimizer.weight_decay", "data.batch_size", "data.val_size", "trainer.max_epochs", "seed")

TEXTS = (
    *("model", "model.activation", "model.pool", "model.norm", "model.channels", "model.hidden", "model.dropout"),
    *("layers.algorithm", "init", "loss", "optimizer", "optimizer.momentum", "optimizer.nesterov", "optimizer.betas"),
    *("optimizer.eps", "scheduler", "scheduler.final_lr", "scheduler.warmup_fraction", "scheduler.shape", "data"),
    *("trainer.max_steps", "trainer.gradient_clip_val", "precision", "fuse"),
    *("device", "device.devices", "device.num_nodes"),
)


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, float | str]:
    """Pick them from a run's plain settings. Every run has the same keys with the same types.

    A class is named without its modules ("Adam"). A missing number is NaN, a missing text is NONE.
    """
    picked: dict[str, float | str] = {}
    for key in (*TEXTS, *NUMBERS):
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):  # a section: its class, or the kind of device
            value = str(value.get("_target_") or value.get("accelerator") or NONE).rpartition(".")[2]
        if key in NUMBERS:
            picked[key] = float(value) if isinstance(value, int | float) else math.nan
        else:
            picked[key] = NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return picked
