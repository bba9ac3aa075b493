"""A run or a sweep as one page to keep or to send: curves, confusion matrix, mistakes, configuration, comparison.

Everything on it is read from the folder: what the run has measured is in metrics.json, and its curves and pictures are
those of TensorBoard's event file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from plotly import graph_objects as plot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lenet import folders
from lenet.errors import UserError
from lenet.monitor import events
from lenet.reports.page import Page
from lenet.sweeps import sweep
from lenet.sweeps.leaderboard import LOSS, Leaderboard
from lenet.sweeps.sweep import PLAN, RESULT, Sweep

LOSSES = {"train/loss": "training", "val/loss": "validation", "test/loss": "test"}

PICTURES = {
    "test/confusion": "The test images: how often each class was taken for each.",
    "val/confusion": "The validation images: how often each class was taken for each.",
    "val/mistakes": "Validation images that were classified wrongly with most certainty: above each its true class, and"
    " the predicted one with its probability.",
    "val/predictions": "The first validation images: above each its true class, and the predicted one.",
    "network/filters": "The kernels of the first convolution: red is positive, blue negative.",
    "network/act1": "The first validation image after the first convolution and its activation.",
    "network/act2": "And after the second.",
}
SECTIONS = {
    "Confusion": ("test/confusion", "val/confusion"),
    "Mistakes": ("val/mistakes", "val/predictions"),
    "Filters": ("network/filters", "network/act1", "network/act2"),
}
"""Of a run's pictures, those of its last epoch."""


Curve = list[tuple[float, float]]
"""Epochs, and what was measured at their ends; a fraction is a point within an epoch."""


class Run(NamedTuple):
    """What a run has left.

    Attributes:
        folder: of the run.
        metrics: its metrics.json; empty if it has not ended as it should.
        events: of its event file.
    """

    folder: Path
    metrics: Mapping[str, Any]
    events: EventAccumulator

    def curve(self, tag: str) -> Curve:
        """Empty if there is none."""
        ends = [0, *(step for step, _ in self._points("train/loss"))]
        return [(float(np.interp(step, ends, range(len(ends)))), value) for step, value in self._points(tag)]

    def held_out(self) -> Curve:
        """Accuracy on the validation images, or on the test images where there are none."""
        return self.curve("val/acc") or self.curve("test/acc")

    def _points(self, tag: str) -> list[tuple[int, float]]:
        known = tag in self.events.Tags()["scalars"]
        return [(point.step, point.value) for point in self.events.Scalars(tag)] if known else []


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run or a sweep; returns its path.

    Raises:
        UserError: the folder holds neither, or what does not belong there; or the page cannot be written.
    """
    if (folder / PLAN).is_file():
        page = _page_of_sweep(sweep.read(folder, ""))
    elif any(folder.glob("events.out.tfevents.*")):
        folders.refuse_foreign(folder)
        page = _page_of_run(_read(folder))
    else:
        what = "holds neither a run nor a sweep" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder}: {what}; name one such as outputs/DATE/TIME or outputs/multirun/DATE/TIME")
    path = folder / "report.html"
    try:
        page.save(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _read(folder: Path) -> Run:
    done = (folder / RESULT).is_file()
    return Run(folder, sweep.read_result(folder, "the run has to be made again") if done else {}, events.read(folder))


def _page_of_run(run: Run) -> Page:
    page = Page(f"Run {_name(run.folder)}", _summary(run), printed=False)
    _add_run(page, run)
    return page


def _page_of_sweep(whole: Sweep) -> Page:
    board = Leaderboard(whole)
    done = [job for job in whole.jobs if whole.is_done(job)]
    introduction = (
        f"{len(done)} of {len(whole.jobs)} runs are done. The best setting is {board.finished[0].name}, by the mean of"
        f" {board.metric} over its seeds; the test images decided on nothing."
    )
    page = Page(f"Sweep {_name(whole.folder)}", introduction, printed=False)
    page.section("Comparison")
    heads, *rows = board.cells()
    page.table(heads, rows)
    page.chart(_comparison(board), "Each dot is a run, each bar the mean of a setting.")
    # One run after the other: all their pictures at once would take much memory.
    curves = [(" ".join(whole.distinct(job)) or "(all)", _read(whole.folder_of(job)).held_out()) for job in done]
    page.chart(_lines("accuracy on held-out images", curves), "Each run's held-out accuracy, epoch by epoch.")
    best = min(done, key=lambda job: _rank(whole.result(job), board.metric))
    run = _read(whole.folder_of(best))
    page.section("Best")
    page.text(f"The run with the best {board.metric} of all, {' '.join(whole.distinct(best))}: {_summary(run)}")
    _add_run(page, run)
    return page


def _rank(result: Mapping[str, Any], metric: str) -> float:
    """Best first."""
    value = result.get(metric)
    if value is None:
        return math.inf
    return float(value) if metric == LOSS else -float(value)


def _add_run(page: Page, run: Run) -> None:
    page.section("Curves")
    figure = [("training loss", run.curve("train/loss")), ("training accuracy", run.curve("train/acc"))]
    page.chart(
        _lines("", [*figure, ("held-out accuracy", run.held_out())]),
        "The tutorial's figure: loss and accuracy on the training images, accuracy on those held out.",
    )
    losses = [(name, run.curve(tag)) for tag, name in LOSSES.items()]
    page.chart(_lines("loss", losses), "Mean cross entropy of an epoch's images.")
    speed = [("training", run.curve("train/examples_per_sec"))]
    page.chart(_lines("examples per second", speed), "Loading, logs and checkpoints included, validation left out.")
    if run.metrics:
        page.section("Numbers")
        page.table(["measure", "value"], [[key, _value(value)] for key, value in run.metrics.items()])
    saved = set(run.events.Tags()["images"])
    for title, tags in SECTIONS.items():
        shown = [tag for tag in tags if tag in saved]
        if shown:
            page.section(title)
        for tag in shown:
            page.picture(run.events.Images(tag)[-1].encoded_image_string, PICTURES[tag])
    if not saved:
        page.text("There are no pictures: the run was made with dashboard=minimal, or has not finished an epoch.")
    page.section("Configuration")
    page.numbers(_configuration(run))


def _name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])  # DATE/TIME


def _summary(run: Run) -> str:
    if not run.metrics:
        return "This run has not finished; here is what it has left so far."
    of_class = {"train/loss": "training loss", "train/acc": "training accuracy", "val/acc": "validation accuracy"}
    of_class |= {"test/acc": "test accuracy"}
    figures = [f"{name} {run.metrics[tag]:.3f}" for tag, name in of_class.items() if run.metrics.get(tag) is not None]
    epochs = run.metrics["epochs"]
    when = datetime.fromtimestamp((run.folder / RESULT).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return (
        f"{', '.join(figures)}, after {epochs} epoch{'s' * (epochs != 1)} with seed {run.metrics['seed']} on"
        f" {run.metrics['device']}; ended {when}."
    )


def _configuration(run: Run) -> str:
    tag = "config/text_summary"
    if tag not in run.events.Tags()["tensors"]:
        return "unknown"
    text: str = run.events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    return text.removeprefix("```yaml\n").removesuffix("```").rstrip()


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(title: str, curves: Sequence[tuple[str, Curve]]) -> plot.Figure:
    """A line for each curve, over the epochs; those without points are left out."""
    figure = plot.Figure()
    for name, points in curves:
        if points:
            epochs, values = zip(*points, strict=True)
            figure.add_scatter(x=epochs, y=values, name=name, mode="lines+markers")
    figure.update_layout(height=400 + 12 * len(curves))  # with room for the legend
    most = max((len(points) for _, points in curves), default=0)
    return _styled(figure, "epoch", title).update_xaxes(tick0=1, dtick=max(1, most // 10))


def _comparison(board: Leaderboard) -> plot.Figure:
    rows, metric = board.finished[::-1], board.metric
    figure = plot.Figure()
    dots = [(value, row.name) for row in rows for value in row.values[metric]]
    means, names = [row.mean(metric) for row in rows], [row.name for row in rows]
    figure.add_bar(x=means, y=names, orientation="h", name="mean", marker_color="lightsteelblue")
    figure.add_scatter(x=[x for x, _ in dots], y=[y for _, y in dots], mode="markers", name="runs")
    figure.update_layout(height=200 + 34 * len(rows))
    return _styled(figure, metric, "")


def _styled(figure: plot.Figure, x: str, y: str) -> plot.Figure:
    # The legend grows upwards from the plot, however many lines there are.
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}
    return figure.update_layout(template="plotly_white", xaxis_title=x, yaxis_title=y, legend=legend)
