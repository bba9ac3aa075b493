from pathlib import Path

import pytest
from PIL import Image

from lenet.reports.page import Page


def make_page() -> Page:
    page = Page("Title", "Introduction.", printed=True)
    page.section("A", "First")
    page.text("1 < 2 & 3")
    page.code("4 5\n6 7")
    page.table(["name", "value"], [["<b>", "1"], ["long name", "20"]])
    page.picture(Image.new("L", (2, 2)), "a caption")
    page.section("B", "Second")
    return page


def test_a_page_is_saved_in_the_order_in_which_it_was_made(tmp_path: Path) -> None:
    make_page().save(tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text()
    parts = ["<h1>Title", "Introduction.", '<a href="#A">A</a> <a href="#B">B</a>', '<h2 id="A">', "1 &lt; 2 &amp; 3",
             "<pre>4 5\n6 7</pre>", "<td>&lt;b&gt;</td><td>1</td>", '<img alt="a caption" src="data:image/png;base64,',
             '<h2 id="B">']  # fmt: skip
    positions = [html.index(part) for part in parts]
    assert positions == sorted(positions)


def test_a_page_is_printed_as_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    make_page()
    printed = capsys.readouterr().out
    assert "1 < 2 & 3\n    4 5\n    6 7\n    name       value\n    <b>            1\n    long name     20" in printed
    assert "[picture: a caption]" in printed
