"""Processes that are ended and resumed from outside, as users do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import PROJECT, Command, Commands, wait_for
from tests.conftest import Finished, TrainCommand
from tests.stress.sameness import differences, scalars

LONG = ("data=synthetic", "data.train_size=3000", "data.val_size=100", "data.test_size=50", "dashboard=minimal")


def started(commands: Commands, folder: Path, *overrides: str) -> Command:
    """A run that trains."""
    run = commands.start("train.py", *LONG, *overrides, f"hydra.run.dir={folder}")
    wait_for(folder / "checkpoints" / "last.ckpt", run)
    return run


@pytest.mark.parametrize(
    ("signum", "status", "what"), [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_run_that_then_goes_on(
    commands: Commands, train_command: TrainCommand, tmp_path: Path, signum: signal.Signals, status: int, what: str
) -> None:
    folder = tmp_path / "run"
    run = started(commands, folder, "trainer.max_epochs=100")
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
    words = ("train.py", f"resume={folder}", f"trainer.max_epochs={epochs}")
    done = commands.run(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"goes on after step {step}" in done.stdout
    assert [each for each, _ in scalars(folder)["train/loss"]] == [12 * epoch for epoch in range(1, epochs + 1)]
    undisturbed = train_command(*LONG, f"trainer.max_epochs={epochs}")
    assert differences(undisturbed.folder, folder) == []
    again = commands.run(*words)
    assert (again.returncode, "is finished" in again.stdout) == (0, True)


def test_two_processes_that_are_ended_go_on(commands: Commands, tmp_path: Path) -> None:
    small = ("data.train_size=1000", "data.batch_size=64", "trainer.log_every_n_steps=4")
    settings = (*LONG, *small, "checkpoint.every_seconds=0")
    folder = tmp_path / "run"
    processes = commands.start_together(*settings, "trainer.max_epochs=60", f"hydra.run.dir={folder}")
    wait_for(folder / "checkpoints" / "last.ckpt", processes[0])
    processes[1].send_signal(signal.SIGTERM)  # to one of them, and both save
    said = [each.communicate()[1] for each in processes]
    assert [each.returncode for each in processes] == [143, 143], said
    step = int(said[0].split()[-1])
    assert said[1] == ""

    damaged = folder / "checkpoints" / "last.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    epochs = f"trainer.max_epochs={step // 15 + 2}"
    shutil.copytree(folder, tmp_path / "alone")
    processes = commands.start_together(f"resume={folder}", epochs)
    said = ["".join(each.communicate()) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], said
    assert "".join(said).count("last.ckpt: is damaged") == 1
    for each in commands.start_together(*settings, epochs, f"hydra.run.dir={tmp_path / 'whole'}"):
        assert each.wait() == 0
    assert differences(tmp_path / "whole", folder) == []

    # With another number of devices it goes on too; sums are then added up in another order.
    assert commands.run("train.py", f"resume={tmp_path / 'alone'}", epochs, "device=cpu").returncode == 0
    ours, theirs = scalars(tmp_path / "alone"), scalars(folder)
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert ours[tag] == [(step, pytest.approx(value, rel=1e-4)) for step, value in theirs[tag]]


def test_a_run_that_nobody_reads_any_more_ends_as_others_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, str(PROJECT / "train.py"), *LONG, "trainer.max_epochs=100", f"hydra.run.dir={folder}"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.stdout is not None
    wait_for(folder / "checkpoints" / "last.ckpt", run)
    run.stdout.close()  # as of `| head`
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
    last = (folder / "train.log").read_text().splitlines()[-1]
    assert f"ended by SIGTERM; python train.py resume={folder} goes on after step" in last


@pytest.mark.long
@pytest.mark.parametrize("to", ["the first", "both"])
def test_processes_that_lightning_starts_end_together(commands: Commands, tmp_path: Path, to: str) -> None:
    small = ("data.train_size=1000", "data.batch_size=64", "trainer.log_every_n_steps=4", "device=ddp")
    folder = tmp_path / "run"
    run = started(commands, folder, *small, "device.devices=2", "trainer.max_epochs=100")
    for pid in run.processes() if to == "both" else [run.pid]:  # both, as when Ctrl-C is pressed in a terminal
        os.kill(pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert said.startswith(f"interrupted; python train.py resume={folder} goes on after step ")
    assert len(said.splitlines()) == 1


def test_a_run_that_is_finished_is_finished_for_each_process(
    commands: Commands, finished_run: Finished, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    processes = commands.start_together(f"resume={folder}")
    said = [each.communicate(timeout=30) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], said
    assert said == [(f"{folder}: is finished; trainer.max_epochs=NUMBER trains on\n", ""), ("", "")]


def test_links_in_a_runs_folder_are_refused(commands: Commands, finished_run: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    (tmp_path / "thesis").write_text("precious")
    (folder / "events.out.tfevents.1").symlink_to(tmp_path / "thesis")
    done = commands.run("train.py", f"resume={folder}", "trainer.max_epochs=4")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "events.out.tfevents.1: is a link" in done.stderr
    assert (tmp_path / "thesis").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr=0.5: a resumed run keeps its configuration"),
        (["model=lenet_relu"], "model=lenet_relu: a resumed run keeps its configuration"),
        (["+trainer.gradient_clip_val=1"], "+trainer.gradient_clip_val=1: a resumed run keeps its configuration"),
        (["-m"], "goes on with one run, without -m"),
    ],
)
def test_what_a_resumed_run_does_not_take(commands: Commands, words: list[str], message: str, tmp_path: Path) -> None:
    done = commands.run("train.py", f"resume={tmp_path}", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "empty", "altered", "bomb"])
def test_a_folder_that_cannot_be_gone_on_with(commands: Commands, damage: str, tmp_path: Path) -> None:
    content = {
        "none": None, "empty": "", "altered": '{"settings": {}, "versions": {}, "sha256": "0"}', "bomb": "[" * 100_000,
    }[damage]  # fmt: skip
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    done = commands.run("train.py", f"resume={tmp_path}")
    assert done.returncode == 1
    assert "run.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a small disk can be made by root alone")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_is_full(commands: Commands, tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "small", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be made here")
    try:
        words = ("trainer.max_epochs=6", *LONG, "dashboard=full", f"hydra.run.dir={folder}")
        runs = commands.start_together(*words) if processes == 2 else [commands.start("train.py", *words)]
        said = [each.communicate(timeout=60)[1] for each in runs]
        assert [each.returncode for each in runs] == [1] * processes, said
        assert "cannot be written (No space left on device)" in said[0]
        assert f"resume={folder} goes on" in said[0]
        assert [len(each.splitlines()) for each in said] == [1, 0][:processes]
        subprocess.run([*mount[:3], "-o", "remount,size=100m", str(folder)], check=True)
        done = commands.run("train.py", f"resume={folder}", "device=cpu")
        assert done.returncode == 0, done.stderr
        assert [step for step, _ in scalars(folder)["train/loss"]] == [12 * epoch for epoch in range(1, 7)]
    finally:
        subprocess.run(["umount", str(folder)], check=False)  # noqa: S607


@pytest.mark.long
def test_a_process_that_waits_for_one_that_is_gone_ends(commands: Commands, tmp_path: Path) -> None:
    words = (
        *LONG,
        "trainer.max_epochs=100",
        "device=ddp",
        "device.accelerator=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    process = commands.start("train.py", *words)
    deadline = time.monotonic() + 60
    while len(process.processes()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    while process.processes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
