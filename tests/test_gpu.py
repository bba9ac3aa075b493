"""What holds on a GPU. Without one there is nothing to see here: these tests are skipped, and say so."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from lenet.training import checkpoint_file
from tests.commands import Commands, wait_for
from tests.conftest import TrainCommand
from tests.stress.sameness import differences

# Lightning looks for GPUs without setting one up: forks of this process could not use it any more.
pytestmark = pytest.mark.skipif(not CUDAAccelerator.is_available(), reason="needs a GPU")

VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")

SMALL = ("data=synthetic", "data.test_size=500", "trainer.max_epochs=2", "device=gpu")

VARIANTS = {
    "published": (),
    "max pooling": ("model=lenet_relu", "optimizer=adam"),
    "normalised": ("model=lenet_norm", "optimizer=adamw", "scheduler=onecycle"),
    "half precision": ("precision=bf16",),
    "clipped": ("+trainer.gradient_clip_val=1.0",),
    "momentum": ("optimizer.momentum=0.9", "optimizer.lr=0.1"),
    "loops": ("layers=loops", "model=lenet_relu"),
    "taps": ("layers=taps", "model=lenet_relu"),
    "im2col": ("layers=im2col", "model=lenet_relu"),
    "kernel_matrix": ("layers=kernel_matrix", "model=lenet_relu"),
    "fft": ("layers=fft", "model=lenet_relu"),
}


@pytest.fixture(autouse=True)
def gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if VISIBLE is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_deterministic_runs_are_the_same_bit_for_bit(train_command: TrainCommand, variant: str) -> None:
    runs = [train_command(*SMALL, "deterministic=true", *VARIANTS[variant]) for _ in range(2)]
    for run in runs:
        assert (run.status, run.stderr) == (0, "")
        assert run.metrics["device"] == "cuda:0"
    assert differences(runs[0].folder, runs[1].folder) == []


@pytest.mark.parametrize("variant", ["published", "max pooling", "normalised", "half precision"])
def test_a_run_that_was_ended_goes_on_to_the_same_numbers(
    train_command: TrainCommand, commands: Commands, tmp_path: Path, variant: str
) -> None:
    words = (*SMALL, "deterministic=true", "trainer.max_epochs=20", "checkpoint.every_seconds=0", *VARIANTS[variant])
    whole = train_command(*words)
    ended = tmp_path / "ended"
    command = commands.start("train.py", *words, f"hydra.run.dir={ended}")
    wait_for(ended / "checkpoints" / "last.ckpt", command)
    time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert "goes on after step" in command.communicate()[1]
    assert command.wait() == 143
    resumed = commands.run("train.py", f"resume={ended}")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert differences(whole.folder, ended) == []


def test_a_run_goes_on_elsewhere(train_command: TrainCommand, commands: Commands) -> None:
    run = train_command(*SMALL, "trainer.max_epochs=1")
    assert run.status == 0, run.stderr
    resumed = commands.run("train.py", f"resume={run.folder}", "trainer.max_epochs=2", "device=cpu")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert json.loads((run.folder / "metrics.json").read_text())["device"] == "cpu"


def test_a_gpu_and_a_cpu_begin_with_the_same_weights_and_learn_alike(train_command: TrainCommand) -> None:
    gpu, cpu = (train_command(*SMALL, device, "trainer.max_steps=20") for device in ("device=gpu", "device=cpu"))
    assert (gpu.status, cpu.status) == (0, 0)
    ours, theirs = (checkpoint_file.read(run.folder / "checkpoints" / "last.ckpt")["state_dict"] for run in (gpu, cpu))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)


def test_the_jobs_of_a_sweep_train_on_the_gpu(commands: Commands, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    done = commands.run("train.py", "-m", *SMALL, "optimizer.lr=0.5,0.9", f"hydra.sweep.dir={sweep}")
    assert (done.returncode, done.stderr) == (0, "")
    for number in range(2):
        assert json.loads((sweep / str(number) / "metrics.json").read_text())["device"] == "cuda:0"
