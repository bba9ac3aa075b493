from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from lenet.data.module import SyntheticDataModule
from lenet.models.lenet import LeNet
from lenet.training.checkpoints import WholeFileIO
from tests.conftest import Finished, TrainCommand


def test_a_run_leaves_the_last_and_the_best(finished_run: Finished) -> None:
    names = sorted(path.name for path in (finished_run.folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_the_last_is_of_the_last_epoch_and_the_best_of_the_best(train_here: TrainCommand) -> None:
    # At this learning rate nothing is learnt: the first epoch is as good as the second.
    small = ("data.train_size=600", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=2")
    run = train_here("data=synthetic", *small, "optimizer.lr=1e-30")
    steps = {
        name: torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("last", "best")
    }
    assert steps == {"last": 4, "best": 2}


@pytest.mark.parametrize("name", ["last", "best"])
def test_checkpoints_load_without_trusting_them(finished_run: Finished, name: str) -> None:
    checkpoint = torch.load(finished_run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) == 61_706


def test_the_best_weights_reach_the_best_validation_accuracy(finished_run: Finished) -> None:
    checkpoint = torch.load(finished_run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    net = LeNet(pool=torch.nn.MaxPool2d, activation=torch.nn.ReLU)
    net.load_state_dict({key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items()})
    data = SyntheticDataModule(train_size=6000, test_size=1000, batch_size=256, val_size=1000)
    data.setup()
    (batch,) = data.val_dataloader()[0]
    acc = (net(batch.images / 255).argmax(1) == batch.labels).double().mean().item()
    assert acc == finished_run.metrics["best_val_acc"]
    assert acc == pytest.approx(max(value for _, value in finished_run.scalars("val/acc")))


def test_checkpoints_are_written_beside_training(train_here: TrainCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = []
    save = WholeFileIO.save_checkpoint

    def slow(self: WholeFileIO, *args: Any, **kwargs: Any) -> None:
        writers.append(threading.current_thread())
        time.sleep(0.2)
        save(self, *args, **kwargs)

    monkeypatch.setattr(WholeFileIO, "save_checkpoint", slow)
    run = train_here("data=synthetic", "data.train_size=300", "data.val_size=100", "trainer.max_epochs=2")
    assert len(writers) >= 3
    assert threading.main_thread() not in writers
    # All the same the last one is there when the run ends, with the weights as they were then.
    assert torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
