"""What holds on a GPU; skipped where there is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
    "normalised": ("model=lenet_norm", "optimizer=adamw", "scheduler=onecycle"),
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


def test_the_cuda_kernel_trains_as_pytorch_does() -> None:
    command = [sys.executable, "-m", "tests.fast.cuda.on_gpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
