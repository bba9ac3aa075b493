"""Measure how fast training is (train), or the layers are (layers).

    python scripts/benchmark.py train --help
    python scripts/benchmark.py layers --help

The report is printed. It is also saved, with all measurements, as a JSON file in outputs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from lenet.benchmarks import layers, train
from lenet.benchmarks.contenders import OURS
from lenet.benchmarks.in_turn import in_turn, report
from lenet.cli import one_line_errors
from lenet.config import PROJECT, compose_settings
from lenet.training.run import check

TRAIN = """How fast is training, compared with other ways to train the same network?

    python scripts/benchmark.py train --rounds 6 --epochs 4
    python scripts/benchmark.py train --rounds 3 --batch-size 64 256 1024 8192

The contenders train in turn, each in a process of its own. In each round another one begins, so that a change of the
machine's speed affects all of them. All train LeNet with SGD on 55,000 images. Measured are images per second of
training. Loading, logging, drawing and saving count; validation does not.

this project     `python train.py` with its logs, dashboards and checkpoints
plain            the fastest loop of plain PyTorch layers we could write: images in memory as floats, fused SGD,
                 numbers read from the device once an epoch

On the CPU also:
plain, NHWC      the same in channels-last memory format
template         Lightning as in most projects: DataLoader(num_workers=2), torchvision's ToTensor, self.log at each step
tutorial         the loop that d2l.ai teaches: DataLoader(num_workers=4), ToTensor, loss and accuracy read at each step

On a GPU (--device gpu; dashboard=minimal, since ten epochs take less time than a picture) also:
this, any model  `python train.py` with a network that no kernel knows: its steps are recorded in a CUDA graph
compiled         plain, with torch.compile(mode="reduce-overhead")
graph            a loop whose whole step is one CUDA graph of PyTorch's kernels
graph, compiled  the same with torch.compile, and TF32
jax              a jitted lax.scan over an epoch, float32, where JAX is installed

The report gives the median over the rounds, and how many times as slow as this project a contender is: the median of
the ratios of each round.
"""

LAYERS = """How fast are our layers, compared with PyTorch's?

    python scripts/benchmark.py layers --rounds 24

Measured are LeNet's convolutions and pooling layers, forward and backward, and a whole training step, with batches of
256 images in channels-last memory format. `builtin` uses PyTorch's layers. The other contenders use ours, with one
algorithm each. The contenders run in turn. Each call is made twice, and the second one is timed.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="train|layers")
    training = add_command(commands, "train", TRAIN, rounds=5, run=benchmark_training)
    training.add_argument("--epochs", type=at_least_one, default=2, help="of each training; default: 2")
    training.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="default: cpu")
    sizes: dict[str, Any] = {"nargs": "+", "default": [256], "metavar": "SIZE", "help": "one or several; default: 256"}
    training.add_argument("--batch-size", type=at_least_one, **sizes)
    add_command(commands, "layers", LAYERS, rounds=15, run=benchmark_layers)
    arguments = parser.parse_args()

    started = time.perf_counter()
    table, measurements = arguments.run(arguments)
    print(table)
    path = save(PROJECT / "outputs" / "benchmarks", arguments.benchmark, table, measurements)
    print(f"All measurements: {path}\nTook {time.perf_counter() - started:.0f} s.")


def add_command(commands: Any, name: str, text: str, rounds: int, run: Callable[..., Any]) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser
    parser = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=form)
    parser.add_argument("--rounds", type=at_least_one, default=rounds, help=f"default: {rounds}")
    parser.set_defaults(run=run)
    return parser


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: should be a whole number of at least 1")
    return int(text)


def benchmark_training(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    overrides = [f"trainer.max_epochs={arguments.epochs}", f"device={arguments.device}"]
    overrides += ["dashboard=minimal"] * (arguments.device == "gpu")
    sizes = sorted(set(arguments.batch_size))
    settings = [compose_settings(*overrides, f"data.batch_size={size}") for size in sizes]
    for each in settings:
        check(each)
    with train.tasks(arguments.device, settings) as tasks:
        numbers = in_turn(tasks, arguments.rounds)
    table = report(numbers, OURS, "images/s", ",.0f", more_is_faster=True)
    return table, {"images_per_sec": numbers, "epochs": arguments.epochs, "device": arguments.device}


def benchmark_layers(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    numbers = in_turn(layers.tasks(), arguments.rounds)
    return report(numbers, layers.BUILTIN, "ms for 256 images", ".2f", more_is_faster=False), {"milliseconds": numbers}


def save(folder: Path, benchmark: str, table: str, measurements: dict[str, Any]) -> Path:
    """Write the report and all measurements as JSON; returns the file."""
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"report": table.splitlines(), **measurements}, indent=2) + "\n")
    return path


if __name__ == "__main__":
    with one_line_errors():
        main()
