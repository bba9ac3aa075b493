"""Runs that are ended early and resumed: the same numbers, bit for bit, as if nothing had happened."""

import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lenet.config import as_word, compose_settings
from lenet.errors import UserError
from lenet.signals import Interrupted
from lenet.training.checkpoint import read, read_run, write_run
from lenet.training.resume import command, resumed
from lenet.training.run import run
from tests.commands import Commands, wait_for
from tests.conftest import Finished, TrainCommand
from tests.stress.sameness import differences
from tests.training.small import at, largest_file

# 14 steps an epoch, in blocks of 4: so each epoch ends with a smaller one.
SMALL = (
    "data=synthetic", "dashboard=minimal",
    "data.train_size=1000", "data.val_size=120", "data.test_size=50", "data.batch_size=64",
    "trainer.max_epochs=4", "trainer.log_every_n_steps=4", "checkpoint.every_seconds=0",
)  # fmt: skip


class CrashError(Exception):
    """Stands for a run that is killed: nothing is saved or closed for it."""


def crash(_: object) -> None:
    raise CrashError


def terminate(_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def start(folder: Path, *overrides: str, callback: pl.Callback | None = None) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return run(compose_settings(*SMALL, *overrides), folder, [callback] if callback else [], introduce=False)


def resume(folder: Path, *overrides: str, callback: pl.Callback | None = None) -> dict[str, Any]:
    words = [f"resume={folder}", *overrides]
    return run(resumed(compose_settings(*words), words), folder, [callback] if callback else [])


VARIANTS = {
    "sgd": (),
    "momentum and cosine": ("optimizer.momentum=0.9", "optimizer.lr=0.05", "scheduler=cosine"),
    "adam, onecycle, normalised": ("optimizer=adam", "model=lenet_norm", "scheduler=onecycle"),
    "muon, two groups": ("optimizer=muon", "model=lenet_norm", "decay=weights", "scheduler=onecycle"),
    "dropout": ("fuse=false", "model=lenet_relu", "model.dropout=0.3"),
    "max_steps": ("trainer.max_steps=47",),
    "single batches": ("+trainer.limit_train_batches=9",),
    "accumulated gradients": ("+trainer.accumulate_grad_batches=3",),
    "test after each epoch": ("test_every_epoch=true", "data.val_size=0"),
    "dashboards": ("dashboard=full",),
    "early stopping": ("callbacks=early_stopping", "optimizer.lr=1e-30"),
}


QUICK = ("sgd", "single batches")


@pytest.mark.parametrize(
    "variant", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in VARIANTS if name not in QUICK)]
)
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_numbers(tmp_path: Path, variant: str) -> None:
    start(tmp_path / "whole", *VARIANTS[variant])
    with pytest.raises(Interrupted) as ended:
        start(tmp_path / "ended", *VARIANTS[variant], callback=at(2, terminate))
    assert ended.value.signum == signal.SIGTERM
    assert f"resume={tmp_path / 'ended'}" in str(ended.value)
    assert read(tmp_path / "ended" / "checkpoints" / "last.ckpt")["epoch"] == 1  # the epoch was finished
    resume(tmp_path / "ended")
    assert differences(tmp_path / "whole", tmp_path / "ended") == []


@pytest.mark.long
@pytest.mark.parametrize("every_seconds", [0, 3600])
def test_a_run_that_was_killed_several_times_goes_on_from_what_was_saved(tmp_path: Path, every_seconds: int) -> None:
    variant = ("optimizer=adam", f"checkpoint.every_seconds={every_seconds}")
    start(tmp_path / "whole", *variant)
    with pytest.raises(CrashError):
        start(tmp_path / "killed", *variant, callback=at(2, crash))
    for epoch in (2, 3):
        with pytest.raises(CrashError):
            resume(tmp_path / "killed", callback=at(epoch, crash))
    resume(tmp_path / "killed")
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was ended after two epochs of four; its folder is to be copied."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.raises(Interrupted):
        start(folder, callback=at(2, terminate))
    return folder


@pytest.fixture
def copy(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "copy"))


@pytest.mark.parametrize("override", ["seed=1", "optimizer.lr=0.1", "model=lenet_relu", "trainer.max_steps=3", "~loss"])
def test_nothing_but_the_epochs_and_the_device_can_be_changed(half: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs and device") as refused:
        resumed(compose_settings(f"resume={half}"), [f"resume={half}", override])
    assert override in str(refused.value)


def test_more_epochs_give_what_a_run_of_so_many_gives(tmp_path: Path) -> None:
    start(tmp_path / "longer")
    start(tmp_path / "extended", "trainer.max_epochs=2")
    resume(tmp_path / "extended", "trainer.max_epochs=4")
    found = [each for each in differences(tmp_path / "longer", tmp_path / "extended") if "figure" not in each]
    assert [each for each in found if "test" not in each and "final" not in each] == []  # tested after both ends


def test_a_full_disk_ends_a_run_in_one_line_and_what_was_saved_goes_on(copy: Path, half: Path, tmp_path: Path) -> None:
    with largest_file(100_000), pytest.raises(UserError, match=rf"ckpt: cannot be written .*resume={copy}"):
        resume(copy)  # a checkpoint is larger
    resume(copy)
    whole = shutil.copytree(half, tmp_path / "whole")
    resume(whole)
    assert differences(whole, copy) == []


def test_a_finished_run_says_so_and_is_not_touched(train_command: TrainCommand, finished_run: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")}
    run = train_command(f"resume={finished_run.folder}")
    assert (run.status, run.stderr) == (0, "")
    assert "trainer.max_epochs" in run.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")}


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=str)
def test_the_command_that_ends_early_names_the_one_that_goes_on(
    commands: Commands, tmp_path: Path, signum: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = commands.start("train.py", *SMALL, "trainer.max_epochs=40", f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for(folder / "checkpoints" / "previous.ckpt", process)
    process.send_signal(signum)
    _, errors = process.communicate()
    if signum == signal.SIGKILL:
        assert (process.wait(), errors) == (-signal.SIGKILL, "")
    else:
        assert process.wait() == 128 + signum
        assert len(errors.splitlines()) == 1
        assert f"python train.py resume={folder}" in errors
    done = commands.run("train.py", f"resume={folder}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["plain", "two words", "my data (1)", "lr=0.5", "李明", "o'neil", 'the "last"'])
def test_the_resume_command_can_be_pasted_into_a_shell(name: str) -> None:
    folder = Path("/runs", name)
    *_, word = shlex.split(command(folder))
    assert compose_settings(word).resume == str(folder)
    *_, word = shlex.split(as_word("sweep.resume", folder))
    assert compose_settings(word).sweep.resume == str(folder)


@pytest.mark.parametrize("name", ["李明", "o'neil", "my data (1)"])
def test_a_run_that_ended_early_resumes_by_the_command_that_it_has_printed(
    commands: Commands, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name / "run"
    words = [*SMALL, "trainer.max_epochs=4000", as_word("hydra.run.dir", folder)]
    process = commands.start("train.py", *(shlex.split(word)[0] for word in words), cwd=tmp_path)
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    python, script, *words = shlex.split(errors.strip().rpartition(": ")[2])
    assert (python, script) == ("python", "train.py")
    done = read(folder / "checkpoints" / "last.ckpt")["epoch"] + 1
    again = commands.run("train.py", *words, f"trainer.max_epochs={done + 1}", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert (folder / "metrics.json").exists()


@pytest.mark.long
def test_auto_begins_goes_on_and_says_when_a_run_is_finished(commands: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*SMALL, "optimizer.lr=0.5", "trainer.max_epochs=80", "resume=auto", f"hydra.run.dir={folder}"]
    folder.mkdir()
    (folder / ".hydra").mkdir()  # of a first try that was killed at once
    (folder / "train.log").touch()
    process = commands.start("train.py", *words, cwd=tmp_path)
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    for expected in ("resumes from", "has done its 80 epochs"):
        done = commands.run("train.py", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    assert commands.run("train.py", *words, "seed=3", cwd=tmp_path).returncode == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    for wrong, message in ((["resume=auto"], "add hydra.run.dir"), (["hydra.run.dir=other"], "not an empty folder")):
        refused = commands.run("train.py", *words[:-2], "resume=auto", *wrong[-1:], cwd=tmp_path)
        assert refused.returncode == 1
        assert message in refused.stderr


@pytest.mark.long
def test_auto_with_several_processes(commands: Commands, tmp_path: Path) -> None:
    words = [*SMALL[:5], "resume=auto", f"hydra.run.dir={tmp_path / 'run'}"]
    for epochs in (2, 4):
        done = commands.run("train.py", *words, "device=ddp", f"trainer.max_epochs={epochs}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] == epochs - 1


def test_a_run_of_an_older_version_lacks_newer_settings_and_resumes_by_its_own_command(copy: Path) -> None:
    settings = dict(read_run(copy)["settings"])
    for newer in ("augment", "average", "decay", "distill"):
        settings.pop(newer, None)
    settings["model"].pop("conv_activation")
    write_run(copy, settings)
    words = (*SMALL, f"resume={copy}")
    assert resumed(compose_settings(*words), words).resume == str(copy)
    with pytest.raises(UserError, match="decay"):
        resumed(compose_settings(*words, "decay=weights"), ("decay=weights", *words))
