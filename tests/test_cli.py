"""The command line from outside: what a mistake gets, and where a run lands."""

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lenet.training.checkpoint import read_run
from tests.commands import PROJECT, Commands
from tests.conftest import TrainCommand

SMALL = ("data=synthetic", "data.train_size=600", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")

MISTAKES = {
    # Found while Hydra composes the configuration:
    "optimzer.lr=1": ["optimzer.lr", "did you mean optimizer.lr"],
    "lr=1": ["lr", "did you mean optimizer.lr"],
    "augment.mixup=0.2": ["augment.mixup", "augment=NAME"],
    "epochs=3": ["epochs", "did you mean trainer.max_epochs"],
    "callbacks=0": ["callbacks=0", "early_stopping"],
    "model=lenett": ["model=lenett", "did you mean lenet", "lenet_relu"],
    "+trainer.max_epochs=3": ["trainer.max_epochs", "without the +"],
    "optimizer.lr=0.1,0.5": ["optimizer.lr", "-m"],
    "lenet_relu": ["lenet_relu", "KEY=VALUE"],
    "--optimizer.lr=1": ["--optimizer.lr=1", "optimizer.lr=1", "without dashes"],
    "sweep.resume=outputs": ["sweep.resume=", "outputs: belongs", "-m"],
    # Found when it is checked:
    "optimizer.lr=-1": ["optimizer.lr=-1", "greater than 0"],
    # Found when the parts are built:
    "device=gpu": ["device.accelerator=gpu", "device=cpu"],
    "data.val_size=21000": ["data.val_size=21000", "less than"],
    "model.kernel_size=20": ["model.kernel_size=20", "13 or less"],
    "+trainer.max_epoch=3": ["trainer.max_epoch", "did you mean max_epochs"],
    "+trainer.gradient_clip_algorithm=half": ["trainer.gradient_clip_algorithm=half", "norm"],
    "model._target_=torch.nn.Identity": ["model", "10 logits"],
    "data.root=missing/place": ["data.root", "missing/place"],
    "hydra.run.dir=/proc/run": ["hydra.run.dir=/proc/run", "name another"],
    "resume=missing": ["resume=", "missing", "outputs/"],
    "logger=mlflow": ["logger", "mlflow", "install"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_nothing(train_command: TrainCommand, override: str) -> None:
    if override == "logger=mlflow" and find_spec("mlflow"):
        pytest.skip("it is installed")
    data = () if override.startswith(("data.root", "resume")) else ("data=synthetic",)
    run = train_command(*data, override)
    assert run.status == 1, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    for part in MISTAKES[override]:
        assert part in run.stderr
    assert list(run.folder.parent.iterdir()) == []


def test_a_misspelt_key_is_answered_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), "optimzer.lr=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert "torch" not in imported


def test_runs_that_start_at_the_same_time_get_folders_of_their_own(commands: Commands, tmp_path: Path) -> None:
    # The same default folder, as when they start in the same second; from a config directory of the user's own.
    (tmp_path / "extra").mkdir()
    default = f"# @package _global_\nhydra:\n  run:\n    dir: {tmp_path}/out/second\n"
    (tmp_path / "extra" / "second.yaml").write_text(default)
    words = ("-cd", str(tmp_path), "+extra=second", *SMALL, "dashboard=minimal")
    runs = [commands.start("train.py", *words, cwd=Path(os.sep)) for _ in range(2)]
    assert [run.wait(timeout=100) for run in runs] == [0, 0], [run.communicate() for run in runs]
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["second", "second-2"]


UNDER_SRUN = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "7"}
UNDER_SBATCH = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


def test_in_a_script_of_sbatch_a_run_is_one_process(
    train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in UNDER_SBATCH.items():
        monkeypatch.setenv(name, value)
    run = train_command("data=synthetic", "data.train_size=1200", "trainer.max_epochs=1", "dashboard=minimal")
    assert (run.status, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "words", "remedy"),
    [
        ({}, ["device.num_nodes=2"], "torchrun or srun"),
        (UNDER_SBATCH, ["device.devices=2"], "srun python train.py"),
        (UNDER_SBATCH, ["device.num_nodes=2"], "srun python train.py"),
    ],
)
def test_processes_that_nobody_starts_are_not_waited_for(
    train_command: TrainCommand,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    words: list[str],
    remedy: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = train_command("data=synthetic", "device=ddp", *words)
    assert run.status == 1
    assert run.stderr.count("\n") == 1
    assert words[0] in run.stderr
    assert remedy in run.stderr
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({**UNDER_SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({**UNDER_SRUN, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, False),
    ],
)
def test_processes_that_do_not_train_together_are_refused(
    train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], speaks: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = train_command("data=synthetic")
    assert run.status == 1
    assert ("device=ddp" in run.stderr) == speaks
    assert not run.folder.exists()


def test_a_value_that_needs_quotes_is_shown_with_them(train_command: TrainCommand, tmp_path: Path) -> None:
    run = train_command("data=synthetic", f"hydra.run.dir={tmp_path}/lr=0.5")
    assert run.status == 1
    (line,) = run.stderr.splitlines()
    word = shlex.split(line.rpartition("write ")[2])[0]
    done = train_command("data=synthetic", "data.train_size=1200", "trainer.max_epochs=1", word)
    assert done.status == 0, done.stderr
    assert (tmp_path / "lr=0.5" / "metrics.json").exists()


@pytest.mark.parametrize("chdir", [pytest.param("true", marks=pytest.mark.long), "false"])
def test_paths_are_seen_from_where_the_command_was_typed(
    commands: Commands, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chdir: str
) -> None:
    (tmp_path / "data").symlink_to(real_root)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    small = ("data.root=data", "trainer.max_steps=1", "dashboard=minimal")
    words = [*small, f"hydra.job.chdir={chdir}", "hydra.run.dir=~/run"]
    done = commands.run("train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "home" / "run"
    assert read_run(folder)["settings"]["data"]["root"] == str(tmp_path / "data")
    assert not (folder / "data").exists()
    assert not (tmp_path / "~").exists()
    for key in ("resume", "init_from"):
        extra = () if key == "resume" else small
        again = commands.run("train.py", f"{key}=~/run", *extra, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
