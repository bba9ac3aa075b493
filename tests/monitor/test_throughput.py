"""The clock, driven by a fake time that passes only where a test says so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD

from lenet.data.module import Block, ImageSet, Share, SyntheticDataModule
from lenet.models.lenet import LeNet
from lenet.monitor.throughput import Stopwatch, Throughput
from lenet.training.module import Classifier


class FakeTime:
    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    return fake


def test_stopwatch_runs_between_start_and_stop(clock: FakeTime) -> None:
    watch = Stopwatch()
    clock.pass_by(1)
    watch.start()
    clock.pass_by(2)
    watch.stop()
    clock.pass_by(4)
    watch.start()
    clock.pass_by(8)
    watch.stop()
    clock.pass_by(16)
    assert watch.seconds == 10


class Costs(pl.Callback):
    """Lets time pass in each part of a run."""

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.pass_by(1.0)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.clock.pass_by(1000)


def run(
    clock: FakeTime,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    costs: Costs,
    load: float = 0.0,
) -> tuple[Throughput, list[float]]:
    """Two epochs of 4 steps of 64 images, a validation and a checkpoint after each; the rate of each epoch."""
    throughput = Throughput()
    fetch = ImageSet.__getitem__

    def slow_fetch(self: ImageSet, shares: Sequence[Share]) -> Block:
        clock.pass_by(load if self.stage == "train" else 0)
        return fetch(self, shares)

    monkeypatch.setattr(ImageSet, "__getitem__", slow_fetch)
    rates: list[float] = []
    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    publish = module.publish

    def record(values: dict[str, float]) -> None:
        rates.extend(values[tag] for tag in values if tag == "train/examples_per_sec")
        publish(values)

    monkeypatch.setattr(module, "publish", record)
    pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[throughput, costs, ModelCheckpoint(folder, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=2,
        default_root_dir=folder,
    ).fit(module, datamodule=SyntheticDataModule(train_size=300, test_size=10, batch_size=64, val_size=44))
    return throughput, rates


def test_validation_does_not_count(clock: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput, rates = run(clock, tmp_path, monkeypatch, Costs(clock))
    assert rates == [64, 64]
    assert throughput.stopwatch.seconds == 8
    assert throughput.images == 512
    assert clock.now > 2000  # it did happen


def test_loading_counts(clock: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rates = run(clock, tmp_path, monkeypatch, Costs(clock), load=3.0)
    assert rates == [16, 16]


def test_the_warm_up_does_not_count(clock: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up = Classifier.warm_up

    def slow(self: Classifier, batch_sizes: Iterable[int]) -> None:
        clock.pass_by(7000)
        warm_up(self, batch_sizes)

    monkeypatch.setattr(Classifier, "warm_up", slow)
    throughput, rates = run(clock, tmp_path, monkeypatch, Costs(clock))
    assert rates == [64, 64]
    assert throughput.stopwatch.seconds == 8
    assert clock.now > 7000


def test_what_training_waits_for_when_a_checkpoint_is_saved_counts(
    clock: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = TorchCheckpointIO.save_checkpoint, []

    def slow_save(self: TorchCheckpointIO, *args: Any, **kwargs: Any) -> None:
        clock.pass_by(16)
        saved.append(args)
        save(self, *args, **kwargs)

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", slow_save)
    throughput, _ = run(clock, tmp_path, monkeypatch, Costs(clock))
    assert len(saved) >= 2
    assert throughput.stopwatch.seconds == 8 + 16 * len(saved)
