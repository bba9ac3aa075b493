from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from lenet.data import Batch, ImageDataModule, SyntheticDataModule
from lenet.errors import DivergenceError
from lenet.model import LeNet
from lenet.module import Classifier, Tally
from lenet.throughput import Throughput


def synthetic(**changes: Any) -> ImageDataModule:
    arguments: dict[str, Any] = {"train_size": 300, "test_size": 50, "batch_size": 64, "val_size": 90} | changes
    return SyntheticDataModule(**arguments)


def fit(module: Classifier, data: ImageDataModule, folder: Path, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "log_every_n_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**(defaults | arguments))
    trainer.fit(module, datamodule=data)
    return trainer


def test_tally_adds_up_over_batches_of_different_sizes() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 10), torch.randint(0, 10, (10,))
    tally = Tally()
    for part in (slice(0, 7), slice(7, 8), slice(8, 10)):
        tally.add(F.cross_entropy(logits[part], labels[part], reduction="sum"), logits[part], labels[part])
        tally.read()
    assert tally.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert tally.acc == (logits.argmax(1) == labels).double().mean().item()


def test_epoch_means_are_over_all_images_not_over_batches(tmp_path: Path) -> None:
    # With a learning rate of (almost) nothing the weights stay, and the means can be computed another way.
    torch.manual_seed(0)
    module, data = Classifier(LeNet(), partial(SGD, lr=1e-30)), synthetic(test_every_epoch=True)
    fit(module, data, tmp_path)
    loaders = {"train": data.train_dataloader()}
    loaders |= dict(zip(("val", "test"), data.val_dataloader(), strict=True))
    for stage, loader in loaders.items():
        batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
        logits = module(images)
        assert module.metrics[f"{stage}/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
        assert module.metrics[f"{stage}/acc"] == (logits.argmax(1) == labels).double().mean().item()


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = Classifier(LeNet(), partial(SGD, lr=0.5)), synthetic()
    plain = LeNet()
    plain.load_state_dict(module.net.state_dict())
    fit(module, data, tmp_path, max_epochs=2)

    optimizer = SGD(plain.parameters(), lr=0.5)
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            optimizer.zero_grad()
            F.cross_entropy(plain(batch.images / 255), batch.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, weights in plain.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", [[32, 32], [33, 31], [64, 0]], ids=str)
def test_the_mean_of_the_devices_gradients_is_the_gradient_of_the_whole_batch(split: list[int]) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))
    module = Classifier(LeNet(), partial(SGD, lr=0.5))

    class TwoDevices:
        world_size = 2
        global_step = 0
        optimizers = (SGD(module.parameters(), lr=0.5),)

    module._trainer = TwoDevices()  # type: ignore[assignment]
    parts = zip(torch.split(images, split), torch.split(labels, split), strict=True)
    weights = list(module.parameters())
    losses = [module.training_step(Batch(i, t, total=64, stage="train"), 0) for i, t in parts]
    mean = torch.autograd.grad(sum(losses, torch.tensor(0.0)) / 2, weights)
    whole = torch.autograd.grad(F.cross_entropy(module(images), labels), weights)
    torch.testing.assert_close(mean, whole)


class BreaksAt(nn.Module):
    """Passes its input on, but gives NaN at one forward pass in training."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, logits: Tensor) -> Tensor:
        self.calls += self.training
        return logits * math.nan if self.training and self.calls == self.step else logits


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7], ids=lambda step: f"step {step}")
def test_a_loss_that_is_no_number_stops_training_and_names_its_step(step: int, tmp_path: Path) -> None:
    # Four steps an epoch, numbers read after every second.
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), BreaksAt(step))
    module = Classifier(net, partial(SGD, lr=0.01))
    with pytest.raises(DivergenceError, match=rf"at step {step}, in epoch {1 + (step - 1) // 4},.*optimizer\.lr=0\.01"):
        fit(module, synthetic(), tmp_path, max_epochs=3)


def test_weights_spoilt_by_the_last_step_do_not_pass_the_evaluation(tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=math.inf))
    with pytest.raises(DivergenceError, match="val/loss after step 1"):
        fit(module, synthetic(batch_size=210), tmp_path)


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path: Path) -> None:
    class Untouched(pl.Callback):
        """Like ModelCheckpoint, its turn is after the module's."""

        saved = False

        def on_train_epoch_end(self, *_: Any) -> None:
            self.saved = True

    module, witness = Classifier(LeNet(), partial(SGD, lr=math.inf)), Untouched()
    data = synthetic(batch_size=300, val_size=0)
    with pytest.raises(DivergenceError, match="weights are not numbers any more after step 1"):
        fit(module, data, tmp_path, callbacks=[Throughput(), witness])
    assert not witness.saved


def test_the_step_is_the_optimizers_when_gradients_accumulate(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), BreaksAt(step=4))
    with pytest.raises(DivergenceError, match="at step 2, in epoch 1"):
        fit(Classifier(net, partial(SGD, lr=0.01)), synthetic(), tmp_path, accumulate_grad_batches=2)


def test_an_epoch_that_is_cut_short_reports_the_images_it_saw(tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, max_steps=3)
    assert module.training_tally.images == 18 + 64 + 64  # what is left of 210 comes first
    assert module.metrics["train/loss"] == module.training_tally.loss


def test_a_sanity_check_is_not_an_epoch(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, Classifier)
            assert pl_module.best_val_acc is None
            assert pl_module.metrics == {}
            trainer.should_stop = True

    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, callbacks=[Look()], num_sanity_val_steps=2)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions_train(precision: str, tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, precision=precision)
    assert math.isfinite(module.metrics["train/loss"])


def test_the_logged_rate_is_the_one_the_last_step_used(tmp_path: Path) -> None:
    def halve(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        assert total_steps == 8
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    module = Classifier(LeNet(), partial(SGD, lr=1.0), halve)
    fit(module, synthetic(), tmp_path, max_epochs=2)
    assert module.metrics["lr"] == 0.5**7
