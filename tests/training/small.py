"""A small training run in this process, and what may happen to it."""

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lenet.models import LeNet
from lenet.monitor.tensorboard import read_events
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


class Alone(Classifier):
    """A classifier outside of a trainer, with its optimizer."""

    optimizer: Optimizer

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self.optimizer


def trainer(**arguments: Any) -> pl.Trainer:
    """For two epochs, without files and output, unless the arguments say otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**(defaults | arguments))


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
    run = trainer(callbacks=list(callbacks), logger=logger, **arguments)
    run.fit(module, datamodule=data)
    if test:
        run.test(module, datamodule=data, verbose=False)
    return module


def at(epoch: int, act: Callable[[Any], object]) -> pl.Callback:
    """A callback that does something with the module at the start of an epoch, counted from 1."""

    def start(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == epoch:
            act(module)

    return LambdaCallback(on_train_epoch_start=start)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """This process can write no file of more bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of each point in TensorBoard."""
    return [(point.step, point.value) for point in read_events(folder).Scalars(tag)]


def event_files(folder: Path) -> list[Path]:
    """In the order in which they were begun."""
    return sorted(folder.glob("events.out.tfevents.*"), key=lambda path: (len(path.name), path.name))
