import re
from pathlib import Path

import pytest

from tests.commands import Commands


def test_get_data_prints_where_the_files_are(commands: Commands, real_root: Path) -> None:
    done = commands.run("scripts/get_data.py", "--root", str(real_root))
    assert done.returncode == 0, done.stderr
    assert str(real_root) in done.stdout


@pytest.mark.parametrize("words", ["train --rounds 0", "layers --rounds -1", "training"])
def test_the_benchmark_refuses_wrong_arguments(commands: Commands, words: str) -> None:
    done = commands.run("scripts/benchmark.py", *words.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_tour_is_printed_and_saved_as_one_page(commands: Commands, tmp_path: Path) -> None:
    page = tmp_path / "tour.html"
    settings = ["data=synthetic", "data.train_size=5300", "layers=fft"]
    done = commands.run("scripts/tour.py", *settings, "--output", str(page))
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    for mark in [*(f"C{number}" for number in range(1, 19)), "LeNet"]:
        assert f"\n{mark}  " in done.stdout
        assert f'<h2 id="{mark}">' in html
    assert "algorithm=fft" in html
    assert html.count("data:image/png;base64,") >= 12
    # The page loads nothing when it is opened.
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|<script", html)


TOUR = "tour.py data=synthetic data.train_size=5100"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("get_data.py --root missing/folder", "error: data.root="),
        (f"{TOUR} optimzer.lr=1", "error: optimzer.lr: no such key; did you mean optimizer.lr?"),
        (f"{TOUR} --output /dev/null/tour.html", "error: /dev/null/tour.html: cannot be written"),
    ],
)
def test_a_mistake_is_named_in_one_line(commands: Commands, words: str, message: str) -> None:
    script, *arguments = words.split()
    done = commands.run(f"scripts/{script}", *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
