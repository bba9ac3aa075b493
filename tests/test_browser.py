"""TensorBoard and a report in a real browser: that each tab shows the runs, with their numbers.

Screenshots of all of them are left in outputs/screenshots.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, Response, expect, sync_playwright

from lenet.data.synthetic import CLASSES
from lenet.monitor import events
from lenet.monitor.tensorboard import FIGURE_TAGS, FINAL_TAGS
from lenet.reports.report import write_report
from lenet.sweeps.sweep import read
from tests.commands import PROJECT
from tests.conftest import Finished, TrainCommand

pytestmark = pytest.mark.long

SCREENSHOTS = PROJECT / "outputs" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The projector needs WebGL, which a machine without a GPU has in software.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SWEEP = ("data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100", "trainer.max_epochs=2")
PATIENCE = 30_000
"""Milliseconds to wait for what a page is to show; the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None and "CI" not in os.environ:
        pytest.skip(f"there is none of {', '.join(BROWSERS)} on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(train_command: TrainCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "multirun"
    words = ("model=lenet_relu", "optimizer=adam,sgd", "optimizer.lr=0.002")
    run = train_command("-m", *SWEEP, *words, f"hydra.sweep.dir={folder}")
    assert run.status == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    """Of a TensorBoard that shows the sweep's two runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--logdir", str(sweep), "--host", "127.0.0.1", "--port", str(port)]
    # Of the user's own settings none is to matter.
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *where], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}").close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened(browser: Browser) -> Iterator[Page]:
    """A page that loads from this machine alone, and is to have no error."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(PATIENCE)
    page.route("**/*", lambda route: route.continue_() if _is_here(route.request.url) else route.abort())
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    yield page
    page.close()
    assert mistakes == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with opened(browser) as page:
        yield page


@pytest.fixture(scope="module")
def board(browser: Browser, address: str) -> Iterator[Page]:
    """TensorBoard, which takes seconds to load; each test goes to a tab of its own."""
    with opened(browser) as page:
        page.goto(address)
        yield page


def _is_here(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events.read(folder).Scalars(tag)]


def save(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def expect_shown(page: Page | FrameLocator, text: str) -> None:
    """Wait until it is seen; tabs that were looked at before are hidden, and have texts as well."""
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible(timeout=PATIENCE)


def test_scalars(board: Page, address: str, sweep: Path) -> None:
    def holds_the_tag(answer: Response) -> bool:
        return "scalars_multirun" in answer.url and "\r\nval/acc\r\n" in (answer.request.post_data or "")

    with board.expect_response(holds_the_tag) as answer:
        board.goto(f"{address}/#scalars&tagFilter=val%2Facc")
    expect_shown(board, "tag: val/acc")
    board.wait_for_timeout(1000)
    save(board, "scalars")
    for run in ("0", "1"):
        drawn = [(step, value) for _, step, value in answer.value.json()[run]]
        assert drawn == scalars(sweep / run, "val/acc")


def test_the_tutorials_figure(board: Page, address: str, sweep: Path) -> None:
    answers: dict[str, dict[str, Any]] = {}

    def keep(answer: Response) -> None:
        if "custom_scalars/scalars?" in answer.url:
            answers[parse_qs(urlsplit(answer.url).query)["run"][0]] = answer.json()["tag_to_events"]

    board.on("response", keep)
    board.goto(f"{address}/#custom_scalars")
    expect_shown(board, "loss and accuracy by epoch")
    expect_shown(board, "Matches (6)")  # three curves of two runs
    board.wait_for_timeout(500)
    save(board, "custom_scalars")
    for run in ("0", "1"):
        drawn = {tag: [(step, value) for _, step, value in points] for tag, points in answers[run].items()}
        assert drawn == {tag: scalars(sweep / run, tag) for tag in FIGURE_TAGS}


def test_hyperparameters(board: Page, address: str, sweep: Path) -> None:
    board.goto(f"{address}/#hparams")
    cells = board.locator("vaadin-grid-cell-content")
    expect(cells.filter(has_text="Adam").first).to_be_visible(timeout=PATIENCE)
    save(board, "hparams")
    texts = [text.strip() for text in cells.all_inner_texts()]
    assert {"Adam", "SGD"} <= set(texts)
    table = board.evaluate(
        """async () => (await fetch('data/plugin/hparams/session_groups', {method: 'POST', body: JSON.stringify(
            {experimentName: '', allowedStatuses: ['STATUS_SUCCESS'], colParams: [], startIndex: 0, sliceSize: 9}
        )})).json()"""
    )
    rows = {group["name"]: group for group in table["sessionGroups"]}
    assert set(rows) == {"0", "1"}
    for run, row in rows.items():
        assert all(value not in (None, "") for value in row["hparams"].values())
        values = {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]}
        assert values == {tag: scalars(sweep / run, tag)[0][1] for tag in FINAL_TAGS}
        # As the table writes it. (Lightning alone would have shown -1 for each run here.)
        assert any(_same(text, values["final/held_out_acc"]) for text in texts)


def _same(text: str, value: float) -> bool:
    try:
        return float(text) == pytest.approx(value, rel=1e-4)
    except ValueError:
        return False


def test_images(board: Page, address: str) -> None:
    board.goto(f"{address}/#images")
    for tag in ("network/act1", "network/filters"):
        expect_shown(board, f"tag: {tag}")
    board.wait_for_timeout(1000)
    save(board, "images")
    loaded = board.locator("tf-image-loader img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(loaded) >= 4
    assert all(width > 100 for width in loaded)


def test_curves_of_precision_and_recall(board: Page, address: str) -> None:
    board.goto(f"{address}/#pr_curves")
    expect_shown(board, f"tag: val/{CLASSES[0]}")
    board.wait_for_timeout(500)
    save(board, "pr_curves")


@pytest.mark.parametrize(
    ("tab", "text"),
    [
        ("histograms", "weights/conv1.weight"),
        ("distributions", "gradients/conv1.weight"),
        ("text", "config/text_summary"),
        ("graphs", "Main Graph"),
    ],
)
def test_other_tabs(board: Page, address: str, tab: str, text: str) -> None:
    board.goto(f"{address}/#{tab}")
    expect_shown(board, text)
    board.wait_for_timeout(1000)
    save(board, tab)
    if tab == "graphs":
        expect(board.locator("svg text").filter(has_text="conv2").first).to_be_attached(timeout=PATIENCE)


def test_the_projector(board: Page, address: str) -> None:
    board.goto(f"{address}/#projector")
    inside = board.frame_locator("iframe").frame_locator("iframe")
    for text in ("Points: 100", "Dimension: 84"):
        expect_shown(inside, text)
    board.wait_for_timeout(2000)
    save(board, "projector")


CHARTS = (
    "() => [...document.querySelectorAll('.js-plotly-plot')].map(each => each.data.map(line => [line.name, line.y]))"
)


def test_the_report_of_a_run(page: Page, finished_run: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")  # other tests look at what the run itself has left
    page.goto(write_report(folder).as_uri())
    figure, losses, speed = page.evaluate(CHARTS)
    tags = {"training loss": "train/loss", "training accuracy": "train/acc", "held-out accuracy": "val/acc"}
    assert [name for name, _ in figure] == list(tags)
    for (_, values), tag in zip(figure, tags.values(), strict=True):
        assert values == pytest.approx([value for _, value in finished_run.scalars(tag)])
    assert [name for name, _ in losses] == ["training", "validation", "test"]
    assert speed[0][1] == pytest.approx([value for _, value in finished_run.scalars("train/examples_per_sec")])
    widths = page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(widths) == 7
    assert all(width > 100 for width in widths)
    expect(page.get_by_text(f"test accuracy {finished_run.metrics['test/acc']:.3f}")).to_be_visible()
    expect(page.get_by_text("_target_: torch.optim.Adam")).to_be_visible()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "report_of_a_run.png", full_page=True)


def test_the_report_of_a_sweep(page: Page, sweep: Path) -> None:
    page.goto(write_report(sweep).as_uri())
    comparison, curves, *_ = page.evaluate(CHARTS)
    jobs = read(sweep, "").jobs
    for job in jobs:
        (name,) = (word for word in job.overrides if word.startswith("optimizer="))
        values = next(values for title, values in curves if title == name)
        assert values == pytest.approx([value for _, value in scalars(sweep / str(job.number), "val/acc")])
    assert sorted(comparison[0][1]) == ["optimizer=adam", "optimizer=sgd"]
    assert page.locator("table").first.locator("tr").count() == 3
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "report_of_a_sweep.png", full_page=True)
