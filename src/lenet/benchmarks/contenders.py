"""Who takes part in the comparison of training, see lenet.benchmarks.train."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.cli import compose_settings
from lenet.config import Settings
from lenet.data.module import BatchSampler
from lenet.fast.memory import keep_freed_memory, objects_set_aside
from lenet.models.lenet import LeNet, xavier_uniform_
from lenet.models.summary import multiply_adds, stages
from lenet.monitor.throughput import Stopwatch
from lenet.training.run import build_classifier, build_data, run
from lenet.training.tally import Tally

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
        return BatchSampler(TRAINED_IMAGES, self.batch_size).own_sizes

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
    data, classifier = build_data(task.settings), build_classifier(task.settings, task.torch_device)
    classifier.to(task.torch_device)
    data.setup()
    loader, optimizer = data.train_dataloader(), classifier.optimizer_factory(classifier.parameters())
    classifier.on_fit_start()
    classifier.warm_up(task.batch_sizes)
    with objects_set_aside():
        started = time.perf_counter()
        for epoch in range(task.epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            tally = Tally()
            for block in loader:
                images, labels = block.images.to(classifier.device), block.labels.to(classifier.device)
                for batch in block._replace(images=images, labels=labels).batches():
                    classifier.compute_gradients(batch, tally, optimizer)
                    optimizer.step()
                tally.read()
        return task.epochs * TRAINED_IMAGES / (time.perf_counter() - started)


def plain(task: Task, folder: Path, memory_format: torch.memory_format = torch.contiguous_format) -> float:
    keep_freed_memory()
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
    with objects_set_aside():
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
    """The examples per second that the peak rate of float32 matrix products implies: the best of twenty."""
    left, right = torch.rand(2, 2048, 2048, device=task.torch_device).unbind()
    seconds = []
    for _ in range(22):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds[2:]) / operations_per_image()


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
