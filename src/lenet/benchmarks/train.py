"""How fast is training? The contenders take turns, round after round, so that a machine whose speed drifts is fair.

    python scripts/benchmark.py train --rounds 5 --epochs 2
    python scripts/benchmark.py train --rounds 3 --batch-size 64 256 1024 8192

A contender's figure is images trained ÷ wall time of training: loading, logging and checkpoints included, validation
excluded. Reported are medians over the rounds, and the ratio round by round. All train the same LeNet with SGD on the
images that are not held out, each time in a process of its own.

this project     what `python train.py` does, with its logs and checkpoints.
own step         this project's network, batches and optimizer in a plain loop: what the trainer costs.
plain            the best plain PyTorch loop we can write: floats in memory, fused SGD, nothing read from the device.
plain, NHWC      the same with channels-last images and weights.
template         Lightning as most projects use it: DataLoader(num_workers=2), torchvision's ToTensor picture by
                 picture, self.log on every step, the default progress bar (drawn into the null device).
tutorial         the loop that d2l.ai teaches: DataLoader with four workers, ToTensor, loss and accuracy read at
                 every step.

In each round the machine also multiplies matrices, 2048×2048 in float32. LeNet takes 2.264 million floating-point
operations for an image, forward and backward: so the product's rate implies the most images per second that one could
hope for.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.benchmarks.report import heading, ratios, spread
from lenet.cli import compose_settings
from lenet.config import Settings
from lenet.memory import keep_freed_memory
from lenet.model import LeNet, xavier_uniform_
from lenet.module import Tally
from lenet.summary import multiply_adds, stages
from lenet.throughput import Stopwatch
from lenet.training import build_classifier, build_data, run

OURS, PEAK = "this project", "matrix product"
TRAINED_IMAGES = 55_000
LEARNING_RATE = 0.9


@dataclass(frozen=True)
class Task:
    """What each contender is given to do.

    Attributes:
        project: the folder of conf/ and data/.
        device: as in `device=...`: cpu, gpu or auto.
    """

    project: Path
    epochs: int = 2
    batch_size: int = 256
    device: str = "cpu"

    @property
    def settings(self) -> Settings:
        return compose_settings(
            self.project,
            f"trainer.max_epochs={self.epochs}",
            f"data.batch_size={self.batch_size}",
            f"device={self.device}",
        )

    @property
    def torch_device(self) -> torch.device:
        gpu = self.device == "gpu" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu else "cpu")

    @property
    def batch_sizes(self) -> set[int]:
        """Images in a batch, and in the one that is left over."""
        return {min(self.batch_size, TRAINED_IMAGES), TRAINED_IMAGES % self.batch_size or self.batch_size}

    def pictures(self) -> Subset[tuple[Tensor, int]]:
        """The training images, each made a tensor when it is asked for."""
        data = FashionMNIST(str(self.project / "data"), train=True, transform=ToTensor())
        return Subset(data, range(TRAINED_IMAGES))


Contender = Callable[[Task, Path], float]
"""Trains, with a folder for what it writes. Returns examples per second."""


def this_project(task: Task, folder: Path) -> float:
    result = run(task.settings, folder)
    return float(result["images"] / result["seconds"])


def own_step(task: Task, folder: Path) -> float:
    keep_freed_memory()
    pl.seed_everything(0, verbose=False)
    data, classifier = build_data(task.settings), build_classifier(task.settings).to(task.torch_device)
    data.setup()
    loader, optimizer = data.train_dataloader(), classifier.optimizer_factory(classifier.parameters())
    classifier.warm_up(task.batch_sizes)
    started = time.perf_counter()
    for epoch in range(task.epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        tally = Tally()
        for block in loader:
            for batch in block._replace(images=block.images.to(classifier.device)).batches():
                optimizer.zero_grad()
                labels = batch.labels.to(classifier.device)
                logits = classifier(batch.images)
                loss_sum = F.cross_entropy(logits, labels, reduction="sum")
                tally.add(loss_sum, logits, labels)
                (loss_sum / batch.total).backward()
                optimizer.step()
            tally.read()
    return task.epochs * TRAINED_IMAGES / (time.perf_counter() - started)


def plain(task: Task, folder: Path, memory_format: torch.memory_format = torch.contiguous_format) -> float:
    data = FashionMNIST(str(task.project / "data"), train=True)
    device = task.torch_device
    images = data.data[:TRAINED_IMAGES, None].to(device).float().div_(255).to(memory_format=memory_format)
    labels = data.targets[:TRAINED_IMAGES].to(device)
    net, optimizer = _lenet(device, memory_format, fused=True)

    def step(indices: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images[indices]), labels[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    for size in 2 * list(task.batch_sizes):  # to warm up, as ours does
        step(torch.arange(size, device=device))
    started = time.perf_counter()
    for _ in range(task.epochs):
        order = torch.randperm(TRAINED_IMAGES, device=device)
        losses = [step(indices) for indices in torch.split(order, task.batch_size)]
        torch.stack(losses).mean().item()
    return task.epochs * TRAINED_IMAGES / (time.perf_counter() - started)


class TemplateModule(pl.LightningModule):
    """What a LightningModule looks like in most projects."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet()
        xavier_uniform_(self.net)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/acc", (logits.argmax(1) == labels).float().mean(), on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


class TrainingClock(pl.Callback):
    """Seconds between the start and the end of training."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def on_train_epoch_start(self, *_: object) -> None:
        self.stopwatch.start()

    def on_train_end(self, *_: object) -> None:
        self.stopwatch.stop()


def template(task: Task, folder: Path) -> float:
    loader = DataLoader(task.pictures(), task.batch_size, shuffle=True, num_workers=2)
    clock = TrainingClock()
    pl.seed_everything(0, verbose=False)
    pl.Trainer(
        max_epochs=task.epochs,
        accelerator=task.device,
        devices=1,
        logger=TensorBoardLogger(folder),
        log_every_n_steps=1,
        callbacks=[clock],
        enable_checkpointing=False,
    ).fit(TemplateModule(), loader)
    return task.epochs * TRAINED_IMAGES / clock.stopwatch.seconds


def tutorial(task: Task, folder: Path) -> float:
    device = task.torch_device
    loader = DataLoader(task.pictures(), task.batch_size, shuffle=True, num_workers=4)
    net, optimizer = _lenet(device, torch.contiguous_format, fused=False)
    started = time.perf_counter()
    for _ in range(task.epochs):
        loss_sum = correct = 0.0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                loss_sum += float(loss) * len(labels)
                correct += float((logits.argmax(1) == labels).sum())
    return task.epochs * TRAINED_IMAGES / (time.perf_counter() - started)


def matrix_product(task: Task, folder: Path) -> float:
    """The examples per second that the rate of float32 matrix products implies: median of ten."""
    left, right = torch.rand(2, 2048, 2048, device=task.torch_device).unbind()
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / statistics.median(seconds[2:]) / operations_per_image()


def operations_per_image() -> int:
    """Floating-point operations of a training step for one image: a multiplication and an addition for each product."""
    _, forward_and_backward = multiply_adds(stages(LeNet()))
    return 2 * forward_and_backward


def _lenet(
    device: torch.device, memory_format: torch.memory_format, fused: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = LeNet()
    xavier_uniform_(net)
    net = net.to(device).to(memory_format=memory_format)
    return net, torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, fused=fused)


CONTENDERS: dict[str, Contender] = {
    OURS: this_project,
    "own step": own_step,
    "plain": plain,
    "plain, NHWC": partial(plain, memory_format=torch.channels_last),
    "template": template,
    "tutorial": tutorial,
    PEAK: matrix_product,
}

Figures = dict[int, dict[str, list[float]]]
"""Examples per second: by batch size and contender, one in each round."""


def measure(name: str, task: Task) -> float:
    """Let one contender train in a process of its own, so that none profits or suffers from what another set."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_train_quietly, name, task).result()


def _train_quietly(name: str, task: Task) -> float:
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
        return CONTENDERS[name](task, Path(folder))


def compare(tasks: list[Task], rounds: int) -> Figures:
    """Let all contenders train with each batch size, `rounds` times; a round that is not counted comes first."""
    figures: Figures = {task.batch_size: {name: [] for name in CONTENDERS} for task in tasks}
    for number in range(rounds + 1):
        # The warm-up brings files into memory; that takes one batch size.
        for task in tasks if number else tasks[:1]:
            for name in CONTENDERS:
                figure = measure(name, task)
                when = f"round {number} of {rounds}" if number else "warm-up"
                print(f"{when}, batches of {task.batch_size}: {name} {figure:,.0f}/s", flush=True)
                if number:
                    figures[task.batch_size][name].append(figure)
    return figures


def report(figures: Figures) -> str:
    """The figures as text: each contender's, and how often this project is faster."""
    rounds = len(next(iter(figures.values()))[OURS])
    rows = heading(rounds)
    for batch_size, contenders in figures.items():
        peak = statistics.median(contenders[PEAK]) * operations_per_image() / 1e9
        share = spread(ratios(contenders[OURS], contenders[PEAK]), ".1%")
        rows += [
            f"batches of {batch_size:<8}{'examples/s':<26}{OURS} is faster by",
            *(
                f"  {name:<17}{spread(values, ',.0f'):<26}"
                + ("" if name == OURS else spread(ratios(contenders[OURS], values), ".2f"))
                for name, values in contenders.items()
                if name != PEAK
            ),
            f"  {PEAK}: {peak:,.0f} GFLOP/s, which implies {spread(contenders[PEAK], ',.0f')} examples/s;"
            f" {OURS} reaches {share} of it",
        ]
    return "\n".join(rows)


def plot(figures: Figures) -> Figure:
    """One batch size: a bar for each contender, a dot for each round. Several: a line over the batch size."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in CONTENDERS if name != PEAK]
    if len(figures) == 1:
        (contenders,) = figures.values()
        bars = axes.barh(names[::-1], [statistics.median(contenders[name]) for name in names[::-1]], color="tab:blue")
        axes.bar_label(bars, fmt="{:,.0f}", padding=12)
        for name in names:
            axes.plot(contenders[name], [name] * len(contenders[name]), "k.", markersize=4)
        axes.axvline(statistics.median(contenders[PEAK]), color="tab:red", linestyle="--")
        axes.annotate("limit by matrix products", (statistics.median(contenders[PEAK]), 0), color="tab:red", ha="right")
        axes.set_xlabel(f"examples/s, batches of {next(iter(figures))}")
    else:
        for name in (*names, PEAK):
            medians = [statistics.median(contenders[name]) for contenders in figures.values()]
            axes.plot(list(figures), medians, "r--" if name == PEAK else "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="examples/s")
        axes.set_xticks(list(figures), labels=[str(size) for size in figures], minor=False)
        axes.minorticks_off()
        axes.legend()
    return figure
