"""Checkpoints: `last.ckpt` after each epoch, and `best.ckpt` by validation accuracy."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO


def checkpoint_callbacks(folder: Path, val_size: int) -> list[Callback]:
    """Save into `folder` after each epoch. Without validation images nothing can tell which epoch is best."""
    # One each: what Lightning calls save_last leaves out epochs that are not the best.
    last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    best = ModelCheckpoint(folder, filename="best", monitor="val/acc", mode="max", enable_version_counter=False)
    return [last, best] if val_size > 0 else [last]


def in_background() -> AsyncCheckpointIO:
    """Training waits for a copy of the weights alone; a thread writes it, and has written it when fitting ends."""
    return AsyncCheckpointIO(TorchCheckpointIO())
