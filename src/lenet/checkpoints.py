"""Checkpoints: `last.ckpt` after each epoch, and `best.ckpt` by validation accuracy."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO


def checkpoint_callback(folder: Path, val_size: int) -> ModelCheckpoint:
    """Saves into `folder` after each epoch. Without validation images nothing can tell which epoch is best."""
    if val_size == 0:
        return ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    return ModelCheckpoint(
        folder, filename="best", monitor="val/acc", mode="max", save_last=True, enable_version_counter=False
    )


def in_background() -> AsyncCheckpointIO:
    """Training waits for a copy of the weights alone; a thread writes it, and has written it when fitting ends."""
    return AsyncCheckpointIO(TorchCheckpointIO())
