from __future__ import annotations

import re
from pathlib import Path

import pytest

from lenet.data import fashion_mnist
from tests.commands import Commands


def test_get_data_says_where_the_files_are(commands: Commands, real_root: Path) -> None:
    done = commands.run("scripts/get_data.py", "--root", str(real_root))
    assert done.returncode == 0
    assert str(fashion_mnist.raw_folder(real_root)) in done.stdout


def test_get_data_names_what_is_wrong_in_one_line(commands: Commands, tmp_path: Path) -> None:
    done = commands.run("scripts/get_data.py", "--root", str(tmp_path / "missing" / "folder"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: data.root=")


@pytest.mark.parametrize(
    "words",
    [
        "benchmark.py train --rounds 0",
        "benchmark.py layers --rounds -1",
        "benchmark.py training",
        "chaos.py --rounds 0",
        "chaos.py --jobs 0",
    ],
)
def test_a_script_refuses_what_it_cannot_do(commands: Commands, words: str) -> None:
    script, *arguments = words.split()
    done = commands.run(f"scripts/{script}", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_tour_is_printed_and_saved_as_one_page(commands: Commands, tmp_path: Path) -> None:
    page = tmp_path / "tour.html"
    settings = ["data=synthetic", "data.train_size=5300", "trainer.max_epochs=1", "layers=fft"]
    done = commands.run("scripts/tour.py", *settings, "--output", str(page))
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    for mark in [*(f"C{number}" for number in range(1, 19)), "LeNet"]:
        assert f"\n{mark}  " in done.stdout
        assert f'<h2 id="{mark}">' in html
    assert "algorithm=fft" in html
    assert html.count("data:image/png;base64,") >= 12
    # Nothing is fetched when the page is opened.
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|<script", html)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimzer.lr=1"], "error: optimzer.lr: no such key; did you mean optimizer.lr?"),
        (["--output", "/dev/null/tour.html"], "error: --output=/dev/null/tour.html: cannot be written"),
    ],
    ids=["key", "output"],
)
def test_the_tour_names_a_mistake_in_one_line(commands: Commands, arguments: list[str], message: str) -> None:
    small = ["data=synthetic", "data.train_size=5100", "data.test_size=100"]
    done = commands.run("scripts/tour.py", *small, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
