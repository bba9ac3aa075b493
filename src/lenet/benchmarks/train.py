"""The training benchmark: this project and other ways to train the same network, in turn."""

import logging
import multiprocessing
import platform
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from lenet.benchmarks.contenders import CONTENDERS, OURS
from lenet.config import Settings

Results = dict[int, dict[str, list[float]]]
"""Images per second, for each batch size, contender and round."""


def order_of_round(names: Sequence[str], number: int) -> list[str]:
    """All names; each round starts with another one, so that none always profits from its place."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def spread(values: Sequence[float], form: str) -> str:
    """Median (lowest–highest), each formatted with `form`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio of each round: a machine that is slow for a while then slows both numbers."""
    return [value / other for value, other in zip(values, others, strict=True)]


def machine() -> str:
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{platform.machine()} ({capability}), {threads} threads, torch {torch.__version__}"


def compare(settings: dict[int, Settings], rounds: int) -> Results:
    """Let all contenders train with the settings of each batch size, in each round."""
    results: Results = {size: {name: [] for name in CONTENDERS} for size in settings}
    for number in range(rounds):
        for size, speeds in results.items():
            for name in order_of_round(list(CONTENDERS), number):
                # In a process of its own: no contender may affect another.
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    speed = process.submit(measure, name, settings[size]).result()
                speeds[name].append(speed)
                print(f"round {number + 1} of {rounds}, batches of {size}: {name} {speed:,.0f} images/s", flush=True)
    return results


def measure(name: str, settings: Settings) -> float:
    """Images per second of one contender, which prints nothing."""
    # In a spawned process, a DataLoader would spawn its workers too, and each would import torch again.
    multiprocessing.set_start_method(None, force=True)  # None: the platform's default, as in a user's program
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return CONTENDERS[name](settings, Path(folder))


def report(results: Results) -> str:
    """A table for each batch size: images per second, and this project's ratio to each contender."""
    rounds = len(next(iter(results.values()))[OURS])
    lines = [f"Median (lowest–highest) of {rounds} rounds on {machine()}"]
    for batch_size, speeds in results.items():
        lines.append(f"batches of {batch_size:<8}{'images/s':<26}{OURS} ÷ this contender")
        for name, values in speeds.items():
            ratio = "" if name == OURS else spread(ratios(speeds[OURS], values), ".3f")
            lines.append(f"  {name:<17}{spread(values, ',.0f'):<26}{ratio}".rstrip())
    return "\n".join(lines)
