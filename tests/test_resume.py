"""Runs that are ended in the middle, and go on: to the same numbers as if nothing had been."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lenet import interrupts, provenance
from lenet.cli import compose_settings
from lenet.interrupts import Interrupted
from lenet.module import Classifier
from lenet.sameness import differences
from lenet.training import run
from tests.conftest import PROJECT

# 14 steps an epoch, in blocks of 4: so each epoch ends with a smaller one.
SMALL = (
    "data=synthetic", "dashboard=minimal",
    "data.train_size=1000", "data.val_size=120", "data.test_size=50", "data.batch_size=64",
    "trainer.max_epochs=3", "trainer.log_every_n_steps=4",
)  # fmt: skip


class CrashError(Exception):
    """Stands for a run that is killed: nothing is saved or closed for it."""


def start(folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return run(compose_settings(PROJECT, *SMALL, *overrides), folder, introduce=False)


def resume(folder: Path, *overrides: str) -> dict[str, Any]:
    settings = provenance.read(folder)["settings"]
    composed = compose_settings(PROJECT, *SMALL, *overrides, f"resume='{folder}'")
    return run(composed.model_validate({**settings, "resume": str(folder)}), folder, introduce=False)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in interrupts.signals()}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen within a step of training, once; steps are counted from 1."""

    def arrange(step: int, happen: Callable[[], None]) -> None:
        compute = Classifier.compute_gradients

        def computed(self: Classifier, *arguments: Any) -> None:
            compute(self, *arguments)
            if self._trainer is not None and self.trainer.global_step + 1 == step:  # warming up has no trainer
                monkeypatch.setattr(Classifier, "compute_gradients", compute)
                happen()

        monkeypatch.setattr(Classifier, "compute_gradients", computed)

    return arrange


def crash() -> None:
    raise CrashError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


VARIANTS = {
    "sgd": (),
    "momentum and cosine": ("optimizer.momentum=0.9", "optimizer.lr=0.05", "scheduler=cosine"),
    "adam and onecycle, normalised": ("optimizer=adam", "model=lenet_norm", "scheduler=onecycle"),
    "layer by layer": ("fuse=false", "model=lenet_relu"),
    "max_steps": ("trainer.max_steps=33",),
    "fewer batches": ("+trainer.limit_train_batches=9",),
    "validation within the epoch": ("+trainer.val_check_interval=3",),
    "test after each epoch": ("test_every_epoch=true",),
    "dashboards": ("dashboard=full",),
    "nothing held out": ("data.val_size=0",),
}


@pytest.mark.parametrize(("variant", "step"), list(zip(VARIANTS, itertools.cycle([6, 14, 22, 28]), strict=False)))
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_numbers(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None], variant: str, step: int
) -> None:
    start(tmp_path / "whole", *VARIANTS[variant])
    at_step(step, terminate)
    with pytest.raises(Interrupted) as ended:
        start(tmp_path / "ended", *VARIANTS[variant])
    assert ended.value.signum == signal.SIGTERM
    assert f"resume={tmp_path / 'ended'} goes on after step {step}" in str(ended.value)
    resume(tmp_path / "ended", *VARIANTS[variant])
    assert differences(tmp_path / "whole", tmp_path / "ended") == []


@pytest.mark.parametrize("every_seconds", [0, 3600])
@pytest.mark.parametrize("steps", [(3,), (13, 27), (30, 34, 41)])
def test_a_run_that_was_killed_goes_on_from_what_was_saved(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None], steps: tuple[int, ...], every_seconds: int
) -> None:
    variant = ("optimizer=adam", "model=lenet_relu", f"checkpoint.every_seconds={every_seconds}")
    start(tmp_path / "whole", *variant)
    for number, step in enumerate(steps):
        at_step(step, crash)
        with pytest.raises(CrashError):
            (resume if number else start)(tmp_path / "killed", *variant)
    resume(tmp_path / "killed", *variant)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
