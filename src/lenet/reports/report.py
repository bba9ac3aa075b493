"""The report of a run or a sweep, from its folder: results, curves, pictures, settings, comparison.

Curves and pictures come from TensorBoard's event files; a run without them gets a report without both.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from plotly import graph_objects as plot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lenet.errors import UserError
from lenet.folders import RESULT
from lenet.monitor.tensorboard import read_events
from lenet.reports.page import Page
from lenet.sweeps.leaderboard import LOSS, cells, deciding_metric, leaderboard, read_runs, runs_in
from lenet.training.checkpoint import RUN_FILE, read_result, read_run

CAPTIONS = {
    "test/confusion": "Confusion matrix of the test images.",
    "val/confusion": "Confusion matrix of the validation images.",
    "val/mistakes": "The misclassified validation images with the highest predicted probability.",
    "val/predictions": "The first validation images: the true class, the predicted class and its probability.",
    "network/filters": "The kernels of the first convolution: red is positive, blue is negative.",
}
"""Of the pictures that a run with dashboard=full logs. The other pictures are feature maps, named by their layer."""

CHARTS = {
    "loss": ("train/loss", "val/loss", "test/loss"),
    "accuracy": ("train/acc", "val/acc", "test/acc"),
    "examples per second": ("train/examples_per_sec",),
}
Curve = list[tuple[float, float]]  # (epoch, value)


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run or a sweep; returns its path.

    Raises a UserError if the folder holds neither or a file in it is damaged, or the page cannot be written.
    """
    name = "/".join(folder.resolve().parts[-2:])  # DATE/TIME
    if (folder / RUN_FILE).is_file():
        page = Page(f"Run {name}", "Results, curves, pictures and settings.")
        _add_run(page, folder)
    elif started := runs_in(folder):
        runs = read_runs(folder)
        page = Page(f"Sweep {name}", f"{len(runs)} of {len(started)} runs are done.")
        _add_sweep(page, runs)
    else:
        raise UserError(f"{folder}: holds neither a run nor a sweep; name a folder such as outputs/DATE/TIME")
    page.save(folder / "report.html")
    return folder / "report.html"


def curve(events: EventAccumulator, tag: str) -> Curve:
    """A scalar over the epochs; empty if it was not logged."""
    if not {tag, "train/loss"} <= set(events.Tags()["scalars"]):
        return []
    ends = [0, *(point.step for point in events.Scalars("train/loss"))]  # of the epochs
    points = events.Scalars(tag)
    epochs = np.interp([point.step for point in points], ends, range(len(ends))).tolist()
    return [(epoch, point.value) for epoch, point in zip(epochs, points, strict=True)]


def held_out_accuracy(events: EventAccumulator) -> Curve:
    """Accuracy on the validation images, or on the test images if there are no validation images."""
    return curve(events, "val/acc") or curve(events, "test/acc")


def _add_sweep(page: Page, runs: pd.DataFrame) -> None:
    metric, table = deciding_metric(runs), leaderboard(runs)
    page.section("Comparison")
    page.text(f"The best setting is {table.index[0]}, by the mean of {metric} over its runs.")
    heads, *rows = cells(table)
    page.table(heads, rows)
    page.chart(_comparison(runs, table, metric), "Each dot is a run, each bar the mean of a setting.")
    curves = {run.run: held_out_accuracy(read_events(run.folder)) for run in runs.itertuples()}
    page.chart(_lines(curves, "accuracy"), "Accuracy of each run on its held-out images.")

    best = runs.loc[runs[metric].idxmin() if metric == LOSS else runs[metric].idxmax()]
    page.section("Best")
    page.text(f"The run with the best {metric}: {best['run']}.")
    _add_run(page, best["folder"])


def _add_run(page: Page, folder: Path) -> None:
    settings, events = read_run(folder)["settings"], read_events(folder)
    page.section("Results")
    if (folder / RESULT).is_file():
        metrics = read_result(folder)
        page.table(["metric", "value"], [[key, _text_of(value)] for key, value in metrics.items()])
    else:
        page.text("This run has not finished; the page shows what it has written so far.")
    page.section("Curves")
    if not curve(events, "train/loss"):
        page.text("There are none: curves need logger=tensorboard and a finished epoch.")
    for unit, tags in CHARTS.items():
        curves = {tag.partition("/")[0]: curve(events, tag) for tag in tags}
        if any(curves.values()):
            page.chart(_lines(curves, unit), f"Each epoch's {unit}.")
    page.section("Pictures")
    pictures = events.Tags()["images"]
    for tag in sorted(pictures, key=[*CAPTIONS, *pictures].index):
        caption = CAPTIONS.get(tag, f"First validation image: output of {tag.removeprefix('network/')}.")
        page.picture(events.Images(tag)[-1].encoded_image_string, caption)
    if not pictures:
        page.text("There are none: pictures need logger=tensorboard, dashboard=full and a finished epoch.")
    page.section("Configuration")
    page.code(OmegaConf.to_yaml(settings))


def _text_of(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(curves: Mapping[str, Curve], unit: str) -> plot.Figure:
    """A line for each curve that has points."""
    figure = plot.Figure(layout={"template": "plotly_white", "xaxis_title": "epoch", "yaxis_title": unit})
    for name, points in curves.items():
        if points:
            epochs, values = zip(*points, strict=True)
            figure.add_scatter(x=epochs, y=values, name=name, mode="lines+markers")
    return figure.update_layout(height=400 + 12 * len(curves))


def _comparison(runs: pd.DataFrame, table: pd.DataFrame, metric: str) -> plot.Figure:
    figure = plot.Figure(layout={"template": "plotly_white", "xaxis_title": metric, "showlegend": False})
    figure.add_bar(x=table[metric, "mean"], y=table.index, orientation="h", marker_color="lightsteelblue")
    figure.add_scatter(x=runs[metric], y=runs["setting"], mode="markers", marker_color="black")
    return figure.update_layout(height=200 + 34 * len(table), yaxis_autorange="reversed")
