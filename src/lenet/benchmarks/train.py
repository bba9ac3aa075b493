"""How fast is training? The contenders take turns, round after round, so that a machine whose speed drifts is fair.

    python scripts/benchmark.py train --rounds 5 --epochs 2

A contender's figure is images trained ÷ wall time of training, loading and logging included, validation and the
writing of checkpoints excluded. Reported are medians over the rounds, and the ratio round by round. All train the
same LeNet with SGD in batches of 256 on the images that are not held out, each time in a process of its own.

this project       what `python train.py device=cpu` does.
template           Lightning as most projects use it: DataLoader(num_workers=2), torchvision's ToTensor picture by
                   picture, self.log on every step, the default progress bar (drawn into the null device).
template, no bar   the same without the progress bar.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.benchmarks.report import heading, ratios, spread
from lenet.cli import compose_settings
from lenet.model import LeNet, xavier_uniform_
from lenet.throughput import Stopwatch
from lenet.training import run

BATCH_SIZE = 256

Contender = Callable[[Path, Path, int], float]
"""Trains for a number of epochs: from the project's conf/ and data/, into a folder. Returns examples per second."""


def this_project(project: Path, folder: Path, epochs: int) -> float:
    result = run(compose_settings(project, f"trainer.max_epochs={epochs}", "device=cpu"), folder)
    return float(result["images"] / result["seconds"])


class TemplateModule(pl.LightningModule):
    """What a LightningModule looks like in most projects."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet()
        xavier_uniform_(self.net)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/acc", (logits.argmax(1) == labels).float().mean(), on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.9)


class TrainingClock(pl.Callback):
    """Counts images and seconds between the start and the end of training."""

    def __init__(self) -> None:
        self.stopwatch, self.images = Stopwatch(), 0

    def on_train_epoch_start(self, *_: object) -> None:
        self.stopwatch.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
    ) -> None:
        self.images += len(batch[1])

    def on_train_end(self, *_: object) -> None:
        self.stopwatch.stop()


def template(project: Path, folder: Path, epochs: int, progress_bar: bool = True) -> float:
    data = FashionMNIST(str(project / "data"), train=True, transform=ToTensor())
    loader = DataLoader(Subset(data, range(55_000)), BATCH_SIZE, shuffle=True, num_workers=2)
    clock = TrainingClock()
    pl.seed_everything(0, verbose=False)
    pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        log_every_n_steps=1,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
    ).fit(TemplateModule(), loader)
    return clock.images / clock.stopwatch.seconds


CONTENDERS: dict[str, Contender] = {
    "this project": this_project,
    "template": template,
    "template, no bar": partial(template, progress_bar=False),
}


def measure(name: str, project: Path, epochs: int) -> float:
    """Let one contender train in a process of its own, so that none profits or suffers from what another set."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_train_quietly, name, project, epochs).result()


def _train_quietly(name: str, project: Path, epochs: int) -> float:
    # A spawned process would start its DataLoader's workers by spawning as well: importing torch anew in each, at
    # every epoch, which no user's run does. None brings back the platform's default.
    multiprocessing.set_start_method(None, force=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")  # on how to configure the template better
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        return CONTENDERS[name](project, Path(folder), epochs)


def compare(project: Path, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Examples per second of each contender in each round; a round that is not counted comes first."""
    figures: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):
        for name in CONTENDERS:
            figure = measure(name, project, epochs)
            print(f"{f'round {number}' if number else 'warm-up'}: {name} {figure:,.0f}/s", flush=True)
            if number:
                figures[name].append(figure)
    return figures


def report(figures: dict[str, list[float]]) -> str:
    """The figures as text: each contender's, and how often this project is faster."""
    ours, *others = figures
    rows = [f"{name:<18}{spread(values, ',.0f')} examples/s" for name, values in figures.items()]
    for other in others:
        rows.append(f"{ours} ÷ {other}: {spread(ratios(figures[ours], figures[other]), '.2f')}")
    return "\n".join([*heading(len(figures[ours])), *rows])
