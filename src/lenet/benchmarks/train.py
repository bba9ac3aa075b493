"""How fast is training? The contenders take turns, round after round, so that a machine whose speed drifts is fair.

    python scripts/benchmark.py train --rounds 5 --epochs 4
    python scripts/benchmark.py train --rounds 3 --batch-size 64 256 1024 8192

A contender's figure is images trained ÷ wall time of training: loading, logging and checkpoints included, validation
excluded. Reported are medians over the rounds, and the ratio round by round. All train the same LeNet with SGD on the
images that are not held out, each time in a process of its own.

this project     what `python train.py` does, with its logs and checkpoints.
own step         this project's training step, batches and optimizer in a plain loop: what the trainer costs.
plain            the best plain PyTorch loop we can write: floats in memory, fused SGD, nothing read from the device
                 before an epoch ends, freed memory kept and old objects set aside as by this project.
plain, NHWC      the same with channels-last images and weights.
template         Lightning as most projects use it: DataLoader(num_workers=2), torchvision's ToTensor picture by
                 picture, self.log on every step, the default progress bar (drawn into the null device).
tutorial         the loop that d2l.ai teaches: DataLoader with four workers, ToTensor, loss and accuracy read at
                 every step.

In each round the machine also multiplies matrices, 2048×2048 in float32, twenty times; the best counts. LeNet takes
2.264 million floating-point operations for an image, forward and backward: so the product's rate implies the most
images per second that one could hope for. A first round, not counted, brings files into memory: one round of one epoch
and one batch size so takes about five minutes on two cores, six of four epochs half an hour.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import statistics
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from lenet.benchmarks.contenders import CONTENDERS, OURS, PEAK, Task, operations_per_image
from lenet.benchmarks.report import heading, in_turn, ratios, spread

Figures = dict[int, dict[str, list[float]]]
"""Examples per second: by batch size and contender, one in each round."""


def measure(name: str, task: Task) -> float:
    """Let one contender train in a process of its own, so that none profits or suffers from what another set."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_train_quietly, name, task).result()


def _train_quietly(name: str, task: Task) -> float:
    # A spawned process would start its DataLoader's workers by spawning as well: importing torch anew in each, at
    # every epoch, which no user's run does. None brings back the platform's default.
    multiprocessing.set_start_method(None, force=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")  # on how to configure the template better
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        return CONTENDERS[name](task, Path(folder))


def compare(tasks: list[Task], rounds: int) -> Figures:
    """Let all contenders train with each batch size, `rounds` times; a round that is not counted comes first."""
    figures: Figures = {task.batch_size: {name: [] for name in CONTENDERS} for task in tasks}
    for number in range(rounds + 1):
        # The warm-up brings files into memory; that takes one batch size.
        for task in tasks if number else tasks[:1]:
            for name in in_turn(list(CONTENDERS), number):
                figure = measure(name, task)
                when = f"round {number} of {rounds}" if number else "warm-up"
                print(f"{when}, batches of {task.batch_size}: {name} {figure:,.0f}/s", flush=True)
                if number:
                    figures[task.batch_size][name].append(figure)
    return figures


def report(figures: Figures) -> str:
    """The figures as text: each contender's, and this project's in relation to it."""
    rounds = len(next(iter(figures.values()))[OURS])
    rows = heading(rounds)
    for batch_size, contenders in figures.items():
        peak = statistics.median(contenders[PEAK]) * operations_per_image() / 1e9
        share = spread(ratios(contenders[OURS], contenders[PEAK]), ".1%")
        rows += [
            f"batches of {batch_size:<8}{'examples/s':<26}{OURS} ÷ theirs",
            *(
                f"  {name:<17}{spread(values, ',.0f'):<26}"
                + ("" if name == OURS else spread(ratios(contenders[OURS], values), ".2f"))
                for name, values in contenders.items()
                if name != PEAK
            ),
            f"  {PEAK}: {peak:,.0f} GFLOP/s, which implies {spread(contenders[PEAK], ',.0f')} examples/s;",
            f"  {OURS} reaches {share} of it",
        ]
    return "\n".join(row.rstrip() for row in rows)


def _around(values: list[float]) -> tuple[float, float]:
    return min(values) / 1.3, max(values) * 1.3


def plot(figures: Figures) -> Figure:
    """One batch size: a bar for each contender, a dot for each round. Several: a line over the batch size."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title("\n".join(heading(len(next(iter(figures.values()))[OURS]))).rstrip(":"), fontsize="small")
    names = [name for name in CONTENDERS if name != PEAK]
    if len(figures) == 1:
        (contenders,) = figures.values()
        axes.barh(names[::-1], [statistics.median(contenders[name]) for name in names[::-1]], color="tab:blue")
        for name in names:
            axes.plot(contenders[name], [name] * len(contenders[name]), "k.", markersize=4)
            median = f"  {statistics.median(contenders[name]):,.0f}"
            axes.annotate(median, (max(contenders[name]), name), va="center")
        axes.axvline(statistics.median(contenders[PEAK]), color="tab:red", linestyle="--")
        axes.annotate(
            "limit by matrix products ", (statistics.median(contenders[PEAK]), 0), color="tab:red", ha="right"
        )
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(f"examples/s, batches of {next(iter(figures))}; bars are medians, dots the rounds")
    else:
        for name in (*names, PEAK):
            medians = [statistics.median(contenders[name]) for contenders in figures.values()]
            axes.plot(list(figures), medians, "r--" if name == PEAK else "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="examples/s")
        axes.set_xticks(list(figures), labels=[str(size) for size in figures], minor=False)
        axes.set_yticks([1000 * number for number in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)])
        axes.set_ylim(
            *_around([value for contenders in figures.values() for values in contenders.values() for value in values])
        )
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        figure.legend(loc="outside right center")
    return figure
