"""The training benchmark: this project and other ways to train the same network, each in a process of its own."""

import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from lenet.benchmarks.contenders import CONTENDERS
from lenet.benchmarks.in_turn import Tasks
from lenet.config import Settings


def tasks(settings: Iterable[Settings]) -> Tasks:
    """How many images a second each contender trains, with each of the settings."""
    return {
        f"batches of {each.data.batch_size}": {name: partial(in_new_process, name, each) for name in CONTENDERS}
        for each in settings
    }


def in_new_process(name: str, settings: Settings) -> float:
    """Images per second of one contender in a new process: no contender may affect another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, name, settings).result()


def measure(name: str, settings: Settings) -> float:
    """Images per second of one contender, which prints nothing."""
    # In a spawned process, a DataLoader would spawn its workers too, and each would import torch again.
    multiprocessing.set_start_method(None, force=True)  # None: the platform's default, as in a user's program
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return CONTENDERS[name](settings, Path(folder))
