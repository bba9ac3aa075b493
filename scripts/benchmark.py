"""Compare this project with others, or its parts with each other, in turn on this machine.

    python scripts/benchmark.py train     training, against other ways to do it (lenet.benchmarks.train)
    python scripts/benchmark.py layers    our layers, against PyTorch's (lenet.benchmarks.layers)

The report goes to the terminal; it and every figure behind it go to outputs/benchmarks/, of train a plot too.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lenet.benchmarks import layers, train
from lenet.benchmarks.contenders import Task
from lenet.benchmarks.report import save
from lenet.cli import at_least_one
from lenet.errors import UserError
from lenet.training.run import check

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True, metavar="train|layers")
    training, of_layers = (
        commands.add_parser(
            name,
            help=what.__doc__.splitlines()[0] if what.__doc__ else None,
            description=what.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, what in (("train", train), ("layers", layers))
    )
    training.add_argument(
        "--rounds", type=at_least_one, default=5, help="how often each contender takes its turn; 5 by default"
    )
    training.add_argument("--epochs", type=at_least_one, default=2, help="of each turn; 2 by default")
    training.add_argument("--device", choices=["cpu", "gpu", "auto"], default="cpu", help="cpu by default")
    training.add_argument(
        "--batch-size",
        type=at_least_one,
        nargs="+",
        default=[256],
        metavar="SIZE",
        help="one or several; 256 by default",
    )
    of_layers.add_argument("--rounds", type=at_least_one, default=15, help="15 by default")
    arguments = parser.parse_args()

    started = time.perf_counter()
    folder, plot = PROJECT / "outputs" / "benchmarks", None
    if arguments.what == "train":
        sizes = sorted(set(arguments.batch_size))
        tasks = [Task(PROJECT, arguments.epochs, size, arguments.device) for size in sizes]
        try:
            for task in tasks:
                check(task.settings)
        except UserError as error:
            sys.exit(f"error: {error}".replace("device=", "--device "))
        examples_per_sec = train.compare(tasks, arguments.rounds)
        report, plot = train.report(examples_per_sec), train.plot(examples_per_sec)
        content = {"examples_per_sec": examples_per_sec, "epochs": arguments.epochs, "device": arguments.device}
    else:
        figures = layers.compare(arguments.rounds)
        report, content = layers.report(figures), figures.as_plain()
    print(report)
    path = save(folder, arguments.what, report, content)
    print(f"Every figure: {path}")
    if plot is not None:
        plot.savefig(path.with_suffix(".png"), dpi=120)
        print(f"Plot: {path.with_suffix('.png')}")
    print(f"Took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
