"""Real processes that are ended and resumed from outside, as users do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lenet.sameness import differences, scalars
from tests.conftest import PROJECT, TrainCommand

LONG = ("data=synthetic", "data.train_size=3000", "data.val_size=100", "data.test_size=50", "dashboard=minimal")


def started(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run that trains."""
    words = [sys.executable, str(PROJECT / "train.py"), *LONG, *overrides, f"hydra.run.dir={folder}"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(
    ("signum", "status", "what"), [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_run_that_then_goes_on(
    train_command: TrainCommand, tmp_path: Path, signum: signal.Signals, status: int, what: str
) -> None:
    folder = tmp_path / "run"
    run = started(folder, "trainer.max_epochs=100")
    run.send_signal(signum)
    _, stderr = run.communicate(timeout=30)
    assert run.returncode == status
    assert stderr.startswith(f"{what}; python train.py resume={folder} goes on after step ")
    assert len(stderr.splitlines()) == 1
    assert stderr.strip() in (folder / "train.log").read_text()
    step = int(stderr.split()[-1])
    epochs = step // 12 + 2
    resumed = train_command(
        f"resume={folder}", f"trainer.max_epochs={epochs}", folder=tmp_path / "x" / "y", cwd=tmp_path
    )
    # hydra.run.dir is what the fixture adds, and a resumed run has its folder.
    assert resumed.status == 1
    assert "hydra.run.dir" in resumed.stderr
    words = [sys.executable, str(PROJECT / "train.py"), f"resume={folder}", f"trainer.max_epochs={epochs}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"goes on after step {step}" in done.stdout
    assert [each for each, _ in scalars(folder)["train/loss"]] == [12 * epoch for epoch in range(1, epochs + 1)]
    undisturbed = train_command(*LONG, f"trainer.max_epochs={epochs}")
    assert differences(undisturbed.folder, folder) == []
    again = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, "is finished" in again.stdout) == (0, True)


def test_a_second_interrupt_ends_a_run_at_once(tmp_path: Path) -> None:
    # A step of these layers takes a second: the first interrupt waits for its end.
    slow = ("layers=loops", "data.batch_size=3000", "data.train_size=6100", "trainer.max_epochs=100", "fuse=false")
    words = [sys.executable, str(PROJECT / "train.py"), *LONG, *slow, f"hydra.run.dir={tmp_path / 'run'}"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoints").exists():
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(6)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert run.wait(timeout=30) == -signal.SIGINT  # which a shell shows as 130
    assert time.monotonic() - begun < 1
    run.communicate()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr=0.5: a resumed run keeps its configuration"),
        (["model=lenet_relu"], "model=lenet_relu: a resumed run keeps its configuration"),
        (["+trainer.gradient_clip_val=1"], "+trainer.gradient_clip_val=1: a resumed run keeps its configuration"),
        (["-m"], "goes on with one run, without -m"),
    ],
)
def test_what_a_resumed_run_does_not_take(words: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "train.py"), f"resume={tmp_path}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "empty", "altered", "bomb"])
def test_a_folder_that_cannot_be_gone_on_with(damage: str, tmp_path: Path) -> None:
    content = {
        "none": None, "empty": "", "altered": '{"settings": {}, "versions": {}, "sha256": "0"}', "bomb": "[" * 100_000,
    }[damage]  # fmt: skip
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    command = [sys.executable, str(PROJECT / "train.py"), f"resume={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "run.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a small disk can be made by root alone")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "small", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be made here")
    try:
        words = [sys.executable, str(PROJECT / "train.py"), "trainer.max_epochs=6", *LONG, "dashboard=full"]
        done = subprocess.run(
            [*words, f"hydra.run.dir={folder}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert "cannot be written (No space left on device)" in done.stderr
        assert f"resume={folder} goes on" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        subprocess.run([*mount[:3], "-o", "remount,size=100m", str(folder)], check=True)
        done = subprocess.run([*words[:2], f"resume={folder}"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [step for step, _ in scalars(folder)["train/loss"]] == [12 * epoch for epoch in range(1, 7)]
    finally:
        subprocess.run(["umount", str(folder)], check=False)  # noqa: S607
