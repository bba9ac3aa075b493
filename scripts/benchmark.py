"""Compare this project with others, or its parts with each other, in turn on this machine.

    python scripts/benchmark.py train     training, against Lightning as most templates use it (lenet.benchmarks.train)
    python scripts/benchmark.py layers    our layers, against PyTorch's (lenet.benchmarks.layers)

The report goes to the terminal; it and every figure behind it go to outputs/benchmarks/.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lenet.benchmarks import layers, train
from lenet.benchmarks.report import save
from lenet.cli import compose_settings
from lenet.errors import UserError
from lenet.training import check

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "layers"], help="what to compare")
    parser.add_argument(
        "--rounds", type=int, help="how often each contender takes its turn; 5 for train, 15 for layers"
    )
    parser.add_argument("--epochs", type=int, help="in each round of train; 2 by default")
    arguments = parser.parse_args()
    if arguments.what == "layers" and arguments.epochs is not None:
        parser.error("--epochs is for train")
    arguments.epochs = 2 if arguments.epochs is None else arguments.epochs
    rounds = arguments.rounds if arguments.rounds is not None else {"train": 5, "layers": 15}[arguments.what]
    if min(rounds, arguments.epochs) < 1:
        parser.error("--rounds and --epochs must be at least 1")

    started = time.perf_counter()
    if arguments.what == "train":
        try:
            check(compose_settings(PROJECT))
        except UserError as error:
            sys.exit(f"error: {error}")
        examples_per_sec = train.compare(PROJECT, rounds, arguments.epochs)
        report, content = train.report(examples_per_sec), {"examples_per_sec": examples_per_sec}
        content["epochs"] = arguments.epochs
    else:
        figures = layers.compare(rounds)
        report, content = layers.report(figures), figures.as_plain()
    print(report)
    print(f"Every figure: {save(PROJECT / 'outputs' / 'benchmarks', arguments.what, report, content)}")
    print(f"Took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
