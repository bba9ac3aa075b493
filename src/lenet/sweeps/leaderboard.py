"""The results of a sweep as a table: a row for each setting, over its seeds, best first."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenet.errors import UserError
from lenet.sweeps.sweep import Job, Sweep, read_result

METRICS = ("val/acc", "test/acc", "train/loss", "seconds")
"""The columns. The first decides on the order; the test images decide on nothing."""

LOSS = "train/loss"


@dataclass(frozen=True)
class Row:
    """One setting."""

    setting: tuple[str, ...]  # overrides
    jobs: int
    results: list[dict[str, Any]]  # the metrics.json of the jobs that are done

    @property
    def name(self) -> str:
        return " ".join(self.setting) or "(all)"

    @property
    def values(self) -> dict[str, list[float]]:
        """For each of METRICS what the jobs have; empty where nothing was measured."""
        return {name: [r[name] for r in self.results if r.get(name) is not None] for name in METRICS}

    def mean(self, metric: str) -> float | None:
        values = self.values[metric]
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation of a sample; None for fewer than two."""
        values = self.values[metric]
        return statistics.stdev(values) if len(values) > 1 else None

    def cell(self, metric: str) -> str:
        """Mean ± deviation as text."""
        form = ".1f" if metric == "seconds" else ".3f"
        numbers = (self.mean(metric), self.deviation(metric))
        return " ± ".join(f"{number:{form}}" for number in numbers if number is not None) or "–"


class Leaderboard:
    """The table of a sweep, as text, as a file and as a plot; a UserError if not one job is done.

    Its `metric` decides on the order of its `rows`: val/acc, or train/loss where no images were held out.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.folder = sweep.folder
        settings: dict[tuple[str, ...], list[Job]] = {}
        for job in sweep.jobs:
            setting = tuple(word for word in sweep.distinct(job) if not word.startswith("seed="))
            settings.setdefault(setting, []).append(job)
        self.rows = []
        for setting, jobs in settings.items():
            folders = [sweep.folder_of(job) for job in jobs if sweep.is_done(job)]
            results = [read_result(each) for each in folders]
            self.rows.append(Row(setting, len(jobs), results))
        self.metric = METRICS[0] if any(row.values[METRICS[0]] for row in self.rows) else LOSS
        self.rows.sort(key=self._rank)
        self.finished = [row for row in self.rows if row.results]
        if not self.finished:
            raise UserError(f"{sweep.folder}: none of its {len(sweep.jobs)} jobs is done; there is nothing to compare")

    def _rank(self, row: Row) -> float:
        mean = row.mean(self.metric)
        return math.inf if mean is None else mean if self.metric == LOSS else -mean

    def cells(self) -> list[list[str]]:
        """The head of the table, and its rows."""
        table = [["setting", "n", *METRICS]]
        for row in self.rows:
            done = len(row.results)
            count = str(done) if done == row.jobs else f"{done} of {row.jobs}"
            table.append([row.name, count, *map(row.cell, METRICS)])
        return table

    def __str__(self) -> str:
        """A line for each setting, in columns."""
        cells = self.cells()
        first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for name, *numbers in cells:
            aligned = [number.rjust(width) for number, width in zip(numbers, others, strict=True)]
            lines.append("  ".join([name.ljust(first), *aligned]))
        return "\n".join(lines)

    def save(self) -> str:
        """Write leaderboard.csv and leaderboard.png into the sweep's folder; returns a line that says so."""
        table, picture = self.folder / "leaderboard.csv", self.folder / "leaderboard.png"
        keys = list(dict.fromkeys(word.partition("=")[0] for row in self.rows for word in row.setting))
        figures = [f"{name} {kind}" for name in METRICS for kind in ("mean", "sd")]
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*keys, "n", "jobs", *figures])
            writer.writeheader()
            for row in self.rows:
                cells: dict[str, Any] = {"n": len(row.results), "jobs": row.jobs}
                cells |= dict(word.split("=", 1) for word in row.setting)
                for name in METRICS:
                    cells |= {f"{name} mean": row.mean(name), f"{name} sd": row.deviation(name)}
                writer.writerow(cells)
        self._draw(picture)
        return f"Leaderboard: {table}, {picture}"

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure  # takes a second to load

        rows = self.finished[::-1]
        figure = Figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for height, row in enumerate(rows):
            values = row.values[self.metric]
            axes.plot(values, [height] * len(values), "o", alpha=0.6, color="C0")
            axes.plot(statistics.fmean(values or [math.nan]), height, "|", markersize=20, color="C1")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_xlabel(f"{self.metric}: each run, and the mean")
        figure.savefig(path, dpi=120)
