"""The sweeper for `python train.py -m`: all combinations of the values given, each a job."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from lenet import folders
from lenet.config import Settings, read_settings
from lenet.errors import UserError
from lenet.signals import Interrupted
from lenet.sweeps import sweep
from lenet.sweeps.launcher import compose_job
from lenet.sweeps.sweep import Job, Sweep

log = logging.getLogger(__name__)


class GridSweeper(Sweeper):
    """Runs all combinations of the values in `params`, as `{"optimizer.lr": "0.1,0.5"}`, and on the command line."""

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
        if resume := self.config.sweep.resume:
            whole = sweep.read(Path(resume).expanduser().absolute(), "sweep.resume=")
            if whole.jobs != jobs:
                words = dict.fromkeys(word for job in whole.jobs for word in job.overrides)
                raise UserError(
                    f"sweep.resume={whole.folder}: has {len(whole.jobs)} jobs, of {' '.join(words)}; this command has"
                    " others: give the one that the sweep was started with"
                )
        else:
            whole = Sweep(folders.claim(self.config, "hydra.sweep.dir"), jobs)
            whole.write()
        with folders.alone(whole.folder, "sweep.resume"):
            self._run(whole)

    def _plan(self, arguments: Sequence[str]) -> list[Job]:
        """The jobs, checked."""
        jobs: dict[str, Job] = {}
        checked: list[Settings] = []
        for number, words in enumerate(self._combinations(arguments)):
            config = compose_job(self.loader, self.config, words, number)
            checked.append(read_settings(config))
            refuse_unfit(checked[-1])
            folder = str(config.hydra.sweep.subdir)
            if folder in jobs:
                raise UserError(f"hydra.sweep.subdir={folder}: two jobs would have this folder; each needs its own")
            jobs[folder] = Job(number, words, folder)
        from lenet.training.run import check  # loads torch, and the mistakes above need not wait for that

        check(checked[0])
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

    def _run(self, whole: Sweep) -> None:
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(whole.folder)
            # Each job composes its configuration from these overrides.
            self.config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{whole.folder}"')
        total, remedy = len(whole.jobs), f"the same command with sweep.resume={whole.folder} goes on"
        log.info("Sweep folder: %s (%d of %d jobs to do)", whole.folder, len(whole.left()), total)
        try:
            self.launcher.launch([job.overrides for job in whole.jobs], initial_job_idx=0)
        except Interrupted as interrupt:
            done = f"jobs done: {total - len(whole.left())} of {total}"
            raise Interrupted(interrupt.signum, f"{done}; {remedy}") from None
        failed = whole.left()
        if len(failed) < total:
            from lenet.sweeps.leaderboard import Leaderboard

            board = Leaderboard(whole)
            log.info("%s\n%s", board, board.save())
        if failed:
            names = ", ".join(" ".join([str(job.number), *whole.distinct(job)]) for job in failed)
            raise UserError(f"{len(failed)} of {total} jobs failed: {names}; each has its train.log; {remedy}")


def refuse_unfit(settings: Settings) -> None:
    """Raise a UserError for what a job of a sweep, or a trial of a search, cannot do."""
    if settings.resume is not None:
        raise UserError(f"resume={settings.resume}: resumes a single run; for a sweep use sweep.resume=FOLDER")
    if settings.device.total > 1:
        raise UserError("device.devices, device.num_nodes: each run of a sweep or a search has one device")
