"""The search, with trials on images drawn by the program."""

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from lenet.config import PROJECT, compose_config
from lenet.errors import UserError
from lenet.sweeps import search
from lenet.sweeps.search import RepeatableSampler, Study
from tests.commands import Commands, wait_for

SMALL = ("data=synthetic", "data.train_size=2000", "data.val_size=200", "data.test_size=50", "dashboard=minimal")
TUNE = "scripts/tune.py"


def study(folder: Path, *overrides: str) -> Study:
    """A search over learning rate and batch size."""
    words = [f"tune.folder={folder}", *overrides]
    common = [*SMALL, *(word for word in words if not word.lstrip("+").startswith("tune"))]
    return Study(compose_config("search", [*SMALL, *words]), common)


@pytest.fixture
def instant_runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trials end at once, with an accuracy that falls with the distance of the learning rate from 0.5."""
    rates: list[float] = []

    def run(settings: Any, folder: Path, callbacks: list[Any]) -> dict[str, Any]:
        rates.append(settings.optimizer.lr)
        return {"best_val_acc": 1 - abs(rates[-1] - 0.5)}

    monkeypatch.setattr(search, "run", run)
    return rates


@pytest.mark.long
def test_a_search_can_be_repeated_and_resumed(tmp_path: Path, instant_runs: list[float]) -> None:
    study(tmp_path / "one", "tune.trials=8").work()
    study(tmp_path / "two", "tune.trials=5").work()
    study(tmp_path / "two", "tune.trials=8").work()
    study(tmp_path / "other", "tune.trials=8", "tune.seed=1").work()
    one, two, other = instant_runs[:8], instant_runs[8:16], instant_runs[16:]
    assert one == two
    assert not set(one) & set(other)


def test_workers_that_start_together_propose_different_settings() -> None:
    together = optuna.create_study(sampler=RepeatableSampler(0))
    first = together.ask()
    together.sampler = RepeatableSampler(0)  # another worker's
    second = together.ask()
    assert first.suggest_float("lr", 0, 1) != second.suggest_float("lr", 0, 1)


def test_the_report(tmp_path: Path, instant_runs: list[float]) -> None:
    whole = study(tmp_path, "tune.trials=4", "model=lenet_relu")
    whole.work()
    *lines, command = whole.report().splitlines()
    best = min(instant_runs, key=lambda rate: abs(rate - 0.5))
    assert lines[0] == "Trials: 4 complete"
    assert lines[1].startswith(f"Best val/acc: {1 - abs(best - 0.5):.4f}")
    assert lines[2].startswith("Importance: ")
    assert command.startswith("To train with it: python train.py data=synthetic ")
    assert f"model=lenet_relu optimizer.lr={best} data.batch_size=" in command
    for page in ("optimization_history", "intermediate_values", "parallel_coordinate", "slice"):
        assert 'src="http' not in (tmp_path / f"{page}.html").read_text()


def test_trials_that_fail_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise UserError("the loss became NaN")

    monkeypatch.setattr(search, "run", run)
    whole = study(tmp_path, "tune.trials=2", f"tune.storage=sqlite:///{tmp_path}/own.db")
    whole.work()
    assert whole.report().startswith("Trials: 2 fail\nNo trial is complete")


def test_a_trial_whose_worker_was_killed_is_run_again(tmp_path: Path, instant_runs: list[float]) -> None:
    whole = study(tmp_path, "tune.trials=2")
    lost = whole.study.ask()
    rate = lost.suggest_float("optimizer.lr", 0.05, 2.0, log=True)
    search.retry(whole.study, whole.study.tell(lost, state=TrialState.FAIL))  # as Optuna does after a minute
    whole.work()
    assert instant_runs[0] == rate
    assert len(instant_runs) == 2
    assert whole.report().startswith("Trials: 2 complete")


def test_trials_train_and_hopeless_ones_end_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    space = "tune.space={optimizer.lr:{low:0.1,high:0.1},data.batch_size:{choices:[64]}}"
    whole = study(tmp_path, "tune.trials=2", "trainer.max_epochs=3", space)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    whole.work()
    complete, pruned = whole.study.trials
    assert (complete.state, list(complete.intermediate_values)) == (TrialState.COMPLETE, [1, 2, 3])
    assert (pruned.state, list(pruned.intermediate_values)) == (TrialState.PRUNED, [1])
    assert complete.intermediate_values[1] == pruned.intermediate_values[1]  # nothing is left of the trial before it
    folder = tmp_path / "trials" / "0"
    assert '"test/acc": null' in (folder / "metrics.json").read_text()  # never the test images
    assert "epoch 3/3" in (folder / "train.log").read_text()


def test_an_interrupted_trial_is_enqueued_again(commands: Commands, tmp_path: Path) -> None:
    words = (*SMALL, f"tune.folder={tmp_path}", "trainer.max_epochs=500", "tune.trials=1")
    process = commands.start(TUNE, *words)
    wait_for(tmp_path / "trials" / "0" / "checkpoints", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted; the same command resumes the study\n")
    failed, again = optuna.load_study(study_name="lr_batch", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert (failed.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert failed.params == again.params


def test_a_study_of_something_else_is_not_mixed_in(tmp_path: Path) -> None:
    study(tmp_path)
    study(tmp_path)
    for other in ("model=lenet_relu", "tune.space={optimizer.lr:{low:1,high:2}}"):
        with pytest.raises(UserError, match=r"tune\.name=lr_batch: .* choose another tune\.name"):
            study(tmp_path, other)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune=lr_bach"], "tune=lr_bach: no such choice; did you mean lr_batch?"),
        (["tune.trials=0"], "tune.trials=0: input should be greater than or equal to 1"),
        (["+tune.space={optimizer.lrr:{low:1,high:2}}"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["tune.space={optimizer.lr:{low:2,high:1}}"], "optimizer.lr={'low': 2, 'high': 1, 'log': True}: should"),
        (["tune.space={optimizer.lr:{low:-1,log:false}}"], "optimizer.lr=-1: input should be greater than 0"),
        (["tune.storage=sqlite:////proc/none/study.db"], "tune.storage=sqlite:////proc/none/study.db: cannot be used"),
        (["tune.storage=study.db"], "tune.storage=study.db: string should match pattern"),
        (["data.val_size=0"], "data.val_size=0, test_every_epoch=true: a search needs validation images"),
        (["device=ddp"], "each run of a sweep or a search has one device"),
    ],
)
def test_a_mistake_gets_one_line(commands: Commands, tmp_path: Path, overrides: list[str], message: str) -> None:
    run = commands.run(TUNE, *SMALL, f"tune.folder={tmp_path / 'study'}", *overrides)
    assert run.returncode == 1
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "study" / "trials").exists()


@pytest.mark.parametrize("choice", sorted(path.stem for path in (PROJECT / "conf" / "tune").iterdir()))
def test_every_space_is_valid(choice: str, tmp_path: Path) -> None:
    assert study(tmp_path, f"tune={choice}").search.name == choice
