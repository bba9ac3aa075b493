"""Checkpoints: `last.ckpt` after each epoch, and `best.ckpt` by validation accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lenet.throughput import Stopwatch


def checkpoint_callback(folder: Path, val_size: int) -> ModelCheckpoint:
    """Saves into `folder` after each epoch. Without validation images nothing can tell which epoch is best."""
    if val_size == 0:
        return ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    return ModelCheckpoint(
        folder, filename="best", monitor="val/acc", mode="max", save_last=True, enable_version_counter=False
    )


class TimedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints as Lightning does, with the stopwatch of training paused."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self._stopwatch = stopwatch

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with self._stopwatch.paused():
            super().save_checkpoint(checkpoint, path, storage_options)
