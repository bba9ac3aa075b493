"""What the benchmarks have in common: how figures are summed up, where they were measured, where they are kept."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import torch


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: in each, another begins."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def spread(values: list[float], form: str) -> str:
    """Median (lowest–highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def ratios(values: list[float], others: list[float]) -> list[float]:
    """Round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def heading(rounds: int) -> list[str]:
    """What was measured how often, and on what."""
    of_rounds = f"{rounds} rounds" if rounds != 1 else "one round"
    return [
        f"Median (lowest–highest) of {of_rounds}; {processor()}, {torch.get_num_threads()} threads",
        f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}:",
    ]


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def save(folder: Path, what: str, report: str, content: dict[str, Any]) -> Path:
    """Keep a report and every figure behind it as JSON; returns the file."""
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"report": report.splitlines(), **content}, indent=2) + "\n")
    return path
