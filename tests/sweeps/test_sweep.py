"""Sweeps as a user starts them: `python train.py -m`, on images drawn by the program."""

import signal
import time
from pathlib import Path

import pytest

from tests.commands import Command, Commands, wait_for
from tests.conftest import Finished, TrainCommand
from tests.stress.sameness import differences

SMALL = (
    "data=synthetic", "data.train_size=2000", "data.val_size=200", "data.test_size=100", "dashboard=minimal",
    "trainer.max_epochs=1",
)  # fmt: skip


@pytest.fixture
def sweep(train_command: TrainCommand, tmp_path: Path) -> TrainCommand:
    """Runs `train.py -m` in a sweep folder, `tmp_path / "sweep"`."""

    def start(*overrides: str) -> Finished:
        folder = tmp_path / "sweep"
        words = [] if any("sweep.resume" in word for word in overrides) else [f"hydra.sweep.dir={folder}"]
        return train_command("-m", *SMALL, *overrides, *words, folder=folder, cwd=tmp_path)

    return start


def done(folder: Path) -> dict[str, int]:
    """For each job that is done, when its metrics were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}


def wait_for_the_end_of_all(process: Command) -> None:
    deadline = time.monotonic() + 60
    while process.processes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_a_grid_of_an_experiment_in_folders_by_override(
    sweep: TrainCommand, train_here: TrainCommand, commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "rates.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      optimizer.lr: 0.1,0.3\n      seed: 0,1,2\n"
    )
    subdir = "hydra.sweep.subdir='${hydra.job.override_dirname}'"
    exclude = "hydra.job.config.override_dirname.exclude_keys=[data,experiment,dashboard,data.train_size,data.val_size,"
    exclude += "data.test_size,trainer.max_epochs]"
    own = f"hydra.searchpath=[{tmp_path / 'own'}]"
    run = sweep(own, "experiment=rates", "seed=4", subdir, exclude)  # the command line overrides the file
    assert run.status == 0, run.stderr
    assert set(done(run.folder)) == {"optimizer.lr=0.1,seed=4", "optimizer.lr=0.3,seed=4"}
    # Not touched by the job before it: weights and metrics are those of a run on its own.
    alone = train_here(*SMALL, "optimizer.lr=0.3", "seed=4")
    assert differences(alone.folder, run.folder / "optimizer.lr=0.3,seed=4") == []
    table = run.stdout[run.stdout.index("setting") :].splitlines()
    assert sorted(line.split()[:2] for line in table[1:3]) == [["optimizer.lr=0.1", "1"], ["optimizer.lr=0.3", "1"]]
    board = commands.run("scripts/leaderboard.py", str(run.folder))
    assert board.stdout.splitlines()[:3] == table[:3]


@pytest.mark.long
def test_a_failed_job_side_by_side_is_named_and_run_again(sweep: TrainCommand) -> None:
    overrides = ("launcher=processes", "optimizer.lr=3e38,0.1")
    run = sweep(*overrides)
    before = done(run.folder)
    assert run.status == 1
    assert set(before) == {"1"}
    assert "error: " in (run.folder / "0" / "train.log").read_text()
    assert "error: 1 of 2 jobs failed: 0; each has its train.log" in run.stderr
    assert f"sweep.resume={run.folder}" in run.stderr
    assert "epoch " not in run.stdout  # the lines of two jobs would be mixed

    again = sweep(*overrides, f"sweep.resume={run.folder}")
    assert again.status == 1
    assert "(1 of 2 jobs to do)" in again.stdout
    assert done(run.folder) == before  # what was done is not done again

    other = sweep("optimizer.lr=0.1,0.2", f"sweep.resume={run.folder}")
    assert other.status == 1
    assert "its job 0 was started with optimizer.lr=3e+38, and this command has 0.1" in other.stderr


@pytest.mark.long
def test_a_killed_sweep_is_resumed_where_it_was(
    sweep: TrainCommand, commands: Commands, train_here: TrainCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    long = ("trainer.max_epochs=20", "checkpoint.every_seconds=0")
    overrides = ("optimizer.lr=0.1,0.2", *long)
    process = commands.start("train.py", "-m", *SMALL, *overrides, f"hydra.sweep.dir={folder}", cwd=tmp_path)
    wait_for(folder / "1" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = done(folder)
    assert set(before) == {"0"}
    wait_for_the_end_of_all(process)  # its job ends by itself

    run = sweep(*overrides, f"sweep.resume={folder}")
    assert run.status == 0, run.stderr
    assert done(folder)["0"] == before["0"]
    assert f"Run folder: {folder / '1'} (resumes" in run.stdout
    assert differences(train_here(*SMALL, *long, "optimizer.lr=0.2").folder, folder / "1") == []


@pytest.mark.long
def test_a_signal_ends_all_jobs_and_says_how_to_go_on(commands: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["-m", *SMALL, "seed=0,1,2", "launcher=processes", "trainer.max_epochs=500", f"hydra.sweep.dir={folder}"]
    process = commands.start("train.py", *words, cwd=tmp_path)
    for job in ("0", "1"):
        wait_for(folder / job / "checkpoints" / "best.ckpt", process)
    process.send_signal(signal.SIGTERM)  # to the sweep alone
    _, errors = process.communicate()
    assert process.returncode == 143
    last = errors.splitlines()[-1]
    assert last.startswith("ended by SIGTERM; jobs done: 0 of 3; the same command with sweep.resume=")
    for job in ("0", "1"):
        assert (folder / job / "checkpoints" / "last.ckpt").exists()
        assert "ended by SIGTERM; " in (folder / job / "train.log").read_text()
    assert not (folder / "2").exists()
    wait_for_the_end_of_all(process)


@pytest.mark.long
def test_hydras_own_sweeper_and_launcher_skip_jobs_that_are_done(sweep: TrainCommand) -> None:
    overrides = ("hydra/sweeper=basic", "hydra/launcher=basic", "seed=0,1")
    run = sweep(*overrides)
    assert run.status == 0, run.stderr
    before = done(run.folder)
    assert set(before) == {"0", "1"}
    assert sweep(*overrides).status == 0
    assert done(run.folder) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=0.1,0.2"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["optimizer.lr=0.1,-1"], "optimizer.lr=-1: input should be greater than 0"),
        (["seed=range(3,3)"], "seed=range(3,3): a grid needs single values"),
        (["optimizer.lr=interval(0,1)"], "a grid needs single values, such as optimizer.lr=0.1,0.5"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (
                (["model=lenet,lenett"], "model=lenett: no such choice"),
                (["seed=0,1", "device=ddp"], "each run of a sweep or a search has one device"),
                (["seed=0,1", "sweep.resume=nowhere"], "holds no sweep"),
                (["seed=0,1", "resume=somewhere"], "for a sweep use sweep.resume=FOLDER"),
                (["seed=0,1", "launcher.jobs=0"], "launcher.jobs=0: should be a whole number of at least 1"),
                (["seed=0,1", "launcher=slrum"], "launcher=slrum: no such choice; did you mean slurm?"),
                (["seed=0,1", "hydra.sweep.subdir=same"], "hydra.sweep.subdir=same: two jobs would have this folder"),
            )
        ),
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
