"""The results of a sweep as a table: a row for each setting, over its seeds, best first."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenet.errors import UserError
from lenet.sweeps.sweep import Job, Sweep

METRICS = ("val/acc", "test/acc", "train/loss", "seconds")
"""Of metrics.json, in the table; the first decides on the order. The test images decide on nothing."""

LOSS = "train/loss"


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        setting: the overrides that not all jobs have in common, without the seed.
        jobs: how many jobs it has.
        values: for each of METRICS what its jobs that are done have; None is left out.
    """

    setting: tuple[str, ...]
    jobs: int
    values: dict[str, list[float]]

    @property
    def name(self) -> str:
        """The setting as text."""
        return " ".join(self.setting) or "(all)"

    @property
    def done(self) -> int:
        """How many of its jobs are done."""
        return len(self.values["seconds"])

    def mean(self, metric: str) -> float | None:
        values = self.values[metric]
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation of a sample; None for fewer than two."""
        values = self.values[metric]
        return statistics.stdev(values) if len(values) > 1 else None


class Leaderboard:
    """The table of a sweep, as text, as a file and as a plot.

    Raises:
        UserError: not one of its jobs is done.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.rows = sorted(_rows(sweep), key=_rank)
        if not any(row.done for row in self.rows):
            raise UserError(f"{sweep.folder}: none of its {len(sweep.jobs)} jobs is done; there is nothing to compare")

    @property
    def metric(self) -> str:
        """What decides on the order: val/acc, or train/loss where no images were held out."""
        return METRICS[0] if any(row.values[METRICS[0]] for row in self.rows) else LOSS

    @property
    def finished(self) -> list[Row]:
        """The settings of which a job is done, best first."""
        return [row for row in self.rows if row.done]

    def __str__(self) -> str:
        """A line for each setting, in columns."""
        heads, *lines = self.cells()
        widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
        texts = []
        for setting, *cells in [heads, *lines]:
            numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            texts.append("  ".join([setting.ljust(widths[0]), *numbers]).rstrip())
        return "\n".join(texts)

    def cells(self) -> list[list[str]]:
        """The head of the table, and its rows."""
        rows = [[row.name, _count(row), *(_cell(row, name) for name in METRICS)] for row in self.rows]
        return [["setting", "n", *METRICS], *rows]

    def save(self) -> str:
        """Write leaderboard.csv and leaderboard.png into the sweep's folder; returns a line that says so."""
        table, picture = self.sweep.folder / "leaderboard.csv", self.sweep.folder / "leaderboard.png"
        for path in (table, picture):
            path.unlink(missing_ok=True)  # it may be another name of a file elsewhere
        self._write_table(table)
        self._draw(picture)
        return f"Leaderboard: {table}, {picture}"

    def _write_table(self, path: Path) -> None:
        keys = list(dict.fromkeys(word.partition("=")[0] for row in self.rows for word in row.setting))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*keys, "n", "jobs", *(f"{name} {kind}" for name in METRICS for kind in ("mean", "sd"))])
            for row in self.rows:
                given = dict(word.split("=", 1) for word in row.setting)
                figures = (value for name in METRICS for value in (row.mean(name), row.deviation(name)))
                writer.writerow([*(given.get(key, "") for key in keys), row.done, row.jobs, *figures])

    def _draw(self, path: Path) -> None:
        """A line for each setting: every run a dot, the mean a bar."""
        from matplotlib.figure import Figure  # takes a second to load

        rows, metric = self.finished[::-1], self.metric
        figure = Figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for height, row in enumerate(rows):
            values = row.values[metric]
            axes.plot(values, [height] * len(values), "o", color="C0", alpha=0.6)
            if values:
                axes.plot([statistics.fmean(values)] * 2, [height - 0.3, height + 0.3], color="C1", linewidth=2)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_xlabel(f"{metric}: each run, and the mean")
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(path, dpi=120)


def _rows(sweep: Sweep) -> Iterator[Row]:
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in sweep.jobs:
        setting = tuple(word for word in sweep.distinct(job) if not word.startswith("seed="))
        groups.setdefault(setting, []).append(job)
    for setting, jobs in groups.items():
        results = [sweep.result(job) for job in jobs if sweep.is_done(job)]
        yield Row(setting, len(jobs), {name: _present(results, name) for name in METRICS})


def _present(results: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [result[name] for result in results if result.get(name) is not None]


def _rank(row: Row) -> tuple[bool, float]:
    """Best first; by the training loss, where no images were held out."""
    acc, loss = row.mean(METRICS[0]), row.mean(LOSS)
    if acc is not None:
        return False, -acc
    return loss is None, loss or 0.0


def _count(row: Row) -> str:
    return f"{row.done}" if row.done == row.jobs else f"{row.done} of {row.jobs}"


def _cell(row: Row, metric: str) -> str:
    mean, deviation = row.mean(metric), row.deviation(metric)
    digits = 1 if metric == "seconds" else 3
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
