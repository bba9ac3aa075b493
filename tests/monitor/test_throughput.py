"""The clock, driven by a fake time that passes only where a test says so."""

import time
from typing import Any

import lightning.pytorch as pl
import pytest

from lenet.models import LeNet
from lenet.monitor.throughput import Stopwatch, Throughput
from lenet.training.module import Classifier
from tests.training.small import Noise, fit


class FakeTime:
    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    return fake


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The examples per second of each epoch."""
    rates: list[float] = []
    publish = Classifier.publish

    def record(self: Classifier, values: dict[str, float]) -> None:
        rates.extend(values[tag] for tag in values if tag == "train/examples_per_sec")
        publish(self, values)

    monkeypatch.setattr(Classifier, "publish", record)
    return rates


class Costs(pl.Callback):
    """A second for each of the eight training steps of 12 images, much more for validation."""

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.pass_by(1.0)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.clock.pass_by(1000)


def test_stopwatch_runs_between_start_and_stop(clock: FakeTime) -> None:
    watch = Stopwatch(5)
    clock.pass_by(1)
    watch.start()
    clock.pass_by(2)
    watch.stop()
    clock.pass_by(4)
    with watch:
        clock.pass_by(8)
    clock.pass_by(16)
    assert watch.seconds == 15


def test_validation_does_not_count(clock: FakeTime, rates: list[float]) -> None:
    throughput = Throughput()
    fit([throughput, Costs(clock)])
    assert rates == [12, 12]
    assert throughput.stopwatch.seconds == 8
    assert clock.now > 2000  # it did happen


def test_loading_counts(clock: FakeTime, rates: list[float]) -> None:
    class SlowNoise(Noise):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer is not None and self.trainer.training:
                clock.pass_by(3.0)
            return batch

    fit([Throughput(), Costs(clock)], data=SlowNoise())
    assert rates == [3, 3]


def test_a_resumed_run_continues_the_clock(clock: FakeTime, rates: list[float]) -> None:
    throughput, module = Throughput(), Classifier(LeNet(), seed=0)
    throughput.load_state_dict({"seconds": 5.0})
    module.images_trained = 100
    fit([throughput, Costs(clock)], module=module)
    assert rates == [12, 12]
    assert throughput.state_dict() == {"seconds": 13.0}
