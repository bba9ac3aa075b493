"""TensorBoard and reports in a real browser: each tab shows the runs, with their numbers."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import FrameLocator, Page, Response, expect, sync_playwright
from tensorboard.program import TensorBoard

from lenet.models import LeNet, stages
from lenet.monitor.dashboard import Dashboard
from lenet.monitor.tensorboard import FIGURE_TAGS, FINAL_TAGS, RunLogger
from lenet.monitor.throughput import Throughput
from lenet.reports.report import write_report
from lenet.sweeps.leaderboard import read_runs
from tests.conftest import Finished, TrainCommand
from tests.training.small import fit, scalars

pytestmark = pytest.mark.long

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The projector needs WebGL, which a machine without a GPU has in software.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PATIENCE = 30_000
"""Milliseconds to wait for something on a page; the machine may be busy."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One for all tests, as TensorBoard takes seconds to load. It loads from this machine alone; no script may fail."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None and "CI" not in os.environ:
        pytest.skip(f"there is none of {', '.join(BROWSERS)} on this machine")
    here = ("http://127.0.0.1:", "file:", "data:", "blob:")
    mistakes: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(here) else route.abort())
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        yield page
        browser.close()
    assert mistakes == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two short runs, 0 and 1."""
    folder = tmp_path_factory.mktemp("runs")
    for number, optimizer in enumerate(("Adam", "SGD")):
        (folder / str(number)).mkdir()
        logger = RunLogger(folder / str(number))
        logger.describe("seed: 0\n", stages(LeNet()))
        module = fit([Throughput(), Dashboard()], logger, test=True)
        settings = {"optimizer._target_": f"torch.optim.{optimizer}", "optimizer.lr": 0.1}
        measured = {tag: value for tag, value in module.metrics.items() if tag != "train/acc"}
        logger.log_comparison(settings, measured, step=8)
        logger.flush()
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> str:
    """Of a TensorBoard that shows the two runs."""
    server = TensorBoard()
    server.configure(logdir=str(runs), host="127.0.0.1", port=0)
    return str(server.launch())


def expect_shown(page: Page | FrameLocator, *texts: str) -> None:
    """Wait until they are visible; tabs that were open before are hidden, and have texts as well."""
    for text in texts:
        expect(page.get_by_text(text).locator("visible=true").first).to_be_visible(timeout=PATIENCE)


def show(page: Page, address: str, *texts: str) -> None:
    """Go to a tab of TensorBoard, and leave it a second, in which its scripts might fail, after it shows the texts."""
    page.goto(address)
    expect_shown(page, *texts)
    page.wait_for_timeout(1000)


def test_scalars(page: Page, address: str, runs: Path) -> None:
    def holds_the_tag(answer: Response) -> bool:
        return "scalars_multirun" in answer.url and "\r\nval/acc\r\n" in (answer.request.post_data or "")

    with page.expect_response(holds_the_tag) as answer:
        show(page, f"{address}#scalars&tagFilter=val%2Facc", "tag: val/acc")
    for run in ("0", "1"):
        drawn = [(step, value) for _, step, value in answer.value.json()[run]]
        assert drawn == scalars(runs / run, "val/acc")


def test_the_tutorials_figure(page: Page, address: str, runs: Path) -> None:
    answers: dict[str, dict[str, Any]] = {}

    def keep(answer: Response) -> None:
        if "custom_scalars/scalars?" in answer.url:
            answers[parse_qs(urlsplit(answer.url).query)["run"][0]] = answer.json()["tag_to_events"]

    page.on("response", keep)
    show(page, f"{address}#custom_scalars", "loss and accuracy by epoch", "Matches (6)")  # three curves of two runs
    for run in ("0", "1"):
        drawn = {tag: [(step, value) for _, step, value in points] for tag, points in answers[run].items()}
        assert drawn == {tag: scalars(runs / run, tag) for tag in FIGURE_TAGS}


def test_hyperparameters(page: Page, address: str, runs: Path) -> None:
    accuracy = scalars(runs / "0", "final/held_out_acc")[0][1]
    page.goto(f"{address}#hparams")
    # Lightning alone would have shown -1 for each run here.
    cell = page.locator("vaadin-grid-cell-content").filter(has_text=f"{accuracy:.5g}")
    expect(cell.first).to_be_visible(timeout=PATIENCE)
    table = page.evaluate(
        """async () => (await fetch('data/plugin/hparams/session_groups', {method: 'POST', body: JSON.stringify(
            {experimentName: '', allowedStatuses: ['STATUS_SUCCESS'], colParams: [], startIndex: 0, sliceSize: 9}
        )})).json()"""
    )
    rows = {group["name"]: group for group in table["sessionGroups"]}
    assert [rows[run]["hparams"]["optimizer"] for run in ("0", "1")] == ["Adam", "SGD"]
    for run, row in rows.items():
        values = {metric["name"]["tag"]: float(metric["value"]) for metric in row["metricValues"]}
        expected = {tag: scalars(runs / run, tag)[0][1] for tag in FINAL_TAGS}
        assert values == pytest.approx(expected, nan_ok=True)


def test_images(page: Page, address: str) -> None:
    show(page, f"{address}#images", "tag: network/conv1", "tag: network/filters")
    loaded = page.locator("tf-image-loader img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(loaded) >= 4
    assert all(width > 100 for width in loaded)


@pytest.mark.parametrize(
    ("tab", "text"),
    [
        ("pr_curves", "tag: val/class 0"),
        ("histograms", "weights/conv1.weight"),
        ("distributions", "gradients/conv1.weight"),
        ("text", "config/text_summary"),
        ("graphs", "Main Graph"),
    ],
)
def test_other_tabs(page: Page, address: str, tab: str, text: str) -> None:
    show(page, f"{address}#{tab}", text)
    if tab == "graphs":
        expect(page.locator("svg text").filter(has_text="conv2").first).to_be_attached(timeout=PATIENCE)


def test_the_projector(page: Page, address: str) -> None:
    page.goto(f"{address}#projector")
    inside = page.frame_locator("iframe").frame_locator("iframe")
    expect_shown(inside, "Points: 24", "Dimension: 84")
    page.wait_for_timeout(2000)


CHARTS = "[...document.querySelectorAll('.js-plotly-plot')].map(each => each.data.map(line => [line.name, line.y]))"


def test_the_report_of_a_run(page: Page, finished_run: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")  # other tests look at what the run itself has left
    page.goto(write_report(folder).as_uri())
    losses, accuracies, speed = page.evaluate(CHARTS)
    for chart, measure in ((losses, "loss"), (accuracies, "acc"), (speed, "examples_per_sec")):
        for stage, values in chart:
            assert values == pytest.approx([value for _, value in finished_run.scalars(f"{stage}/{measure}")])
    assert [stage for stage, _ in losses] == ["train", "val", "test"]
    widths = page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(widths) == 7
    assert all(width > 100 for width in widths)
    expect(page.get_by_role("cell", name=f"{finished_run.metrics['test/acc']:.6g}").first).to_be_visible()
    expect(page.get_by_text("_target_: torch.optim.Adam")).to_be_visible()


def test_the_report_of_a_sweep(page: Page, train_command: TrainCommand, tmp_path: Path) -> None:
    small = ("data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100")
    run = train_command("-m", *small, "trainer.max_epochs=2", "optimizer=adam,sgd", f"hydra.sweep.dir={tmp_path}")
    assert run.status == 0, run.stderr
    page.goto(write_report(tmp_path).as_uri())
    _, curves, *_ = page.evaluate(CHARTS)
    drawn = dict(curves)
    for done in read_runs(tmp_path).itertuples():
        assert drawn[done.run] == pytest.approx([value for _, value in scalars(done.folder, "val/acc")])
    assert sorted(drawn) == ["optimizer=adam", "optimizer=sgd"]
    assert page.locator("table").first.locator("tr").count() == 3
