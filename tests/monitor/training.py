"""A small training run in this process, for what looks at runs from outside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lenet.models import LeNet
from lenet.training.module import Classifier


class Noise(pl.LightningDataModule):
    """Random images (1, H, W) uint8 in plain DataLoaders: 48 to train on, 24 each to validate and to test on."""

    def __init__(self, size: int = 28, classes: int = 10, stages: tuple[str, ...] = ("val",)) -> None:
        super().__init__()
        self.size, self.class_names = size, [f"class {number}" for number in range(classes)]
        self.evaluation_stages = stages

    def loader(self, count: int) -> DataLoader[Any]:
        draw = torch.Generator().manual_seed(count)
        images = torch.randint(256, (count, 1, self.size, self.size), generator=draw, dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(count) % len(self.class_names)), batch_size=12)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(48)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self.loader(24) for _ in self.evaluation_stages]

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(24)


def fit(
    callbacks: Sequence[pl.Callback],
    logger: Any = False,
    data: pl.LightningDataModule | None = None,
    module: Classifier | None = None,
    test: bool = False,
    **arguments: Any,
) -> Classifier:
    """Train for two epochs of four steps, unless arguments of the Trainer say otherwise."""
    torch.manual_seed(0)
    data, module = data or Noise(), module or Classifier(LeNet(), seed=0)
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), logger=logger, **(defaults | arguments))
    trainer.fit(module, datamodule=data)
    if test:
        trainer.test(module, datamodule=data, verbose=False)
    return module


def event_files(folder: Path) -> list[Path]:
    """In the order in which they were begun."""
    return sorted(folder.glob("events.out.tfevents.*"))
