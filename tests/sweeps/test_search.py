"""The search, with trials on images drawn by the program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from omegaconf import open_dict
from optuna.trial import TrialState

from lenet.cli import compose_config, compose_settings
from lenet.errors import UserError
from lenet.sweeps.search_space import Choices, read_search
from tests.commands import PROJECT, Commands, wait_for

SMALL = ("data=synthetic", "data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=2")


TUNE = "scripts/tune.py"

Tune = Callable[..., subprocess.CompletedProcess[str]]


def words(folder: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"tune.folder={folder}", *overrides]


@pytest.fixture
def tune(commands: Commands) -> Tune:
    return lambda folder, *overrides: commands.run(TUNE, *words(folder, *overrides))


def study(folder: Path, name: str = "lr_batch") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


@pytest.mark.long
def test_a_search_ends_with_a_command_that_trains(tune: Tune, commands: Commands, tmp_path: Path) -> None:
    run = tune(tmp_path, "tune.trials=4", "tune.startup_trials=2")
    assert run.returncode == 0, run.stderr
    trials = study(tmp_path).trials
    assert len(trials) == 4
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    assert all(1 <= len(trial.intermediate_values) <= 2 for trial in trials)
    for page in ("optimization_history", "intermediate_values", "parallel_coordinate", "slice"):
        content = (tmp_path / f"{page}.html").read_text()
        assert "optimizer.lr" in content or "Objective" in content or "Intermediate" in content
        assert 'src="http' not in content
    assert "Importance: " in run.stdout
    command = run.stdout.splitlines()[-1].removeprefix("To train with it: python train.py ").split()
    best = study(tmp_path).best_trial
    assert f"optimizer.lr={best.params['optimizer.lr']}" in command
    # It is ready to run, and gives the same.
    again = commands.run("train.py", *command, f"hydra.run.dir={tmp_path / 'best'}")
    assert again.returncode == 0, again.stderr
    for trial in trials:  # never the test images
        assert '"test/acc": null' in (tmp_path / "trials" / str(trial.number) / "metrics.json").read_text()
    # Enough is enough; and with more wanted, it goes on.
    assert tune(tmp_path, "tune.trials=4", "tune.startup_trials=2").returncode == 0
    assert len(study(tmp_path).trials) == 4


def test_trials_that_diverge_count_as_failed(tune: Tune, tmp_path: Path) -> None:
    space = "tune.space={optimizer.lr:{low:1e38,high:3e38}}"
    run = tune(tmp_path, "tune.trials=2", space, "tune.name=wild")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert [trial.state for trial in study(tmp_path, "wild").trials] == [TrialState.FAIL] * 2
    # Which it is depends on the batch size that is drawn.
    assert re.search(r"Trial 0 failed: the (loss is not a number|weights give no finite)", run.stdout)
    assert "No trial has ended as it should" in run.stdout


def test_a_trial_that_is_interrupted_is_run_again(commands: Commands, tmp_path: Path) -> None:
    long = ("trainer.max_epochs=500", "data.train_size=3000")
    process = commands.start(TUNE, *words(tmp_path, *long, "tune.trials=1"))
    wait_for(tmp_path / "trials" / "0" / "checkpoints", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted; the same command goes on with the study\n")
    (trial,) = (trial for trial in study(tmp_path).trials if trial.state == TrialState.WAITING)
    assert trial.system_attrs["fixed_params"] == study(tmp_path).trials[0].params
    assert trial.user_attrs == {"repeats": 0}


@pytest.mark.long
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_two_workers_and_one_that_is_killed(commands: Commands, tmp_path: Path, storage: str) -> None:
    url = f"{storage}:///{tmp_path}/shared.{storage}"
    command = words(tmp_path, "tune.trials=5", f"tune.storage={url}", "trainer.max_epochs=3", "data.train_size=2000")
    workers = [commands.start(TUNE, *command) for _ in range(2)]
    deadline = time.monotonic() + 100
    while len(list((tmp_path / "trials").glob("*/metrics.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    workers[1].communicate(timeout=100)
    assert workers[1].returncode == 0
    run = commands.run(TUNE, *command)  # nothing is left to do
    assert run.returncode == 0

    store: optuna.storages.BaseStorage | str = url
    if storage == "journal":
        from optuna.storages.journal import JournalFileBackend

        store = optuna.storages.JournalStorage(JournalFileBackend(f"{tmp_path}/shared.journal"))
    trials = optuna.load_study(study_name="lr_batch", storage=store).trials
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 5
    others = [trial for trial in trials if trial not in ended]
    assert all(trial.state == TrialState.FAIL for trial in others)
    # Each that was lost with its worker is repeated once, and none else is.
    repeated = [trial.user_attrs["repeats"] for trial in trials if "repeats" in trial.user_attrs]
    surplus = [trial.number for trial in others if "surplus" in trial.user_attrs]
    assert sorted(repeated + surplus) == [trial.number for trial in others]
    assert len(repeated) == len(set(repeated))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune=lr_bach"], "tune=lr_bach: no such choice; did you mean lr_batch?"),
        (["tune.trial=3"], "tune.trial: no such key"),
        (["tune.trials=0"], "tune.trials=0: input should be greater than or equal to 1"),
        (["optimizer.lrr=3"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["tune.space={optimizer.lr:{low:2,high:1}}"], "low: should be less than high"),
        (
            ["tune.storage=postgresql://nobody@127.0.0.1:1/none"],
            "tune.storage=postgresql://nobody@127.0.0.1:1/none: can",
        ),
        (["tune.storage=sqlite:////proc/none/study.db"], "tune.storage=sqlite:////proc/none/study.db: cannot be used"),
        (["tune.storage=study.db"], "tune.storage=study.db: string should match pattern"),
        (["data.val_size=0"], "data.val_size=0: a search needs validation images"),
        (["device=ddp"], "device.devices=2: a trial runs on one device"),
        (["resume=somewhere"], "resume: goes on with one run"),
    ],
)
def test_a_mistake_gets_one_line(tune: Tune, tmp_path: Path, overrides: list[str], message: str) -> None:
    run = tune(tmp_path / "study", *overrides)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {message}") or message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "study" / "trials").exists()


@pytest.mark.parametrize("choice", sorted(path.stem for path in (PROJECT / "conf" / "tune").iterdir()))
def test_every_space_is_valid(choice: str) -> None:
    search = read_search(compose_config(PROJECT, "search", [f"tune={choice}"]))
    assert search.name == choice
    for key, dimension in search.space.items():  # and each end of it
        values = dimension.choices if isinstance(dimension, Choices) else [dimension.low, dimension.high]
        for value in values:
            compose_settings(PROJECT, f"{key}={value}")


def test_a_space_over_a_key_that_does_not_exist() -> None:
    config = compose_config(PROJECT, "search", ["data=synthetic"])
    with open_dict(config.tune):
        config.tune.space = {"optimizer.lrr": {"low": 1, "high": 2}}
    with pytest.raises(UserError, match=r"tune\.space: optimizer\.lrr: no such key; did you mean optimizer\.lr\?"):
        read_search(config)


def test_a_study_of_something_else_is_not_mixed_in(tune: Tune, tmp_path: Path) -> None:
    assert tune(tmp_path, "tune.trials=1").returncode == 0
    run = tune(tmp_path, "tune.trials=2", "model=lenet_relu")
    assert run.returncode == 1
    assert "tune.name=lr_batch: the study of that name searches" in run.stderr
    assert "choose another tune.name" in run.stderr
    assert len(study(tmp_path).trials) == 1
