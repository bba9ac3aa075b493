from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lenet import fashion_mnist
from tests.conftest import PROJECT


def get_data(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "get_data.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_get_data_says_where_the_files_are(real_root: Path) -> None:
    done = get_data(real_root)
    assert done.returncode == 0
    assert str(fashion_mnist.raw_folder(real_root)) in done.stdout


def test_get_data_names_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = get_data(tmp_path / "missing" / "folder")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: data.root=")


@pytest.mark.parametrize("arguments", [["train", "--rounds", "0"], ["layers", "--rounds", "-1"], ["training"]])
def test_the_benchmark_refuses_what_it_cannot_do(arguments: list[str]) -> None:
    command = [sys.executable, str(PROJECT / "scripts" / "benchmark.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_tour_is_printed_and_saved_as_one_page(tmp_path: Path) -> None:
    page = tmp_path / "tour.html"
    settings = ["data=synthetic", "data.train_size=5300", "trainer.max_epochs=1", "layers=fft"]
    command = [sys.executable, str(PROJECT / "scripts" / "tour.py"), *settings, "--output", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
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
def test_the_tour_names_a_mistake_in_one_line(arguments: list[str], message: str) -> None:
    small = ["data=synthetic", "data.train_size=5100", "data.test_size=100"]
    command = [sys.executable, str(PROJECT / "scripts" / "tour.py"), *small, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
