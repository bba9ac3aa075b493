from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lenet.reports.page import Page


def test_what_is_added_is_printed_and_saved_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page("Title", "Introduction.")
    page.section("A", "First")
    page.text("1 < 2 & 3")
    page.numbers("4 5\n6 7")
    page.picture(Figure(), "a caption")
    page.section("B", "Second")
    page.save(tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text()
    printed = capsys.readouterr().out
    wanted = ["<h1>Title", "Introduction.", '<a href="#A">A</a> <a href="#B">B</a>', '<h2 id="A">', "1 &lt; 2 &amp; 3",
              "<pre>4 5\n6 7</pre>", '<img alt="a caption" src="data:image/png;base64,', '<h2 id="B">']  # fmt: skip
    positions = [html.index(part) for part in wanted]
    assert positions == sorted(positions)
    assert "1 < 2 & 3\n    4 5\n    6 7\n[picture: a caption]" in printed
