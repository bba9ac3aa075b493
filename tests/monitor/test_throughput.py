"""The clock, driven by a fake time that passes only where a test says so."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lenet.models import LeNet
from lenet.monitor.tensorboard import RunLogger
from lenet.monitor.throughput import Stopwatch, Throughput
from lenet.training.module import Classifier
from tests.training.small import Noise, fit, scalars


class FakeTime(pl.Callback):
    """A second for each of the eight training steps of 12 images, much more for validation."""

    now = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 1

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    return fake


def rates(folder: Path) -> list[float]:
    """The examples per second of each epoch."""
    return [rate for _, rate in scalars(folder, "train/examples_per_sec")]


def test_stopwatch_runs_between_start_and_stop(clock: FakeTime) -> None:
    watch = Stopwatch(5)
    clock.now += 1
    watch.start()
    clock.now += 2
    watch.stop()
    clock.now += 4
    with watch:
        clock.now += 8
    clock.now += 16
    assert watch.seconds == 15


def test_validation_does_not_count(clock: FakeTime, tmp_path: Path) -> None:
    throughput = Throughput()
    fit([throughput, clock], RunLogger(tmp_path))
    assert rates(tmp_path) == [12, 12]
    assert throughput.stopwatch.seconds == 8
    assert clock.now > 2000  # it did happen


def test_loading_counts(clock: FakeTime, tmp_path: Path) -> None:
    class SlowNoise(Noise):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer is not None and self.trainer.training:
                clock.now += 3
            return batch

    fit([Throughput(), clock], RunLogger(tmp_path), data=SlowNoise())
    assert rates(tmp_path) == [3, 3]


def test_a_resumed_run_continues_the_clock(clock: FakeTime, tmp_path: Path) -> None:
    throughput, module = Throughput(), Classifier(LeNet(), seed=0)
    throughput.load_state_dict({"seconds": 5.0})
    module.images_trained = 100
    fit([throughput, clock], RunLogger(tmp_path), module=module)
    assert rates(tmp_path) == [12, 12]
    assert throughput.state_dict() == {"seconds": 13.0}
