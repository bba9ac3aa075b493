"""A search for good settings: Optuna proposes, each trial trains in a fork, and hopeless ones end early.

The study lives in a database. Whoever runs the same command goes on with it, also several at once, on one machine or on
many. A trial is judged by the best `val/acc` of its epochs; the test images are never looked at.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import optuna
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna.visualization import (
    plot_intermediate_values,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_slice,
)
from sqlalchemy.exc import SQLAlchemyError

from lenet.config import Settings
from lenet.errors import UserError
from lenet.sweeps.isolation import Ask, ProcessDiedError, call_in_fork
from lenet.sweeps.search_space import Search
from lenet.training.module import Classifier
from lenet.training.run import run

log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what happens to a trial is said here
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

WORKER = "worker"
"""The attribute of a trial that says who runs it: machine, process, and when that began."""

REPEATS = "repeats"
"""The attribute of a trial that repeats another, whose worker was killed: that one's number."""

SURPLUS = "surplus"
"""The attribute of a trial that was one too many, and never run."""

PURPOSE = "purpose"
"""The attribute of a study that says what it searches."""

JOURNAL, SQLITE = "journal:///", "sqlite:///"

NO_TEST = "+trainer.limit_test_batches=0"


class TrialFailedError(Exception):
    """A trial that crashed or diverged; the search goes on."""


class SurplusError(Exception):
    """A trial that was begun when there were enough."""


class Outcome(NamedTuple):
    """How a trial's training ended.

    Attributes:
        error: what went wrong, in one line; None if nothing did.
        acc: the best val/acc of its epochs.
        hopeless: whether it was ended early.
    """

    error: str | None
    acc: float = math.nan
    hopeless: bool = False


class EndHopeless(pl.Callback):
    """Tells each epoch's val/acc, and ends the training if that has no prospects.

    Args:
        ask: from epoch (1 and up) and val/acc to whether it has none.

    Attributes:
        hopeless: whether the training was ended.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.hopeless = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.ask((trainer.current_epoch + 1, pl_module.metrics["val/acc"])):
            self.hopeless = trainer.should_stop = True


class Study:
    """The trials of a search, and how to go on with them.

    Args:
        search: what to try.
        compose: the settings that overrides make.
        overrides: those that all trials have in common.

    Raises:
        UserError: the storage cannot be used, or holds a study of something else; or a run is to be resumed.
    """

    def __init__(self, search: Search, compose: Callable[..., Settings], overrides: Sequence[str]) -> None:
        self.search, self.compose, self.overrides = search, compose, list(overrides)
        self.folder = Path(search.folder)
        if compose(*overrides).resume is not None:
            raise UserError("resume: goes on with one run; a search goes on by the same tune.storage and tune.name")
        self.study = self._open()

    def _open(self) -> optuna.Study:
        # Each worker proposes something else, and a worker that is started again too.
        sampler = optuna.samplers.TPESampler(seed=(self.search.seed * 100_003 + os.getpid()) % 2**32)
        pruner = optuna.pruners.MedianPruner(self.search.startup_trials, self.search.warmup_epochs)
        study = optuna.create_study(
            storage=_open_storage(self.search.storage), study_name=self.search.name, direction="maximize",
            load_if_exists=True, sampler=sampler, pruner=pruner,
        )  # fmt: skip
        purpose = json.loads(json.dumps({"space": self.search.model_dump()["space"], "overrides": self.overrides}))
        known = study.user_attrs.get(PURPOSE)
        if known is None:
            study.set_user_attr(PURPOSE, purpose)
        elif known != purpose:
            raise UserError(
                f"tune.name={self.search.name}: the study of that name searches {_words(known)}, and this command"
                f" {_words(purpose)}; choose another tune.name"
            )
        return study

    def work(self) -> None:
        """Run trials until there are as many as there should be, by whomever."""
        while True:
            self._repeat_lost_trials()
            if len(self._counted()) >= self.search.trials:
                return
            self.study.optimize(self._objective, n_trials=1, catch=(TrialFailedError, SurplusError))

    def _counted(self) -> dict[int, FrozenTrial]:
        """By number, the trials that are or were run, without those that another repeats."""
        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
        return {
            trial.number: trial
            for trial in trials
            if trial.state != TrialState.WAITING and trial.number not in repeated and SURPLUS not in trial.user_attrs
        }

    def _repeat_lost_trials(self) -> None:
        """Those whose worker on this machine was killed; those on others have Optuna's heartbeat, in a database."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER)
            if worker is not None and _is_gone(worker):
                try:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue  # another worker was faster
                _repeat(self.study, trial)

    def _objective(self, trial: Trial) -> float:
        trial.set_user_attr(WORKER, _this_worker())
        if sorted(self._counted()).index(trial.number) >= self.search.trials:
            trial.set_user_attr(SURPLUS, True)  # workers that began the last one together
            raise SurplusError
        words = [f"{key}={part.suggest(trial, key)}" for key, part in self.search.space.items()]
        log.info("Trial %d: %s", trial.number, " ".join(words))
        try:
            settings = self.compose(*self.overrides, *words, NO_TEST)
            folder = self.folder / "trials" / str(trial.number)
            folder.mkdir(parents=True, exist_ok=True)
            outcome: Outcome = call_in_fork(
                lambda ask: _train(settings, folder, ask), lambda said: _has_no_prospects(trial, said)
            )
        except (UserError, HydraException, OmegaConfBaseException, ProcessDiedError) as error:
            outcome = Outcome(str(error))
        except KeyboardInterrupt:
            _enqueue_again(self.study, trial)
            raise
        if outcome.error is not None:
            log.error("Trial %d failed: %s", trial.number, " ".join(outcome.error.split()))
            raise TrialFailedError
        log.info("Trial %d: val/acc %.4f%s", trial.number, outcome.acc, ", ended early" * outcome.hopeless)
        if outcome.hopeless:
            raise optuna.TrialPruned
        return outcome.acc

    def best_command(self) -> str | None:
        """The command that trains with the best setting; None if no trial has ended as it should."""
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return None
        best = [f"{key}={value}" for key, value in self.study.best_params.items()]
        return shlex.join(["python", "train.py", *self.overrides, *best])

    def report(self) -> str:
        """The best setting, how much each key matters, and Optuna's plots as pages in the study's folder."""
        states = Counter(trial.state.name.lower() for trial in self._counted().values())
        lines = ["Trials: " + ", ".join(f"{count} {state}" for state, count in states.most_common())]
        command = self.best_command()
        if command is None:
            return "\n".join([*lines, "No trial has ended as it should; each has its train.log in the study's folder"])
        lines.append(f"Best val/acc: {self.study.best_value:.4f}, trial {self.study.best_trial.number}")
        if states["complete"] > 1 and len(self.search.space) > 1:
            weights = optuna.importance.get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
            lines.append("Importance: " + ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
        pages = [str(page) for page in self._plots()]
        return "\n".join([*lines, f"Plots: {', '.join(pages)}", f"To train with it: {command}"])

    def _plots(self) -> Iterator[Path]:
        makers = (plot_optimization_history, plot_intermediate_values, plot_parallel_coordinate, plot_slice)
        for make in makers:
            page = self.folder / f"{make.__name__.removeprefix('plot_')}.html"
            make(self.study).write_html(page, include_plotlyjs=True)  # opens without a network
            yield page


def _train(settings: Settings, folder: Path, ask: Ask) -> Outcome:
    """In a process of its own."""
    handler = logging.FileHandler(folder / "train.log")
    logging.getLogger().handlers = [handler]  # not among the search's own lines
    watch = EndHopeless(ask)
    try:
        result = run(settings, folder, [watch])
    except UserError as error:
        return Outcome(str(error))
    except Exception as error:
        log.exception("a defect of this program, or of a library")
        return Outcome(f"{type(error).__name__}: {error}")
    return Outcome(None, result["best_val_acc"], watch.hopeless)


def _has_no_prospects(trial: Trial, said: tuple[int, float]) -> bool:
    epoch, acc = said
    trial.report(acc, epoch)
    return bool(trial.should_prune())


def _repeat(study: optuna.Study, trial: FrozenTrial) -> None:
    log.warning("Trial %d was lost with its process; it is repeated", trial.number)
    _enqueue_again(study, trial)


def _enqueue_again(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})


def _this_worker() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}


def _is_gone(worker: dict[str, Any]) -> bool:
    here: bool = worker["host"] == socket.gethostname()
    return here and _began(worker["pid"]) != worker["began"]


def _began(pid: int) -> str | None:
    """When the process began, as the system counts; another may have its number later."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


def _open_storage(url: str) -> BaseStorage:
    """Raises a UserError where it cannot be used."""
    try:
        if url.startswith(JOURNAL):
            path = Path(url.removeprefix(JOURNAL))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        if url.startswith(SQLITE):
            Path(url.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        try:
            return _database(url)
        except SQLAlchemyError:  # of workers that begin together, one makes the tables
            time.sleep(1)
            return _database(url)
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"tune.storage={url}: cannot be used ({reason}); name one as sqlite:///FILE, journal:///FILE or"
            " postgresql://USER@HOST/DATABASE"
        ) from None


def _database(url: str) -> RDBStorage:
    return RDBStorage(url, heartbeat_interval=10, grace_period=60, heartbeat_stale_trial_callback=_repeat)


def _words(purpose: dict[str, Any]) -> str:
    return f"{', '.join(purpose['space'])} with {' '.join(purpose['overrides']) or 'the defaults'}"
