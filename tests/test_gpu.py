"""What holds on a GPU; skipped where there is none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator

from tests.commands import PROJECT, Commands, wait_for
from tests.conftest import TrainCommand
from tests.stress.sameness import differences

# Lightning looks for GPUs without setting one up: forks of this process could not use it any more.
pytestmark = pytest.mark.skipif(not CUDAAccelerator.is_available(), reason="needs a GPU")

VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
SMALL = ("data=synthetic", "trainer.max_epochs=20", "checkpoint.every_seconds=0", "deterministic=true")
VARIANTS = {
    "published": (),
    "momentum": ("model=lenet_relu", "optimizer.momentum=0.9"),
    "augmented": ("augment=mixup", "average=ema"),
    "normalised": ("model=lenet_norm", "optimizer=adamw", "scheduler=onecycle"),
    "Muon": ("model=lenet_norm", "optimizer=muon", "scheduler=onecycle"),
    "half precision": ("precision=bf16",),
    "dropout": ("model.dropout=0.2", "model=lenet_relu"),
    "im2col": ("layers=im2col", "model=lenet_relu"),
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if VISIBLE is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deterministic_run_that_was_ended_goes_on_to_the_same_numbers(
    train_command: TrainCommand, commands: Commands, tmp_path: Path, variant: str
) -> None:
    words = (*SMALL, "device=gpu", *VARIANTS[variant])
    whole, ended = train_command(*words), tmp_path / "ended"
    assert (whole.status, whole.stderr) == (0, "")
    assert whole.metrics["device"] == "cuda:0"
    command = commands.start("train.py", *words, f"hydra.run.dir={ended}")
    wait_for(ended / "checkpoints" / "last.ckpt", command)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 143
    assert commands.run("train.py", f"resume={ended}").returncode == 0
    assert differences(whole.folder, ended) == []


def found(name: str) -> Any:
    """What a check of tests/gpu_checks.py has found."""
    command = [sys.executable, "-m", "tests.gpu_checks", name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=300)
    assert run.returncode == 0, run.stderr
    print(run.stdout)  # pytest -rP shows the figures
    return json.loads(run.stdout.splitlines()[-1])


def test_gradients_of_the_kernel_are_those_of_double_precision() -> None:
    for name, (ours, plain) in found("gradients").items():
        smooth = name.startswith("Sigmoid, AvgPool2d")
        assert ours < (max(1e-5, plain) if smooth else 1e-3), (name, ours, plain)


def test_twenty_steps_of_the_kernel_are_pytorchs_and_the_same_bits_each_time() -> None:
    for name, distances in found("steps").items():
        assert distances["ours"] < max(1e-4, 3 * distances["plain"]), name
        assert distances["same bits"] == 1, name


def test_recorded_steps_are_the_plain_ones() -> None:
    assert [(name, difference) for name, difference in found("recorded").items() if difference > 1e-6] == []


def test_what_waits_for_the_device_is_not_recorded_and_trains_all_the_same() -> None:
    outcome = found("refused")
    assert len(outcome["lines"]) == 1, outcome
    assert outcome["losses"][0] == pytest.approx(outcome["losses"][1], rel=1e-4)


def test_steps_cost_little_memory() -> None:
    costs = found("costs")
    assert costs["kernel"]["MiB"] < costs["recorded"]["MiB"] < 1000


RUNS = [
    (), ("model=lenet_relu", "optimizer=adam"), ("layers=taps",), ("precision=bf16",),
    ("model=lenet_norm", "optimizer=muon", "scheduler=onecycle"), ("optimizer=muon", "precision=bf16"),
]  # fmt: skip


@pytest.mark.parametrize("words", RUNS)
def test_a_run_with_fast_steps_learns_what_one_without_does(
    train_command: TrainCommand, words: tuple[str, ...]
) -> None:
    runs = [train_command(*SMALL, "device=gpu", *words, f"fuse={fuse}") for fuse in ("true", "false")]
    assert [run.stderr for run in runs] == ["", ""]
    assert not any("fuse=true" in run.stdout for run in runs)  # nothing was refused
    for tag in ("train/loss", "val/loss", "test/loss"):
        assert runs[0].metrics[tag] == pytest.approx(runs[1].metrics[tag], rel=0.05, abs=0.02), tag
