"""The launcher for sweeps on this machine: each job in a process of its own, `launcher.jobs` at a time.

A server process loads torch once, and each job is a fork of it. So a job starts in a moment, on a GPU too, and its
seeds, warnings and memory are its own.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from lenet.errors import UserError
from lenet.files import read_json
from lenet.folders import RESULT
from lenet.processes import cores

log = logging.getLogger(__name__)


class ProcessLauncher(Launcher):
    """Runs each job in a process of its own, `jobs` at a time; they share the processor's cores."""

    config: DictConfig

    def __init__(self, jobs: int) -> None:
        self.jobs, self.processes = jobs, multiprocessing.get_context("forkserver")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if not isinstance(self.jobs, int) or self.jobs < 1:
            raise UserError(f"launcher.jobs={self.jobs}: should be a whole number of at least 1")
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        if self.jobs > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.jobs)))
        # IPython's %run leaves this out, and multiprocessing reads it.
        vars(sys.modules["__main__"]).setdefault("__spec__", None)
        # The server loads torch while this process checks the jobs.
        self.processes.set_forkserver_preload(["torch", "lenet.training.run"])
        forkserver.ensure_running()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        loader, numbered = self.hydra_context.config_loader, enumerate(job_overrides, initial_job_idx)
        configs = [compose_job(loader, self.config, words, number) for number, words in numbered]
        with ThreadPoolExecutor(self.jobs) as threads:  # each waits for a process
            try:
                return list(threads.map(self._run, configs))
            except BaseException:  # a signal, mostly
                for process in multiprocessing.active_children():
                    process.terminate()
                raise

    def _run(self, config: DictConfig) -> JobReturn:
        number, overrides = config.hydra.job.num, list(config.hydra.overrides.task)
        folder = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))
        if not (folder / RESULT).is_file():
            log.info("Job %d: %s", number, " ".join(overrides))
            import cloudpickle  # type: ignore[import-untyped]  # here: Hydra loads this file at each start

            payload = cloudpickle.dumps((self.task_function, config, self.hydra_context, Singleton.get_state()))
            process = self.processes.Process(target=run_here, args=(payload, self.jobs > 1))
            process.start()
            process.join()
            if not (folder / RESULT).is_file():
                log.error("Job %d failed (exit status %s): see its train.log", number, process.exitcode)
                error = UserError(f"job {number} failed")
                return JobReturn(overrides, config, status=JobStatus.FAILED, _return_value=error)
            log.info("Job %d is done", number)
        best = read_json(folder / RESULT)["best_val_acc"]
        return JobReturn(overrides, config, status=JobStatus.COMPLETED, _return_value=best)


def compose_job(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """The configuration of job `number` of a sweep."""
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = str(number), number
    return job


def run_here(payload: bytes, is_quiet: bool) -> None:
    """Run a job in this process, which is its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends SIGTERM
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    if is_quiet:  # the lines of several jobs would be mixed; each has its train.log
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    task_function, config, hydra_context, singletons = pickle.loads(payload)  # noqa: S301 - from this program itself
    Singleton.set_state(singletons)
    done = run_job(task_function, config, "hydra.sweep.dir", "hydra.sweep.subdir", hydra_context)
    sys.exit(0 if done.status == JobStatus.COMPLETED else 1)


def _end_with_sweep() -> None:
    """When the sweep is gone, even if it was killed, let this process save and end as at SIGTERM, within a minute."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)
