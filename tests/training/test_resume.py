"""Runs that are ended in the middle, and go on: to the same numbers as if nothing had been."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lenet import folders
from lenet.cli import compose_settings
from lenet.errors import UserError
from lenet.monitor import events
from lenet.training import checkpoint_file, checkpoints, provenance
from lenet.training import signals as interrupts
from lenet.training.module import Classifier
from lenet.training.run import run
from lenet.training.signals import Interrupted
from tests.commands import PROJECT
from tests.stress.sameness import differences, scalars

# 14 steps an epoch, in blocks of 4: so each epoch ends with a smaller one.
SMALL = (
    "data=synthetic", "dashboard=minimal",
    "data.train_size=1000", "data.val_size=120", "data.test_size=50", "data.batch_size=64",
    "trainer.max_epochs=3", "trainer.log_every_n_steps=4",
)  # fmt: skip


class CrashError(Exception):
    """Stands for a run that is killed: nothing is saved or closed for it."""


def start(folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return run(compose_settings(PROJECT, *SMALL, *overrides), folder, introduce=False)


def resume(folder: Path, *overrides: str) -> dict[str, Any]:
    settings = provenance.read(folder)["settings"]
    composed = compose_settings(PROJECT, *SMALL, *overrides, f"resume='{folder}'")
    return run(composed.model_validate({**settings, "resume": str(folder)}), folder, introduce=False)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in interrupts.signals()}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen within a step of training, once; steps are counted from 1."""

    def arrange(step: int, happen: Callable[[], None]) -> None:
        compute = Classifier.compute_gradients

        def computed(self: Classifier, *arguments: Any) -> None:
            compute(self, *arguments)
            if self._trainer is not None and self.trainer.global_step + 1 == step:  # warming up has no trainer
                monkeypatch.setattr(Classifier, "compute_gradients", compute)
                happen()

        monkeypatch.setattr(Classifier, "compute_gradients", computed)

    return arrange


def crash() -> None:
    raise CrashError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


VARIANTS = {
    "sgd": (),
    "momentum and cosine": ("optimizer.momentum=0.9", "optimizer.lr=0.05", "scheduler=cosine"),
    "adam and onecycle, normalised": ("optimizer=adam", "model=lenet_norm", "scheduler=onecycle"),
    "layer by layer": ("fuse=false", "model=lenet_relu"),
    "max_steps": ("trainer.max_steps=33",),
    "fewer batches": ("+trainer.limit_train_batches=9",),
    "validation within the epoch": ("+trainer.val_check_interval=3",),
    "validation over epochs": ("+trainer.val_check_interval=5", "+trainer.check_val_every_n_epoch=null"),
    "test after each epoch": ("test_every_epoch=true",),
    "dashboards": ("dashboard=full",),
    "nothing held out": ("data.val_size=0",),
}


@pytest.mark.parametrize(("variant", "step"), list(zip(VARIANTS, itertools.cycle([6, 14, 22, 28]), strict=False)))
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_numbers(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None], variant: str, step: int
) -> None:
    start(tmp_path / "whole", *VARIANTS[variant])
    at_step(step, terminate)
    with pytest.raises(Interrupted) as ended:
        start(tmp_path / "ended", *VARIANTS[variant])
    assert ended.value.signum == signal.SIGTERM
    assert f"resume={tmp_path / 'ended'} goes on after step {step}" in str(ended.value)
    resume(tmp_path / "ended", *VARIANTS[variant])
    assert differences(tmp_path / "whole", tmp_path / "ended") == []


@pytest.mark.parametrize("every_seconds", [0, 3600])
@pytest.mark.parametrize("steps", [(3,), (13, 27), (30, 34, 41)])
def test_a_run_that_was_killed_goes_on_from_what_was_saved(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None], steps: tuple[int, ...], every_seconds: int
) -> None:
    variant = ("optimizer=adam", "model=lenet_relu", f"checkpoint.every_seconds={every_seconds}")
    start(tmp_path / "whole", *variant)
    for number, step in enumerate(steps):
        at_step(step, crash)
        with pytest.raises(CrashError):
            (resume if number else start)(tmp_path / "killed", *variant)
    resume(tmp_path / "killed", *variant)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that goes on to three; its folder is to be copied."""
    folder = tmp_path_factory.mktemp("half") / "run"
    before = {each: signal.getsignal(each) for each in interrupts.signals()}
    start(folder, "dashboard=full", "trainer.max_epochs=2")
    for each, handler in before.items():
        signal.signal(each, handler)
    (folder / "metrics.json").unlink()
    settings = provenance.read(folder)["settings"]
    settings["trainer"]["max_epochs"] = 3
    provenance.write(folder, settings)
    return folder


@pytest.fixture
def copy(half: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(half, folder)
    return folder


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def flip(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A checkpoint that was changed by somebody who knows how: its checksum is right."""
    content = checkpoint_file.read(path)
    change(content)
    path.write_bytes(checkpoint_file.encode(content))


def test_a_damaged_last_checkpoint_is_reported_and_the_one_before_used(
    half: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(last(copy))
    resume(copy)
    reported = [line for line in caplog.messages if "last.ckpt: is damaged" in line]
    assert len(reported) == 1
    assert "previous.ckpt is used instead, of step 14" in reported[0]
    again = half.parent / "again"
    shutil.copytree(half, again)
    resume(again)
    assert differences(again, copy) == []


def test_where_all_checkpoints_are_damaged_nothing_is_touched(copy: Path) -> None:
    for path in (last(copy), last(copy).with_name("previous.ckpt")):
        flip(path)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"last.ckpt: is damaged.*previous.ckpt: is damaged.*start it anew"):
        resume(copy)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_damaged_best_checkpoint_is_not_passed_over(copy: Path) -> None:
    flip(last(copy).with_name("best.ckpt"))
    with pytest.raises(UserError, match=r"best.ckpt: is damaged.*delete the file to go on without"):
        resume(copy)


@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_curves_are_written_anew_where_event_files_are_damaged(
    copy: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = copy.glob("events.out.tfevents.*")
    before = {tag: values for tag, values in scalars(copy).items() if not tag.startswith(("final/", "test/"))}
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 500)
    else:
        flip(path)
    resume(copy)
    assert any("event files are damaged" in line for line in caplog.messages)
    after = scalars(copy)
    assert before.keys() <= after.keys()
    assert all(after[tag][: len(values)] == values for tag, values in before.items())
    assert len(after["val/acc"]) == 3


def spoil_weights(content: dict[str, Any]) -> None:
    content["state_dict"]["net.fc3.bias"][0] = float("nan")


def spoil_optimizer(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["momentum"] = 0.5


def spoil_model(content: dict[str, Any]) -> None:
    content["state_dict"]["net.fc3.bias"] = torch.zeros(11)


def spoil_settings(content: dict[str, Any]) -> None:
    settings = json.loads(content["lenet"]["settings"])
    settings["optimizer"]["lr"] = 0.5
    content["lenet"]["settings"] = json.dumps(settings)


def spoil_size(content: dict[str, Any]) -> None:
    content["state_dict"]["net.fc3.bias"] = torch.zeros(1).expand(10**11)


def spoil_depth(content: dict[str, Any]) -> None:
    wide: list[Any] = [0]
    for _ in range(30):
        wide = [wide] * 10  # each of which is the same one
    content["optimizer_states"] = wide


def spoil_nesting(content: dict[str, Any]) -> None:
    ring: dict[str, Any] = {}
    ring["k" * 2000] = ring
    content["lenet"]["callbacks"] = ring


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_size, "net.fc3.bias is no tensor as a run saves it"),
        (spoil_depth, "holds more than 100,000 values"),
        (spoil_nesting, "nested too deeply"),
        (
            lambda content: content["optimizer_states"][0]["param_groups"][0].update(lr="abc"),
            "it holds optimizer_states.0.lr=abc",
        ),
        (
            lambda content: content["optimizer_states"][0]["param_groups"][0].update(lr=-3.0),
            "it holds optimizer_states.0.lr=-3.0",
        ),
        (lambda content: content["lenet"].update(steps_in_epoch=-3), "it holds steps_in_epoch=-3"),
        (lambda content: content["lenet"].update(epochs=-5), "it holds epochs=-5"),
        (lambda content: content["lenet"].update(images_trained=10**30), "it holds images_trained=10000"),
        (lambda content: content["lenet"].update(tallies=[[1.0, 10**400, 1]]), "it holds tallies.0.1=10000"),
        (
            lambda content: content["lenet"]["callbacks"]["Throughput"].update(seconds="a"),
            "it holds callbacks.Throughput.seconds=a",
        ),
        (
            lambda content: content["lenet"].update(steps_in_epoch=14),
            "another run: it holds epochs=2, steps_in_epoch=14",
        ),
        (lambda content: content["lenet"].update(global_step=10**12), "another run: .* here an epoch has 14 steps"),
        (lambda content: content["lenet"].update(settings="[]"), "no checkpoint of a run"),
        (lambda content: content["lenet"].update(tallies=[["x"]]), "no checkpoint of a run"),
        (lambda content: content["lenet"]["random"].update(threads=10**6), "no checkpoint of a run"),
        (spoil_weights, r"state_dict.net.fc3.bias holds numbers that are not finite"),
        (spoil_model, "another model"),
        (spoil_optimizer, r"another optimizer.*momentum"),
        (spoil_settings, r"optimizer.lr=0.5, and run.json says 0.9"),
        (lambda content: content.pop("lenet"), "no checkpoint of a run"),
        (lambda content: content["lenet"].pop("global_step"), "no checkpoint of a run"),
        (lambda content: content["lenet"]["random"].update(torch="x"), "no checkpoint of a run"),
        (lambda content: content["lenet"]["random"]["numpy"].__setitem__(2, 10**9), "ValueError: position 1000000000"),
        (lambda content: content["lenet"]["callbacks"].update({"k" * 2000: [0] * 9}), "their names are too long"),
        (lambda content: content["lenet"]["events"].update(files=[7]), "no checkpoint of a run"),
        (lambda content: content["lenet"].update(callbacks={"Throughput": []}), "no checkpoint of a run"),
    ],
)
def test_a_checkpoint_that_was_tampered_with_is_refused_in_one_line(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(last(copy), change)
    with pytest.raises(UserError, match=message) as refused:
        resume(copy)
    assert str(last(copy)) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.fixture(scope="module")
def adam_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of three with Adam, as a run that was killed leaves it; its folder is to be copied."""
    folder = tmp_path_factory.mktemp("adam") / "run"
    before = {each: signal.getsignal(each) for each in interrupts.signals()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", lambda self: crash() if self.current_epoch == 1 else None)
        with pytest.raises(CrashError):
            start(folder, *ADAM)
    for each, handler in before.items():
        signal.signal(each, handler)
    return folder


ADAM = ("optimizer=adam", "scheduler=onecycle")

BUFFERS: dict[str, Callable[[Tensor], Any]] = {
    "one number": lambda buffer: torch.tensor(1.0),
    "word": lambda buffer: "x",
    "nothing": lambda buffer: None,
    "complex": lambda buffer: buffer.to(torch.complex64),
    "another shape": lambda buffer: buffer[:1],
}


@pytest.mark.parametrize("buffer", BUFFERS)
def test_an_optimizer_computes_with_nothing_else_than_it_should_have(
    adam_half: Path, tmp_path: Path, buffer: str
) -> None:
    folder = shutil.copytree(adam_half, tmp_path / "copy")

    def change(content: dict[str, Any]) -> None:
        state = content["optimizer_states"][0]["state"][3]
        state["exp_avg"] = BUFFERS[buffer](state["exp_avg"])

    rewrite(last(folder), change)
    with pytest.raises(UserError, match=r"another optimizer than the configuration of the run \(its state\)"):
        resume(folder, *ADAM)


@pytest.mark.parametrize(
    ("key", "value"),
    [("total_steps", 3), ("_schedule_phases", []), ("_anneal_func_type", "x"), ("last_epoch", -5), ("_last_lr", "x")],
)
def test_a_scheduler_goes_on_with_nothing_else_than_it_should_have(
    adam_half: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = shutil.copytree(adam_half, tmp_path / "copy")
    rewrite(last(folder), lambda content: content["lr_schedulers"][0].update({key: value}))
    with pytest.raises(UserError, match="another scheduler than the configuration of the run"):
        resume(folder, *ADAM)


def test_what_was_not_tampered_with_goes_on(adam_half: Path, tmp_path: Path) -> None:
    start(tmp_path / "whole", *ADAM)
    folder = shutil.copytree(adam_half, tmp_path / "copy")
    resume(folder, *ADAM)
    assert differences(tmp_path / "whole", folder) == []


def test_a_checkpoint_of_endless_steps_is_refused_at_once_where_the_schedule_is_made_anew(tmp_path: Path) -> None:
    start(tmp_path, "scheduler=cosine", "trainer.max_epochs=2")
    rewrite(last(tmp_path), lambda content: content["lenet"].update(global_step=10**12))
    settings = provenance.read(tmp_path)["settings"]
    settings["trainer"]["max_epochs"] = 3
    provenance.write(tmp_path, settings)
    with pytest.raises(UserError, match=r"another run: .*global_step=1000000000000"):
        resume(tmp_path)


def wait_until_written(folder: Path) -> None:
    """Until a thread has written the run's first checkpoint; the machine may be busy."""
    deadline = time.monotonic() + 60
    while not last(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_a_run_with_one_line_and_it_goes_on_when_there_is_room(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "whole")
    with monkeypatch.context() as patched:

        def fill() -> None:
            wait_until_written(tmp_path / "full")
            patched.setattr(checkpoints, "write_whole", full_disk)

        at_step(20, fill)
        with pytest.raises(UserError) as ended:
            start(tmp_path / "full")
    line = f"best.ckpt: cannot be written ({os.strerror(errno.ENOSPC)}); the last good checkpoint, of step 14, is whole"
    assert line in str(ended.value)
    resume(tmp_path / "full")
    assert differences(tmp_path / "whole", tmp_path / "full") == []


def test_a_folder_that_is_removed_under_a_run(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None]
) -> None:
    at_step(20, lambda: shutil.rmtree(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone: was removed or moved away while the run wrote to it"):
        start(tmp_path / "gone")


def test_checkpoints_that_are_moved_away_under_a_run(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None]
) -> None:
    def move() -> None:
        wait_until_written(tmp_path / "run")
        (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")

    at_step(20, move)
    with pytest.raises(UserError, match=r"cannot be written .*; its last checkpoint is not there any more; "):
        start(tmp_path / "run")


def test_tensorboard_that_cannot_write_ends_no_run(
    tmp_path: Path,
    at_step: Callable[[int, Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(tmp_path / "whole")
    at_step(20, lambda: monkeypatch.setattr(events.EventFile, "_put", full_disk))
    start(tmp_path / "deaf")
    assert len([line for line in caplog.messages if "goes on without TensorBoard" in line]) == 1
    names = [each for each in differences(tmp_path / "whole", tmp_path / "deaf") if not each.startswith("curve")]
    assert names == []


def test_a_longer_run_has_the_schedule_of_its_length(tmp_path: Path) -> None:
    start(tmp_path / "run", "scheduler=cosine", "trainer.max_epochs=1")
    settings = provenance.read(tmp_path / "run")["settings"]
    settings["trainer"]["max_epochs"] = 3
    composed = compose_settings(PROJECT, *SMALL)
    run(composed.model_validate({**settings, "resume": "yes"}), tmp_path / "run")
    start(tmp_path / "long", "scheduler=cosine", "trainer.max_epochs=3")
    rates = [dict(scalars(tmp_path / name)["lr"]) for name in ("run", "long")]
    assert rates[0][42] == rates[1][42]
    assert rates[0][28] == rates[1][28]


def test_an_epoch_that_was_begun_is_not_left_out(
    tmp_path: Path, at_step: Callable[[int, Callable[[], None]], None]
) -> None:
    at_step(20, terminate)
    with pytest.raises(Interrupted):
        start(tmp_path / "run")
    settings = provenance.read(tmp_path / "run")["settings"]
    settings["trainer"]["max_epochs"] = 1
    with pytest.raises(UserError, match=r"trainer.max_epochs=1: the run has done 1 epochs and begun another already"):
        run(compose_settings(PROJECT, *SMALL).model_validate({**settings, "resume": "yes"}), tmp_path / "run")


def test_two_processes_do_not_go_on_with_one_run(copy: Path) -> None:
    with folders.alone(copy, "resume"), pytest.raises(UserError, match="another process is at work on it"):
        resume(copy)


def test_each_start_of_a_run_is_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = provenance.read(copy)
    monkeypatch.setattr("sys.argv", ["tune.py", "tune.storage=postgresql://me:secret@host/db"])
    resume(copy)
    content = provenance.read(copy)
    assert {key: content[key] for key in ("command", "versions", "git")} == {
        key: first[key] for key in ("command", "versions", "git")
    }
    assert content["resumed"][-1]["command"] == ["python", "tune.py", "tune.storage=postgresql://me:…@host/db"]
    assert "secret" not in (copy / "run.json").read_text()


def test_fewer_epochs_than_are_done_are_refused(copy: Path) -> None:
    settings = provenance.read(copy)["settings"]
    settings["trainer"]["max_epochs"] = 1
    with pytest.raises(UserError, match=r"trainer.max_epochs=1: the run has done 2 epochs already"):
        run(compose_settings(PROJECT, *SMALL).model_validate({**settings, "resume": "yes"}), copy)
