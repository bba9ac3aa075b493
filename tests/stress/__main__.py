"""Harm runs at random, resume them, and compare with undisturbed ones: `python -m tests.stress --rounds 100`."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from lenet.cli import at_least_one, one_line_errors
from tests.stress.chaos import DEVICES, chaos

PROJECT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=100, help="how many runs to harm (default: 100)")
    parser.add_argument("--seed", type=int, help="of all that is drawn (default: a new one, which is printed)")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--data", type=Path, default=PROJECT / "data", help="Fashion-MNIST's folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what the runs train on (default: cpu)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(2**32)
    with one_line_errors():
        folder = Path(tempfile.mkdtemp(prefix="lenet-chaos-"))
        print(f"seed {seed}, {arguments.rounds} rounds in {folder}", flush=True)
        if not chaos(
            PROJECT, folder, arguments.rounds, seed, arguments.jobs, arguments.data.absolute(), arguments.device
        ):
            sys.exit(1)


if __name__ == "__main__":
    main()
