"""Sweeps as a user starts them: `python train.py -m`, on images drawn by the program."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from lenet.errors import UserError
from lenet.sweeps.sweep import read
from tests.commands import Command, Commands, wait_for
from tests.conftest import Finished, TrainCommand
from tests.stress.sameness import differences

SMALL = ("data=synthetic", "data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")


@pytest.fixture
def sweep(train_command: TrainCommand, tmp_path: Path) -> TrainCommand:
    """Runs `train.py -m` in a sweep folder, `tmp_path / "sweep"`."""

    def start(*overrides: str, folder: Path | None = None, cwd: Path | None = None) -> Finished:
        folder = folder or tmp_path / "sweep"
        run = train_command("-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}", folder=folder, cwd=tmp_path)
        return Finished(run.status, run.stdout, run.stderr, folder)

    return start


def done(folder: Path) -> dict[str, int]:
    """For each job that is done, when its metrics were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def test_a_grid(sweep: TrainCommand, train_here: TrainCommand, commands: Commands) -> None:
    run = sweep("model=lenet,lenet_relu", "seed=3,4")
    assert run.status == 0, run.stderr
    assert set(done(run.folder)) == {"0", "1", "2", "3"}
    assert [json.loads((run.folder / str(job) / "metrics.json").read_text())["seed"] for job in range(4)] == [
        3,
        4,
        3,
        4,
    ]
    # Not touched by the jobs before it: the weights are those of a run on its own.
    alone = train_here(*SMALL, "model=lenet_relu", "seed=4")
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run.folder / "3", alone.folder)
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # The table: two settings, two seeds each.
    table = run.stdout[run.stdout.index("setting") :].splitlines()
    assert sorted(line.split()[:2] for line in table[1:3]) == [["model=lenet", "2"], ["model=lenet_relu", "2"]]
    assert (run.folder / "leaderboard.csv").exists()
    assert (run.folder / "leaderboard.png").exists()
    board = commands.run("scripts/leaderboard.py", str(run.folder))
    assert board.stdout.splitlines()[:3] == table[:3]


def test_a_job_that_fails_does_not_stop_the_others(sweep: TrainCommand) -> None:
    run = sweep("optimizer.lr=3e38,0.1", "seed=0,1")
    assert run.status == 1
    assert set(done(run.folder)) == {"2", "3"}
    assert "error: the weights give no finite val/loss" in (run.folder / "0" / "train.log").read_text()
    last = run.stderr.splitlines()[-1]
    assert last.startswith(
        "error: 2 of 4 jobs failed: 0 optimizer.lr=3e+38 seed=0, 1 optimizer.lr=3e+38 seed=1; each has"
    )
    assert f"sweep.resume={run.folder}" in last
    # At once: before the jobs after it.
    assert run.stdout.index("error: the weights") < run.stdout.index("Job 2:")


def test_a_sweep_that_is_killed_goes_on_where_it_was(
    sweep: TrainCommand, commands: Commands, train_here: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    long = ("trainer.max_epochs=3", "data.train_size=3000", "checkpoint.every_seconds=0", "trainer.log_every_n_steps=4")
    overrides = ("optimizer.lr=0.1,0.2,0.3,0.4", *long)
    words = ["-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}"]
    process = commands.start("train.py", *words)
    wait_for(folder / "1" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = done(folder)
    assert len(before) < 4

    deadline = time.monotonic() + 60
    while process.processes():  # its fork ends by itself
        assert time.monotonic() < deadline
        time.sleep(0.01)

    run = sweep(*overrides, f"sweep.resume={folder}", folder=tmp_path / "unused")
    assert run.status == 0, run.stderr
    after = done(folder)
    assert set(after) == {"0", "1", "2", "3"}
    assert all(after[job] == when for job, when in before.items())  # what was done is not done again
    assert f"({4 - len(before)} of 4 jobs to do)" in run.stdout
    # What was in the middle goes on from there, to the same as if nothing had been.
    assert f"Run folder: {folder / '1'} (goes on after step" in run.stdout
    assert differences(train_here(*SMALL, *long, "optimizer.lr=0.2").folder, folder / "1") == []
    assert not (tmp_path / "unused").exists()


def test_another_sweeps_folder(sweep: TrainCommand, tmp_path: Path) -> None:
    assert sweep("seed=0,1").status == 0
    folder = tmp_path / "sweep"
    before = sorted(str(path) for path in folder.rglob("*"))
    for overrides, message in (
        (("seed=0,1,2",), "has 2 jobs, and this command has 3"),
        (("seed=0,2",), "its job 1 has seed=1, and this command seed=2"),
        (("seed=0,1", "optimizer.lr=0.4"), "its job 0 has optimizer.lr=0.9, and this command optimizer.lr=0.4"),
    ):
        run = sweep(*overrides, f"sweep.resume={folder}", folder=tmp_path / "unused")
        assert (run.status, len(run.stderr.splitlines())) == (1, 1)
        assert message in run.stderr
    assert sorted(str(path) for path in folder.rglob("*")) == before
    # A stranger's: what its jobs write would be elsewhere.
    (folder / "0").rename(tmp_path / "elsewhere")
    (folder / "0").symlink_to(tmp_path / "elsewhere")
    run = sweep("seed=0,1", f"sweep.resume={folder}", folder=tmp_path / "unused")
    assert (run.status, len(run.stderr.splitlines())) == (1, 1)
    assert f"{folder / '0'}: is a link" in run.stderr
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=0.1,0.2"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["optimizer.lr=0.1,-1"], "optimizer.lr=-1: input should be greater than 0"),
        (["seed=range(3,3)"], "seed=range(3,3): has no values"),
        (["optimizer.lr=interval(0,1)"], "a grid needs single values, such as optimizer.lr=0.1,0.5"),
        (["model=lenet,lenett"], "model=lenett: no such choice"),
        (["seed=0,1", "device=ddp"], "device.devices=2: a sweep (-m) runs on one device"),
        (
            ["seed=0,1", "device=ddp", "device.devices=1", "device.num_nodes=2"],
            "device.num_nodes=2: a sweep (-m) runs on one device",
        ),
        (["seed=0,1", "sweep.resume=nowhere"], "is no folder"),
        (["seed=0,1", "sweep.resume=."], "holds no sweep"),
        (["seed=0,1", "launcher=slurm"], "launcher=slurm: there is no srun on this machine"),
        (["seed=0,1", "launcher=processes", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0: not allowed here"),
        (["seed=range(1,3,0)"], "seed=range(1,3,0): has no values"),
        (["seed=1", "hydra/sweeper=basic"], "hydra.sweeper._target_="),
        (["seed=0,1", "launcher=slrum"], "launcher=slrum: no such choice; did you mean slurm?"),
    ],
)
def test_a_mistake_in_a_sweep_gets_one_line_and_leaves_nothing(
    sweep: TrainCommand, overrides: list[str], message: str, tmp_path: Path
) -> None:
    run = sweep(*overrides)
    assert run.status == 1
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        '{"jobs": [{"overrides": [[1]], "settings": {}}]}',
        '{"jobs": [{"overrides": [], "settings": 3}]}',
    ],
)
def test_a_damaged_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep.json cannot be read"):
        read(tmp_path, "sweep.resume=")


def test_resuming_without_a_sweep_is_refused(train_command: TrainCommand) -> None:
    run = train_command("sweep.resume=somewhere")
    assert run.status == 1
    assert run.stderr == "error: sweep.resume=somewhere: belongs to a sweep; add -m\n"


@pytest.mark.long
def test_side_by_side(sweep: TrainCommand) -> None:
    run = sweep("launcher=processes", "optimizer.lr=3e38,0.1")
    assert run.status == 1
    assert set(done(run.folder)) == {"1"}
    assert "error: 1 of 2 jobs failed: 0 optimizer.lr=3e+38" in run.stderr
    assert "Job 0 failed; see its train.log" in run.stdout
    assert "Job 1: " in run.stdout
    assert "Job 1 is done" in run.stdout
    assert "Submitit" not in run.stdout
    # What submitit finds it unpickles: it looks where nobody else can have put something.
    (folder,) = (run.folder / ".submitit").iterdir()
    assert re.fullmatch("[0-9a-f]{16}", folder.name)
    assert len(list(folder.glob("*/*_result.pkl"))) == 2


def writer_of(folder: Path, sweep: Command) -> int:
    """The process of a sweep that has a file of the job in that folder open. (For Linux.)"""
    for pid in sweep.processes():
        for descriptor in list(Path(f"/proc/{pid}/fd").iterdir()) if pid != sweep.pid else ():
            with contextlib.suppress(OSError):  # it is closed meanwhile
                if descriptor.readlink().parent == folder:
                    return pid
    raise LookupError(folder)


def test_a_job_that_is_killed_is_told_and_run_again(commands: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["-m", *SMALL, "seed=0,1", "trainer.max_epochs=200", "data.train_size=3000", f"hydra.sweep.dir={folder}"]
    process = commands.start("train.py", *words)
    for job in ("0", "1"):
        wait_for(folder / job / "checkpoints", process)
        os.kill(writer_of(folder / job, process), signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Job 0 failed: its process was ended by SIGKILL" in out
    assert "2 of 2 jobs failed" in errors


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_jobs_side_by_side_end_with_their_sweep_and_go_on_with_it(
    sweep: TrainCommand, commands: Commands, train_here: TrainCommand, tmp_path: Path, signum: signal.Signals
) -> None:
    folder = tmp_path / "sweep"
    long = ("trainer.max_epochs=30", "data.train_size=8000", "dashboard=minimal")
    overrides = ("seed=0,1", *long, "launcher=processes")
    process = commands.start("train.py", "-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}")
    for job in ("0", "1"):
        wait_for(folder / job / "checkpoints" / "last.ckpt", process)
    process.send_signal(signum)  # to the sweep alone
    if signum == signal.SIGTERM:
        assert "ended by SIGTERM; jobs done: 0 of 2; the same command with" in process.communicate()[1]
        assert process.returncode == 143
    run = sweep(*overrides, f"sweep.resume={folder}", folder=tmp_path / "unused")
    assert (run.status, run.stderr) == (0, "")
    for job in ("0", "1"):
        said = (folder / job / "train.log").read_text()
        assert "ended by SIGTERM; " in said
        assert "goes on after step" in said
    # Each has its share of the processor, and a sum by other threads rounds otherwise.
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // 2))))
    whole = train_here(*SMALL, *long, "seed=1")
    torch.set_num_threads(before)
    assert differences(whole.folder, folder / "1") == []
