"""A search for good settings: Optuna proposes, trials train one after the other, and hopeless ones end early.

The study is kept in a database. The same command resumes it, and several workers at once share it. A trial is judged by
the best `val/acc` of its epochs; the test images are not evaluated.
"""

import contextlib
import logging
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState
from pydantic import Field

from lenet.config import Count, Section, Settings, compose_config, read_settings, validated
from lenet.errors import UserError, flat
from lenet.signals import Interrupted
from lenet.sweeps.grid import refuse_unfit
from lenet.training.run import run

log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.ERROR)  # this file logs what happens to a trial
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SQLITE = "sqlite:///"

retry = RetryHeartbeatStaleTrialCallback()
"""Enqueues a trial again that was interrupted, or whose worker was killed."""


class Search(Section):
    """How to search: the section `tune` of conf/search.yaml."""

    name: str = Field(pattern=r"^[\w-]+$")
    space: dict[str, dict[str, Any]] = Field(min_length=1)
    trials: Count
    folder: str = Field(min_length=1)
    storage: str = Field(pattern=r"^\w+(\+\w+)?://")
    seed: int
    startup_trials: int = Field(ge=0)
    warmup_epochs: int = Field(ge=0)


class RepeatableSampler(optuna.samplers.TPESampler):
    """Optuna's sampler, with random numbers that depend on seed and trial alone: workers propose different settings."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        super().__init__(seed=(self.seed * 100_003 + trial.number) % 2**32)


class EndHopeless(pl.Callback):
    """Reports val/acc of each epoch to Optuna, and ends the training if Optuna expects nothing of it."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.is_hopeless = trial, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.trial.report(pl_module.metrics["val/acc"], trainer.current_epoch + 1)
        if self.trial.should_prune():
            self.is_hopeless = trainer.should_stop = True


class Study:
    """The trials of a search, from what conf/search.yaml makes and the overrides that all trials have in common.

    Raises a UserError if the search is wrong, or the storage cannot be used or holds a study of something else.
    """

    def __init__(self, config: DictConfig, overrides: Sequence[str]) -> None:
        self.search = validated(Search, OmegaConf.to_container(config.tune, resolve=True), "tune")
        self.overrides, self.folder = list(overrides), Path(self.search.folder).expanduser()
        settings = read_settings(config)
        refuse_unfit(settings)
        if settings.section("data").get("val_size") == 0 or settings.test_every_epoch:
            raise UserError("data.val_size=0, test_every_epoch=true: a search needs validation images, and no test")
        for key, values in self.search.space.items():
            self._check(key, values)
        self.study = optuna.create_study(
            storage=_open_storage(self.search.storage),
            study_name=self.search.name,
            direction="maximize",
            load_if_exists=True,
            sampler=RepeatableSampler(self.search.seed),
            pruner=optuna.pruners.MedianPruner(self.search.startup_trials, self.search.warmup_epochs),
        )
        purpose = f"{', '.join(map(str, self.search.space.items()))} with {' '.join(overrides) or 'the defaults'}"
        if (known := self.study.user_attrs.get("purpose", purpose)) != purpose:
            raise UserError(f"tune.name={self.search.name}: that study searches {known}; choose another tune.name")
        self.study.set_user_attr("purpose", purpose)

    def _compose(self, *words: str) -> Settings:
        return read_settings(compose_config("train", [*self.overrides, *words]))

    def _check(self, key: str, values: dict[str, Any]) -> None:
        """Refuse a key that does not exist, or values that it cannot have."""
        try:
            first = values["choices"][0] if "choices" in values else values["low"]
            _suggest(FixedTrial({key: first}), key, values)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            form = "{low: NUMBER, high: NUMBER} or {choices: [...]}"
            raise UserError(f"tune.space.{key}={values}: should be {form} ({error})") from None
        self._compose(f"{key}={first}")

    def work(self) -> None:
        """Run trials until there are as many as wanted, those of other workers included."""
        optuna.storages.fail_stale_trials(self.study)
        while len(self._counted()) < self.search.trials:
            self.study.optimize(self._objective, n_trials=1, catch=(Exception,))
            optuna.storages.fail_stale_trials(self.study)

    def _counted(self) -> list[FrozenTrial]:
        """The trials that are running or have ended, without those that another repeats."""
        trials = self.study.get_trials(deepcopy=False, states=[each for each in TrialState if each.name != "WAITING"])
        repeated = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
        return [trial for trial in trials if trial.number not in repeated]

    def _objective(self, trial: Trial) -> float:
        words = [f"{key}={_suggest(trial, key, values)}" for key, values in self.search.space.items()]
        log.info("Trial %d: %s", trial.number, " ".join(words))
        watch = EndHopeless(trial)
        try:
            settings = self._compose(*words, "+trainer.limit_test_batches=0")
            with _log_into(self.folder / "trials" / str(trial.number)) as folder:
                acc = float(run(settings, folder, callbacks=[watch])["best_val_acc"])
        except Interrupted as interrupt:
            retry(self.study, self.study.tell(trial, state=TrialState.FAIL))
            raise Interrupted(interrupt.signum, "the same command resumes the study") from None
        except Exception as error:
            log.error("Trial %d failed: %s", trial.number, flat(error))
            raise
        log.info("Trial %d: val/acc %.4f%s", trial.number, acc, ", ended early" * watch.is_hopeless)
        if watch.is_hopeless:
            raise optuna.TrialPruned
        return acc

    def report(self) -> str:
        """The best setting, how much each key matters, and Optuna's plots as pages in the study's folder."""
        states = Counter(trial.state.name.lower() for trial in self._counted())
        lines = ["Trials: " + ", ".join(f"{count} {state}" for state, count in states.most_common())]
        if not states["complete"]:
            return "\n".join([*lines, "No trial is complete; each has its train.log in the study's folder"])
        lines.append(f"Best val/acc: {self.study.best_value:.4f}, trial {self.study.best_trial.number}")
        if states["complete"] > 1 and len(self.search.space) > 1:
            weights = optuna.importance.get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
            lines.append("Importance: " + ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
        for name in ("optimization_history", "intermediate_values", "parallel_coordinate", "slice"):
            figure = getattr(optuna.visualization, f"plot_{name}")(self.study)
            figure.write_html(self.folder / f"{name}.html", include_plotlyjs=True)  # opens without a network
        best = [f"{key}={value}" for key, value in self.study.best_params.items()]
        command = shlex.join(["python", "train.py", *self.overrides, *best])
        return "\n".join([*lines, f"Plots: {self.folder}/*.html", f"To train with it: {command}"])


def _suggest(trial: BaseTrial, key: str, values: dict[str, Any]) -> Any:
    if "choices" in values:
        return trial.suggest_categorical(key, **values)
    is_whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return (trial.suggest_int if is_whole else trial.suggest_float)(key, **values)


@contextlib.contextmanager
def _log_into(folder: Path) -> Iterator[Path]:
    """A folder for a trial, whose lines go into a file there instead of among those of the search."""
    folder.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    before, root.handlers = root.handlers, [logging.FileHandler(folder / "train.log")]
    try:
        yield folder
    except Exception:
        log.exception("The trial failed")
        raise
    finally:
        root.handlers[0].close()
        root.handlers = before


def _open_storage(url: str) -> RDBStorage:
    beats: dict[str, Any] = {"heartbeat_interval": 10, "grace_period": 60, "heartbeat_stale_trial_callback": retry}
    try:
        if url.startswith(SQLITE):
            Path(url.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            # Under load a disk may take long, and SQLite by default gives up after five seconds.
            beats["engine_kwargs"] = {"connect_args": {"timeout": 60}}
        try:
            return RDBStorage(url, **beats)
        except Exception:  # of workers that start together, one makes the tables
            time.sleep(1)
            return RDBStorage(url, **beats)
    except Exception as error:  # of whatever driver
        known = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        raise UserError(f"tune.storage={url}: cannot be used ({flat(error)}); name one as {known}") from None
