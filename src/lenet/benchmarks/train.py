"""The training benchmark: this project and other ways to train the same network, each in a process of its own."""

import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from lenet.benchmarks.contenders import CONTENDERS
from lenet.benchmarks.in_turn import Tasks
from lenet.config import Settings


@contextmanager
def tasks(device: str, settings: Iterable[Settings]) -> Iterator[Tasks]:
    """How many images a second each contender trains, with each of the settings.

    Each contender has a process of its own, so that none affects another; on a GPU, setting one up takes seconds.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in CONTENDERS[device]}
        yield {
            f"batches of {each.data.batch_size}": {
                name: partial(_in_process, process, device, name, each) for name, process in processes.items()
            }
            for each in settings
        }


def _in_process(process: Executor, device: str, name: str, settings: Settings) -> float:
    return process.submit(measure, device, name, settings).result()


def measure(device: str, name: str, settings: Settings) -> float:
    """Images per second of one contender, which prints nothing."""
    # In a spawned process, a DataLoader would spawn its workers too, and each would import torch again.
    multiprocessing.set_start_method(None, force=True)  # None: the platform's default, as in a user's program
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return CONTENDERS[device][name](settings, Path(folder))
