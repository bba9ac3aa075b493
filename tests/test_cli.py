"""The command line from outside: what a mistake gets, what help says, where a run lands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lenet.data import fashion_mnist
from lenet.preflight import gpu_is_possible
from tests.commands import PROJECT, Commands
from tests.conftest import Finished, TrainCommand, imported_by


def assert_refused(run: Finished, *parts: str) -> None:
    """One line on stderr with these parts, a non-zero exit, and nothing left behind."""
    assert run.status != 0
    assert len(run.stderr.splitlines()) == 1, run.stderr
    for part in parts:
        assert part in run.stderr
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lr=abc", ["optimizer.lr=abc", "valid number"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "greater than 0"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
        ("data.batch_size=0", ["data.batch_size=0", "greater than or equal to 1"]),
        ("data.batch_size=1.5", ["data.batch_size=1.5", "valid integer"]),
        ("trainer.max_epochs=-3", ["trainer.max_epochs=-3", "greater than or equal to 1"]),
        ("data.val_size=60000", ["data.val_size=60000", "59999"]),
        ("seed=-1", ["seed=-1", "greater than or equal to 0"]),
        ("device.devices=0", ["device.devices=0", "greater than or equal to 1"]),
        ("model=lenett", ["model=lenett", "did you mean lenet?", "lenet, lenet_norm, lenet_relu"]),
        ("optimzer.lr=1", ["optimzer.lr", "did you mean optimizer.lr?"]),
        ("optimzer=sgd", ["optimzer", "did you mean optimizer?"]),
        ("+trainer.max_epoch=3", ["trainer.max_epoch", "did you mean max_epochs?"]),
        ("+trainer.gradient_clip_algorithm=half", ["trainer.gradient_clip_algorithm=half", "norm"]),
        ("lr=0.1", ["lr: no such key", "did you mean optimizer.lr?"]),
        ("epochs=3", ["epochs: no such key", "did you mean trainer.max_epochs?"]),
        ("trainer.gradient_clip_val=1", ["trainer.gradient_clip_val", "+trainer.gradient_clip_val=VALUE"]),
        ("scheduler.warmup_fraction=0.2", ["scheduler.warmup_fraction", "another choice of scheduler"]),
        ("optimizer.lr=0.1,0.5", ["optimizer.lr=0.1,0.5", "add -m"]),
        ("data.batch_size='64'", ["data.batch_size='64'", "valid integer"]),
        ("device.devices=999", ["device.devices=999", "CPU cores"]),
        ("--model", ["--model", "without dashes: model=VALUE"]),
        ("+trainer.max_epochs=3", ["+trainer.max_epochs", "without the +"]),
        ("+trainer.check_val_every_n_epoch=0", ["trainer.check_val_every_n_epoch=0", "at least 1, or null"]),
        ("trainer.log_every_n_steps=10000000000", ["trainer.log_every_n_steps=10000000000", "less than or equal to"]),
        ("+trainer.profiler={_target_:os.system}", ["trainer.profiler={", "should be a plain value"]),
        ("--optimizer.lr=1", ["--optimizer.lr=1", "without dashes: optimizer.lr=1"]),
        ("lenet_relu", ["lenet_relu", "KEY=VALUE"]),
        ("optimizer.lr=[", ["optimizer.lr=[", "KEY=VALUE"]),
        ("data.root=missing/place", ["data.root=", "missing is not a folder", "create it or name another"]),
        ("data.root=/proc/place", ["data.root=/proc/place", "cannot be created", "set data.root to"]),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    train_command: TrainCommand, override: str, parts: list[str]
) -> None:
    assert_refused(train_command(override), *parts)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--run", "-m"], "--run, --multirun: exclude each other"),
        (["-sc"], "--shell-completion: add what to do"),
        (["resume=x", "~device.devices"], "~device.devices: a resumed run keeps its configuration"),
    ],
)
def test_words_that_do_not_go_together(commands: Commands, words: list[str], named: str) -> None:
    done = commands.run("train.py", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {named}")
    assert len(done.stderr.splitlines()) == 1


def test_hydras_own_help_is_there(commands: Commands) -> None:
    done = commands.run("train.py", "--hydra-help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--multirun" in done.stdout


def in_a_shell(words: str) -> subprocess.CompletedProcess[str]:
    # S607: it is the system's.
    return subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607


def test_where_nobody_can_be_told_a_mistake_is_one_all_the_same() -> None:
    for redirected, status, error in (
        (">&-", 1, "error: optimzer.lr: no such key; did you mean optimizer.lr?\n"),
        (">&- 2>&-", 1, ""),
    ):
        words = f"{shlex.quote(sys.executable)} {PROJECT / 'train.py'} optimzer.lr=1 {redirected}"
        done = in_a_shell(words)
        assert (done.returncode, done.stderr) == (status, error)
    words = f"{shlex.quote(sys.executable)} {PROJECT / 'train.py'} --help >/dev/full"
    done = in_a_shell(words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: stdout: cannot be written (No space left on device)")
    words = f"{shlex.quote(sys.executable)} {PROJECT / 'train.py'} --help | true"
    done = in_a_shell(words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_is_gone_is_no_place_to_start_from(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f"cd {gone}; rmdir {gone}; {shlex.quote(sys.executable)} {PROJECT / 'train.py'} data=synthetic"
    done = in_a_shell(words)
    assert (done.returncode, done.stderr) == (1, "error: the current folder was removed; change to another one\n")


def test_a_gpu_where_there_is_none_is_refused(train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if sys.platform == "darwin":
        pytest.skip("a Mac's GPU cannot be hidden")
    assert_refused(train_command("device=gpu"), "device=gpu", "no GPU", "device=auto or device=cpu")


def test_a_pipe_among_the_data_is_named(train_command: TrainCommand, real_root: Path, tmp_path: Path) -> None:
    raw = fashion_mnist.raw_folder(tmp_path)
    raw.mkdir(parents=True)
    first, *others = (file.name for file in fashion_mnist.FILES)
    os.mkfifo(raw / first)
    for name in others:
        (raw / name).symlink_to((fashion_mnist.raw_folder(real_root) / name).resolve())
    assert_refused(train_command(f"data.root={tmp_path}"), f"{raw / first}: is no file", "delete it")


@pytest.mark.parametrize("damage", ["truncated", "one byte altered", "too long"])
def test_a_damaged_data_file_is_named(
    train_command: TrainCommand, real_root: Path, tmp_path: Path, damage: str
) -> None:
    raw = fashion_mnist.raw_folder(tmp_path)
    raw.mkdir(parents=True)
    labels = "t10k-labels-idx1-ubyte"
    for file in fashion_mnist.FILES:
        if file.name != labels:
            (raw / file.name).symlink_to((fashion_mnist.raw_folder(real_root) / file.name).resolve())
    content = bytearray((fashion_mnist.raw_folder(real_root) / labels).read_bytes())
    if damage == "truncated":
        del content[-1]
    elif damage == "too long":
        content.append(0)
    else:
        content[5000] ^= 1
    (raw / labels).write_bytes(content)
    assert_refused(train_command(f"data.root={tmp_path}"), f"{raw / labels}: has ", "delete the file")


def test_no_usable_data_and_no_network(commands: Commands, tmp_path: Path) -> None:
    script = tmp_path / "train.py"  # from which the system's copy is hidden
    script.write_text(
        "import sys, runpy, pathlib; from lenet import fashion_mnist;"
        f"fashion_mnist.SYSTEM_FOLDER = pathlib.Path({str(tmp_path / 'system')!r});"
        f"sys.argv = ['train.py', 'data.root={tmp_path / 'data'}', 'data.mirrors=[http://127.0.0.1:1/]',"
        f" 'hydra.run.dir={tmp_path / 'run'}'];"
        f"runpy.run_path({str(PROJECT / 'train.py')!r}, run_name='__main__')"
    )
    done = commands.run(str(script))
    run = Finished(done.returncode, done.stdout, done.stderr, tmp_path / "run")
    assert_refused(run, str(tmp_path / "system"), "http://127.0.0.1:1/", "dataset-fashion-mnist", "data=synthetic")


def test_a_folder_that_holds_something_is_not_used_for_a_run(train_command: TrainCommand, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    run = train_command("data=synthetic", folder=tmp_path)
    assert run.status != 0
    assert "is not an empty folder" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be(train_command: TrainCommand, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / ("x" * 300), tmp_path / "file" / "run"):
        run = train_command("data=synthetic", folder=folder, cwd=tmp_path)
        assert run.status == 1
        assert run.stderr.startswith("error: hydra.run.dir=")
        assert len(run.stderr.splitlines()) == 1


def test_help_fits_a_screen_and_does_not_wait_for_torch() -> None:
    imported, done = imported_by("--help")
    assert done.returncode == 0
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "lightning", "tensorboard"})
    lines = done.stdout.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=-1"],
        ["model=lenett"],
        ["+trainer.max_epoch=3"],
        ["device=cpu", "device.devices=999"],
        [f"hydra.run.dir='{PROJECT}'"],
        pytest.param(["device=gpu"], marks=pytest.mark.skipif(gpu_is_possible(), reason="there may be a GPU")),
    ],
)
def test_a_mistake_is_answered_before_torch_is_loaded(overrides: list[str]) -> None:
    imported, done = imported_by(*overrides)
    assert done.returncode == 1
    assert "lenet.config" in imported
    assert imported.isdisjoint({"torch", "lightning"})


def entry(folder: Path, **main_config: object) -> Path:
    """A script like train.py, in a folder of its own and with its own head of conf/, that trains nothing."""
    shutil.copytree(PROJECT / "conf", folder / "conf")
    head = {"defaults": ["train", "_self_"], **main_config}
    (folder / "conf" / "head.yaml").write_text(json.dumps(head))
    script = folder / "entry.py"
    script.write_text(
        "import pathlib, hydra, lenet.cli\n"
        "@hydra.main(version_base='1.3', config_path='conf', config_name='head')\n"
        "def main(config): pass\n"
        "lenet.cli.start(main, pathlib.Path(__file__).parent)\n"
    )
    return script


def test_runs_that_start_at_the_same_time_get_folders_of_their_own(commands: Commands, tmp_path: Path) -> None:
    # The same folder for all, as when they start in the same second; called from another directory.
    script = entry(tmp_path, hydra={"run": {"dir": "${project:}/outputs/second"}})
    runs = [commands.start(str(script), "data=synthetic", cwd=Path(os.sep)) for _ in range(3)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    folders = sorted((tmp_path / "outputs").iterdir())
    assert [folder.name for folder in folders] == ["second", "second-2", "second-3"]
    assert all((folder / ".hydra" / "config.yaml").exists() for folder in folders)


def test_a_defect_in_the_checks_ends_the_program(commands: Commands, tmp_path: Path) -> None:
    # Hydra alone would make a warning of it, and start the run in a folder that nobody claimed.
    script = entry(tmp_path)
    code = script.read_text().replace(
        "import pathlib", "import lenet.training.run\nlenet.training.check = None\nimport pathlib"
    )
    script.write_text(code)
    done = commands.run(str(script))
    assert done.returncode == 1
    assert "TypeError" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, True),  # the first on another machine
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_processes_that_do_not_train_together_are_refused_once_a_machine(
    train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], speaks: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = train_command("data=synthetic")
    assert run.status == 1
    message = (
        "error: device.devices=1, device.num_nodes=1: 1 in all, and 4 processes were started; start as many, with"
        " device=ddp, or one alone\n"
    )
    assert run.stderr == (message if speaks else "")
    assert not run.folder.exists()


def test_a_single_task_of_slurm_is_a_run_of_its_own(
    train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    run = train_command("data=synthetic", "data.train_size=300", "data.val_size=100", "trainer.max_epochs=1")
    assert run.status == 0, run.stderr
    assert (run.folder / "metrics.json").exists()
