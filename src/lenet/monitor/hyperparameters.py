"""The settings by which runs are compared: a fixed list, of which each run has each, under the key that sets it.

Other settings, such as further arguments of the Trainer, are in the configuration that TensorBoard shows as text.
"""

from __future__ import annotations

from lenet.config import NormalizedLeNet, Settings

NONE = "–"
"""Where a run has no such setting: SGD has no betas."""

FOREMOST = ("data.batch_size", "model.activation", "optimizer", "optimizer.lr", "seed")
"""What most comparisons are about."""


def hyperparameters(settings: Settings) -> dict[str, float | str]:
    """By key. A key has the same type in every run: what not all have is text."""
    model, optimizer, scheduler = settings.model, settings.optimizer, settings.scheduler
    limit = settings.trainer.max_steps
    return {
        "model": _name(model.target),
        "model.activation": _name(model.activation.target),
        "model.pool": _name(model.pool.target),
        "model.norm": _name(model.norm.target) if isinstance(model, NormalizedLeNet) else NONE,
        "layers.algorithm": settings.layers.algorithm or "builtin",
        "optimizer": _name(optimizer.target),
        "optimizer.lr": optimizer.lr,
        "optimizer.weight_decay": optimizer.weight_decay,
        **{f"optimizer.{name}": _optional(optimizer, name) for name in ("momentum", "nesterov", "betas", "eps")},
        "scheduler": _name(scheduler.target) if scheduler else "none",
        **{f"scheduler.{name}": _optional(scheduler, name) for name in ("final_lr", "warmup_fraction", "shape")},
        "data": _name(settings.data.target).removesuffix("DataModule"),
        "data.batch_size": float(settings.data.batch_size),
        "data.val_size": float(settings.data.val_size),
        "trainer.max_epochs": float(settings.trainer.max_epochs),
        "trainer.max_steps": NONE if limit == -1 else str(limit),
        "trainer.gradient_clip_val": _optional(settings.trainer, "gradient_clip_val"),
        "seed": float(settings.seed),
        "precision": settings.precision,
        "fuse": str(settings.fuse).lower(),
        "device": settings.device.accelerator,
        "device.devices": float(settings.device.devices),
        "device.num_nodes": float(settings.device.num_nodes),
    }


def _name(target: str) -> str:
    return target.rpartition(".")[2]


def _optional(section: object, name: str) -> str:
    value = getattr(section, name, None)
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)
