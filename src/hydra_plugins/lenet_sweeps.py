"""How `python train.py -m` goes through a grid of settings: the sweeper, and the launchers that start its jobs.

Hydra looks for plugins in the package `hydra_plugins`, and loads this file at each start: so nothing heavy on top.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher
from omegaconf import DictConfig, open_dict

from lenet import folders, preflight
from lenet.config import read_settings
from lenet.errors import UserError
from lenet.sweeps import sweep
from lenet.sweeps.isolation import ProcessDiedError, begin_in_fork, call_in_fork
from lenet.sweeps.sweep import Job, Sweep
from lenet.training import provenance
from lenet.training.signals import saying

log = logging.getLogger(__name__)

SUBDIR = "hydra.sweep.subdir="

PATIENCE_SECONDS = 30
"""A job whose sweep is gone finishes its step, and saves."""


class Grid(Sweeper):
    """All combinations of the values given, each a job; all are checked before the first starts."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run what is not done yet; ends with a table of all that is.

        Raises:
            UserError: the grid is not one, or another than that of the sweep to resume, or jobs failed.
            KeyboardInterrupt: the user pressed Ctrl-C; says how to go on.
        """
        # By its name: Hydra loads the files of plugins for itself, so that a class is another one here.
        if getattr(self.launcher, "_EXECUTOR", None) == "slurm" and shutil.which("srun") is None:
            raise UserError(
                "launcher=slurm: there is no srun on this machine; start the sweep where the cluster's commands are, or"
                " use launcher=in_turn or launcher=processes"
            )
        jobs = self._plan(arguments)
        whole = self._resumed(jobs) if self.config.sweep.resume else self._begun(jobs)
        with folders.alone(whole.folder, "sweep.resume"):
            self._run(whole)

    def _plan(self, arguments: Sequence[str]) -> list[Job]:
        """All jobs, checked; the launcher that can use them gets their configurations, which take long to compose."""
        first, *others = enumerate(_combinations(arguments, self.hydra_context.config_loader))
        planned = [self._planned(*first)]  # a mistake is mostly in all of them, and told at once
        if isinstance(self.launcher, InTurn):
            rest = begin_in_fork(lambda _: self._planned_if_right(others))
            try:
                self.launcher.load()  # meanwhile
            finally:
                with contextlib.suppress(ProcessDiedError):
                    planned += rest() or []
            self.launcher.composed = {job.number: config for job, config in planned}
        planned += [self._planned(*other) for other in others[len(planned) - 1 :]]
        return [job for job, _ in planned]

    def _planned(self, number: int, words: Sequence[str]) -> tuple[Job, DictConfig]:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        settings = read_settings(config)
        if settings.resume is not None:
            raise UserError(
                f"resume={settings.resume}: goes on with one run, without -m; a sweep goes on with sweep.resume=FOLDER"
            )
        preflight.check(settings)
        preflight.check_one_device(settings, "a sweep (-m) runs on one device; start such runs one by one")
        plain = {key: value for key, value in settings.plain.items() if key != "sweep"}
        return Job(number, tuple(words), plain), config

    def _planned_if_right(self, jobs: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[Job, DictConfig]] | None:
        """None if one of them is wrong: an error says more where it is not sent from another process."""
        try:
            return [self._planned(*job) for job in jobs]
        except (Exception, KeyboardInterrupt):
            return None

    def _begun(self, jobs: Sequence[Job]) -> Sweep:
        whole = Sweep(folders.claim(self.config, "hydra.sweep.dir"), jobs)
        whole.write()
        return whole

    def _resumed(self, jobs: Sequence[Job]) -> Sweep:
        whole = sweep.read(Path(self.config.sweep.resume).expanduser().absolute(), "sweep.resume=")
        sweep.refuse_another(jobs, whole)
        folders.refuse_shared(whole.folder)
        return whole

    def _run(self, whole: Sweep) -> None:
        from lenet.sweeps.leaderboard import Leaderboard

        with open_dict(self.config):
            # Each job composes its configuration anew, from these overrides.
            self.config.hydra.sweep.dir = str(whole.folder)
            self.config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{whole.folder}"')
        if isinstance(parameters := getattr(self.launcher, "params", None), dict):  # one of submitit's
            # What it finds there it unpickles: so it finds what the jobs have left that it has started itself.
            parameters["submitit_folder"] = str(whole.folder / folders.JOBS / secrets.token_hex(8) / "%j")
        left = whole.left()
        if self.config.sweep.resume:
            for job in left:
                if whole.folder_of(job).is_dir():  # if the sweep was killed just now, its jobs are about to end
                    with folders.alone(whole.folder_of(job), "sweep.resume", PATIENCE_SECONDS):
                        pass
            # In a fork: a process in which torch has computed with several threads could not be forked for the jobs.
            go_on = call_in_fork(lambda _: [_can_go_on(whole.folder_of(job)) for job in left])
            for job, goes_on in zip(left, go_on, strict=True):
                if not goes_on:
                    whole.discard(job)
        log.info("Sweep folder: %s (%d of %d jobs to do)", whole.folder, len(left), len(whole.jobs))
        remedy = f"the same command with sweep.resume={whole.folder} goes on"
        try:
            if left:
                words = [[*job.overrides, f"{SUBDIR}{job.number}"] for job in left]
                self.launcher.launch(words, initial_job_idx=0)
        except KeyboardInterrupt as interrupt:
            if still := whole.left():
                done = len(whole.jobs) - len(still)
                raise saying(interrupt, f"jobs done: {done} of {len(whole.jobs)}; {remedy}") from None
        if len(whole.left()) < len(whole.jobs):
            board = Leaderboard(whole)
            log.info("%s\n%s", board, board.save())
        if failed := whole.left():
            names = ", ".join(" ".join([str(job.number), *whole.distinct(job)]) for job in failed)
            raise UserError(
                f"{len(failed)} of {len(whole.jobs)} jobs failed: {names}; each has its train.log in"
                f" {whole.folder}; {remedy}"
            )


def _combinations(arguments: Sequence[str], config_loader: ConfigLoader) -> list[tuple[str, ...]]:
    """The overrides of each job."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader).parse_overrides(list(arguments)):
        key = override.get_key_element()
        if key.lstrip("+").startswith("sweep."):
            continue  # of the sweep, not of its jobs
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            try:
                choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except (ValueError, TypeError) as error:  # of a range that leads nowhere
                raise UserError(f"{override.input_line}: has no values ({error})") from None
        else:
            raise UserError(f"{override.input_line}: a grid needs single values, such as {key}=0.1,0.5")
        if not choices[key]:
            raise UserError(f"{override.input_line}: has no values")
    return list(itertools.product(*choices.values()))


def _can_go_on(folder: Path) -> bool:
    """Whether a run in that folder was ended, and has left what it can go on from."""
    if not (folder / provenance.FILE).exists():
        return False
    from lenet.training import checkpoint_file, saved  # loads torch

    try:
        return saved.find(folder) is not None
    except checkpoint_file.DamagedError:
        return False  # nothing is lost by beginning anew
    except UserError:
        return True  # the job itself says what is wrong; what is there stays


def _name(words: Sequence[str]) -> str:
    """Of a job, by its folder; a launcher that resumes counts otherwise."""
    return f"Job {_subdir(words)}"


def _end_when_free(lock: str) -> None:
    """End this process, as SIGTERM does, when whoever has the lock is gone, however that came about."""
    try:
        with FileLock(lock).acquire(poll_interval=1):
            pass
    except OSError:
        return  # the folder is gone; the job itself finds that out
    while True:  # as often as it takes: somewhere it may be passed over
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _settings(words: Sequence[str]) -> str:
    return " ".join(word for word in words if not word.startswith("hydra."))


def _subdir(words: Sequence[str]) -> str:
    return next(word for word in words if word.startswith(SUBDIR)).removeprefix(SUBDIR)


class InTurn(Launcher):
    """One job after the other, each in a fork of this process; so it has loaded torch, and nothing else is shared.

    Attributes:
        composed: the configurations of jobs, by their numbers, where they have been composed before.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composed: dict[int, DictConfig] = {}

    def load(self) -> None:
        """Load what all jobs use, once."""
        import lenet.training.run  # noqa: F401 - for the jobs, which are forks

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.load()
        from lenet.training.run import check

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._config(words) for words in job_overrides]
        check(read_settings(configs[0]))  # and the data is obtained
        jobs = zip(configs, job_overrides, itertools.count(initial_job_idx), strict=False)
        return [self._run(config, list(words), index) for config, words, index in jobs]

    def _config(self, words: Sequence[str]) -> DictConfig:
        config = self.composed.get(int(_subdir(words)))
        if config is None:
            return self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(config):
            # What was not known yet when it was composed.
            config.hydra.sweep.dir = self.config.hydra.sweep.dir
            config.hydra.sweep.subdir = _subdir(words)
            config.hydra.overrides.hydra = self.config.hydra.overrides.hydra
        return config

    def _run(self, config: DictConfig, words: list[str], index: int) -> JobReturn:
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        log.info("%s: %s", _name(words), _settings(words))

        def job(_: object) -> JobStatus:
            return run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            ).status

        try:
            status = call_in_fork(job)
        except ProcessDiedError as error:
            log.error("%s failed: its process %s", _name(words), error)
            status = JobStatus.FAILED
        return JobReturn(overrides=words, cfg=config, status=status)


class SideBySide(LocalLauncher):  # type: ignore[misc]  # which has no types
    """Several jobs at a time on this machine, each in a new process; submitit starts them.

    Args:
        jobs: how many at a time; they share the processor's cores.
    """

    def __init__(self, jobs: int, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.jobs = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        logging.getLogger(LocalLauncher.__module__).setLevel(logging.WARNING)  # of each job it says less than this:
        place = Path(self.params["submitit_folder"]).parent
        place.mkdir(parents=True)
        self.alive = str(place / "alive")
        # The lock goes first, if a signal ends this: then so do the jobs, whose end is waited for.
        with ThreadPoolExecutor(self.jobs) as threads, FileLock(self.alive):
            return list(threads.map(self._launch_one, job_overrides, itertools.count(initial_job_idx)))

    def __call__(self, *arguments: Any) -> JobReturn:
        """In the process of a job: run it, until the sweep is gone."""
        threading.Thread(target=_end_when_free, args=(self.alive,), daemon=True).start()
        result: JobReturn = super().__call__(*arguments)
        return result

    def _launch_one(self, words: Sequence[str], index: int) -> JobReturn:
        log.info("%s: %s", _name(words), _settings(words))
        try:
            result: JobReturn
            (result,) = super().launch([words], index)
        except Exception as error:  # of whatever kind, the other jobs go on
            result = JobReturn(overrides=words, status=JobStatus.FAILED)
            log.error("%s: %s", _name(words), " ".join(str(error).split()))
        if result.status != JobStatus.COMPLETED:
            log.error("%s failed; see its train.log", _name(words))
        else:
            log.info("%s is done", _name(words))
        return result
