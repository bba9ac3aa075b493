"""The contenders of the training benchmark; scripts/benchmark.py describes them."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.config import Settings
from lenet.data import ImageDataModule
from lenet.fast.memory import garbage_collector_frozen, keep_freed_memory
from lenet.models import LeNet, xavier_uniform_
from lenet.training.parts import data_of
from lenet.training.run import run

OURS = "this project"
TRAINED_IMAGES = 55_000
LEARNING_RATE = 0.9


def this_project(settings: Settings, folder: Path) -> float:
    result = run(settings, folder)
    return float(result["images"] / result["seconds"])


def plain(settings: Settings, folder: Path, memory_format: torch.memory_format = torch.contiguous_format) -> float:
    keep_freed_memory()
    data = data_of(settings)
    assert isinstance(data, ImageDataModule)
    data.setup()
    images, labels = (values.to(device_of(settings)) for values in data.images("train"))
    images = images[:, None].float().div_(255).to(memory_format=memory_format)
    net = new_lenet(settings).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, fused=True)

    def epoch(_: int) -> None:
        order = torch.randperm(len(images), device=images.device)
        batches = torch.split(order, data.batch_size)
        losses = [train_plainly(net, optimizer, images[indices], labels[indices])[0] for indices in batches]
        torch.stack(losses).mean().item()

    # Two batches of each size, full and left over: libraries set themselves up for each before the clock starts.
    for size in 2 * [data.batch_size, TRAINED_IMAGES % data.batch_size or data.batch_size]:
        train_plainly(net, optimizer, images[:size], labels[:size])
    with garbage_collector_frozen():
        return speed_of(settings, epoch)


class TemplateModule(pl.LightningModule):
    """A LightningModule as in most projects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/acc", (logits.argmax(1) == labels).float().mean(), on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def template(settings: Settings, folder: Path) -> float:
    timer, epochs, device = Timer(), settings.trainer.max_epochs, settings.device.accelerator
    files: dict[str, Any] = {"logger": TensorBoardLogger(folder), "log_every_n_steps": 1, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator=device, devices=1, callbacks=[timer], **files)
    trainer.fit(TemplateModule(new_lenet(settings)), pictures(settings, workers=2))
    return epochs * TRAINED_IMAGES / timer.time_elapsed("train")


def tutorial(settings: Settings, folder: Path) -> float:
    loader, net, device = pictures(settings, workers=4), new_lenet(settings), device_of(settings)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)

    def epoch(_: int) -> None:
        loss_sum = correct = 0.0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            loss, logits = train_plainly(net, optimizer, images, labels)
            loss_sum += float(loss) * len(labels)
            correct += float((logits.argmax(1) == labels).sum())

    return speed_of(settings, epoch)


def train_plainly(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the loss () and the logits (N, classes)."""
    optimizer.zero_grad()
    logits = net(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), logits.detach()


def speed_of(settings: Settings, epoch: Callable[[int], None]) -> float:
    """Images per second of a loop."""
    started = time.perf_counter()
    for number in range(settings.trainer.max_epochs):
        epoch(number)
    return settings.trainer.max_epochs * TRAINED_IMAGES / (time.perf_counter() - started)


def device_of(settings: Settings) -> torch.device:
    return torch.device("cuda" if settings.device.accelerator == "gpu" else "cpu")


def new_lenet(settings: Settings) -> LeNet:
    torch.manual_seed(0)
    net = LeNet()
    xavier_uniform_(net)
    return net.to(device_of(settings))


def pictures(settings: Settings, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """torchvision's training images; each is converted to a tensor when it is read."""
    data = FashionMNIST(settings.section("data")["root"], train=True, transform=ToTensor())
    return DataLoader(Subset(data, range(TRAINED_IMAGES)), settings.data.batch_size, shuffle=True, num_workers=workers)


CONTENDERS: dict[str, Callable[[Settings, Path], float]] = {
    OURS: this_project,
    "plain": plain,
    "plain, NHWC": partial(plain, memory_format=torch.channels_last),
    "template": template,
    "tutorial": tutorial,
}
"""Each trains with the settings, has a folder for its files, and returns images per second."""
