"""The sweeper for `python train.py -m`: all combinations of the values given, each a job."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from lenet import folders
from lenet.config import Settings, as_word, dotted, read_settings
from lenet.errors import UserError
from lenet.folders import RESULT
from lenet.signals import Interrupted
from lenet.sweeps.launcher import compose_job

log = logging.getLogger(__name__)

SWEEP_CONFIG = "multirun.yaml"
"""In a sweep's folder: its configuration, as Hydra's own sweeper writes it."""


class Job(NamedTuple):
    """One run of a sweep."""

    overrides: list[str]
    folder: str  # in that of the sweep; by default the job's number
    settings: Settings


class GridSweeper(Sweeper):
    """Runs all combinations of the values in `params`, as `{"optimizer.lr": "0.1,0.5"}`, and on the command line.

    A job is done when its folder has a metrics.json, which a run writes last. So the same command with
    sweep.resume=FOLDER resumes a sweep that was killed.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(self, params: Mapping[str, str]) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Check all jobs, run those that are not done yet, and show the leaderboard."""
        jobs = self._plan([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        if self.config.sweep.resume is not None:
            folder = Path(self.config.sweep.resume).expanduser().absolute()
            check_resumable(folder, jobs)
        else:
            folder = folders.claim(self.config, "hydra.sweep.dir")
        with folders.locked(folder, "sweep.resume"):
            OmegaConf.save(self.config, folder / SWEEP_CONFIG)
            self._run(folder, jobs)

    def _plan(self, arguments: Sequence[str]) -> list[Job]:
        """The jobs, checked."""
        jobs: dict[str, Job] = {}
        for number, words in enumerate(self._combinations(arguments)):
            config = compose_job(self.loader, self.config, words, number)
            settings, folder = read_settings(config), str(config.hydra.sweep.subdir)
            refuse_unfit(settings)
            if folder in jobs:
                raise UserError(f"hydra.sweep.subdir={folder}: two jobs would have this folder; each needs its own")
            jobs[folder] = Job(words, folder, settings)
        from lenet.training.run import check  # loads torch, and the mistakes above need not wait for that

        check(next(iter(jobs.values())).settings)
        return list(jobs.values())

    def _combinations(self, arguments: Sequence[str]) -> list[list[str]]:
        """The overrides of each job; of two for the same key, the later counts."""
        choices: dict[str, list[str]] = {}
        for override in OverridesParser.create(self.loader).parse_overrides(list(arguments)):
            key = override.get_key_element()
            if key.lstrip("+").startswith("sweep."):
                continue  # of the sweep, not of its jobs
            try:
                several = override.is_sweep_override()
                values = override.sweep_string_iterator() if several else [override.get_value_element_as_str()]
                choices[key] = [f"{key}={value}" for value in values]
            except (ValueError, TypeError, HydraException):  # an interval, or a range with a step of 0
                choices[key] = []
            if not choices[key]:
                raise UserError(f"{override.input_line}: a grid needs single values, such as {key}=0.1,0.5")
        return [list(words) for words in itertools.product(*choices.values())]

    def _run(self, folder: Path, jobs: list[Job]) -> None:
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            # Each job composes its configuration from these overrides.
            self.config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{folder}"')

        def left() -> list[str]:
            return [job.folder for job in jobs if not (folder / job.folder / RESULT).is_file()]

        remedy = f"the same command with {as_word('sweep.resume', folder)} resumes it"
        log.info("Sweep folder: %s (%d of %d jobs to do)", folder, len(left()), len(jobs))
        try:
            self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        except Interrupted as interrupt:
            done = f"jobs done: {len(jobs) - len(left())} of {len(jobs)}"
            raise Interrupted(interrupt.signum, f"{done}; {remedy}") from None
        failed = left()
        if len(failed) < len(jobs):
            from lenet.sweeps.leaderboard import read_runs, show

            log.info("%s", show(folder, read_runs(folder)))
        if failed:
            names = ", ".join(failed)
            raise UserError(f"{len(failed)} of {len(jobs)} jobs failed: {names}; each has its train.log; {remedy}")


def check_resumable(folder: Path, jobs: Sequence[Job]) -> None:
    """Raise a UserError if there is no sweep in a folder, or its jobs were started with other settings."""
    from lenet.training.checkpoint import RUN_FILE, read_run

    if not (folder / SWEEP_CONFIG).is_file():
        raise UserError(f"sweep.resume={folder}: holds no sweep; name a folder such as outputs/multirun/DATE/TIME")
    for job in jobs:
        if (folder / job.folder / RUN_FILE).exists():
            then, now = dict(dotted(read_run(folder / job.folder)["settings"])), dict(dotted(job.settings.plain))
            for key in then | now:
                if then.get(key) != now.get(key) and not isinstance(now.get(key), dict):
                    raise UserError(
                        f"sweep.resume={folder}: its job {job.folder} was started with {key}={then.get(key)}, and this"
                        f" command has {now.get(key)}: give the one that the sweep was started with"
                    )


def refuse_unfit(settings: Settings) -> None:
    """Raise a UserError for what a job of a sweep, or a trial of a search, cannot do."""
    if settings.resume is not None:
        raise UserError(f"resume={settings.resume}: resumes a single run; for a sweep use sweep.resume=FOLDER")
    if settings.device.total > 1:
        raise UserError("device.devices, device.num_nodes: each run of a sweep or a search has one device")
