"""The contenders of the training benchmark; scripts/benchmark.py describes them."""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
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
from lenet.models import LeNet, init_weights_
from lenet.training.parts import data_of
from lenet.training.run import run

OURS = "this project"
TRAINED_IMAGES = 55_000
LEARNING_RATE = 0.9


class Unknown(LeNet):
    """LeNet, but no kernel knows it: its forward is its own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


def this_project(settings: Settings, folder: Path, network: str = "") -> float:
    if network:
        model = settings.model.model_copy(update={"target": network})
        settings = settings.model_copy(update={"model": model})
    result = run(settings, folder)
    # What is drawn and saved after the last epoch is not in the seconds of training.
    seconds = sum(result[key] for key in ("seconds", "dashboard_seconds", "checkpoint_seconds"))
    return float(result["images"] / seconds)


def plain(
    settings: Settings,
    folder: Path,
    memory_format: torch.memory_format = torch.contiguous_format,
    compiled: str | None = None,
) -> float:
    keep_freed_memory()
    images, labels = trained_images(settings)
    images = images.float().div_(255).to(memory_format=memory_format)
    net, size = new_lenet(settings).to(memory_format=memory_format), settings.data.batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, fused=True)
    forward: Any = torch.compile(net, mode=compiled) if compiled else net

    def epoch(_: int) -> None:
        batches = torch.split(torch.randperm(len(images), device=images.device), size)
        losses = [train_plainly(forward, optimizer, images[indices], labels[indices])[0] for indices in batches]
        torch.stack(losses).mean().item()

    # Some batches of each size, full and left over: libraries set themselves up for each before the clock starts.
    for count in 3 * [size, TRAINED_IMAGES % size or size]:
        train_plainly(forward, optimizer, images[:count], labels[:count])
    with garbage_collector_frozen():
        return speed_of(settings, epoch)


def whole_graph(settings: Settings, folder: Path, compiled: bool = False) -> float:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = compiled
    images, labels = trained_images(settings)
    net, size = new_lenet(settings), settings.data.batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(LEARNING_RATE, device=images.device), fused=True)
    forward: Any = torch.compile(net) if compiled else net
    chosen, loss_sum = torch.zeros(size, dtype=torch.int64, device=images.device), torch.zeros(1, device=images.device)

    def step() -> None:
        batch = images.index_select(0, chosen).float().div_(255)
        loss_sum.add_(train_plainly(forward, optimizer, batch, labels.index_select(0, chosen))[0])

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def epoch(_: int) -> None:
        for batch in torch.split(torch.randperm(len(images), device=images.device), size)[: len(images) // size]:
            chosen.copy_(batch)  # the left-over batch is left out
            graph.replay()
        loss_sum.item()

    return speed_of(settings, epoch, len(images) // size * size)


def trained_images(settings: Settings) -> list[Tensor]:
    """The training images (N, 1, 28, 28), bytes, and their labels, on the device."""
    data = data_of(settings)
    assert isinstance(data, ImageDataModule)
    data.setup()
    images, labels = data.images("train")
    return [images[:, None].to(device_of(settings)), labels.to(device_of(settings))]


def in_jax(settings: Settings, folder: Path) -> float:
    from lenet.benchmarks.in_jax import epochs

    images, labels = (values.cpu().numpy() for values in trained_images(settings))
    weights = [values.detach().cpu().numpy() for values in new_lenet(settings).parameters()]
    epoch = epochs(images, labels, weights, settings.data.batch_size, LEARNING_RATE)
    epoch(0)  # compiles
    return speed_of(settings, epoch, len(images) // settings.data.batch_size * settings.data.batch_size)


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


def speed_of(settings: Settings, epoch: Callable[[int], object], images: int | None = None) -> float:
    """Images per second of a loop, which takes so many an epoch, or all."""
    started = time.perf_counter()
    for number in range(settings.trainer.max_epochs):
        epoch(number)
    return settings.trainer.max_epochs * (images or TRAINED_IMAGES) / (time.perf_counter() - started)


def device_of(settings: Settings) -> torch.device:
    return torch.device("cuda" if settings.device.accelerator == "gpu" else "cpu")


def new_lenet(settings: Settings) -> LeNet:
    torch.manual_seed(0)
    net = LeNet()
    init_weights_(net)
    return net.to(device_of(settings))


def pictures(settings: Settings, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """torchvision's training images; each is converted to a tensor when it is read."""
    data = FashionMNIST(settings.section("data")["root"], train=True, transform=ToTensor())
    return DataLoader(Subset(data, range(TRAINED_IMAGES)), settings.data.batch_size, shuffle=True, num_workers=workers)


CONTENDERS: dict[str, dict[str, Callable[[Settings, Path], float]]] = {
    "cpu": {
        OURS: this_project,
        "plain": plain,
        "plain, NHWC": partial(plain, memory_format=torch.channels_last),
        "template": template,
        "tutorial": tutorial,
    },
    "gpu": {
        OURS: this_project,
        "this, any model": partial(this_project, network="lenet.benchmarks.contenders.Unknown"),
        "plain": plain,
        "compiled": partial(plain, compiled="reduce-overhead"),
        "graph": whole_graph,
        "graph, compiled": partial(whole_graph, compiled=True),
    },
}
"""By device. Each trains with the settings, has a folder for its files, and returns images per second."""

if find_spec("jax") is not None:
    CONTENDERS["gpu"]["jax"] = in_jax
