"""A page as one HTML file that needs no network; if it is to be read on the terminal too, it is printed as it grows."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from lenet.files import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { max-width: 54rem; margin: 3rem auto; padding: 0 1.5rem; font: 17px/1.6 Georgia, serif; color: #222; }
h1 { font-size: 2.1rem; line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
h2 small { color: #a0522d; margin-right: .6rem; font-weight: normal; }
pre { background: #f6f4f0; padding: .9rem 1.1rem; white-space: pre-wrap; }
pre { font: 14px/1.45 ui-monospace, Menlo, monospace; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #666; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; margin: 1.2rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; white-space: normal; }
nav a { margin-right: .7rem; white-space: nowrap; }
"""


class Page:
    """A title and sections of text, numbers and pictures, in the order in which they are added.

    Args:
        title: of the whole page.
        introduction: one paragraph below it.
        printed: whether text and numbers also go to the terminal.
    """

    def __init__(self, title: str, introduction: str, printed: bool = True) -> None:
        self.title = title
        self._print: Callable[[str], None] = print if printed else lambda _: None
        self._scripts = ""
        self._anchors: list[str] = []
        self._body: list[str] = [f"<h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>", ""]
        self._print(f"{title}\n\n{introduction}")

    def section(self, mark: str, title: str = "") -> None:
        """Begin a section; its mark is short and unique, such as "C1". Without a title it is the title too."""
        self._anchors.append(mark)
        mark = html.escape(mark)
        heading = f"<small>{mark}</small>{html.escape(title)}" if title else mark
        self._body.append(f'<h2 id="{mark}">{heading}</h2>')
        self._print(f"\n{mark}  {title}\n{'─' * (len(mark) + 2 + len(title))}")

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._body.append(f"<p>{html.escape(paragraph)}</p>")
        self._print(paragraph)

    def numbers(self, block: str) -> None:
        """Add lines whose alignment matters: code, a matrix, a table."""
        self._body.append(f"<pre>{html.escape(block)}</pre>")
        self._print("\n".join(f"    {line}" for line in block.splitlines()))

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others are figures."""
        self._body.append(f"<table><tr>{_cells('th', heads)}</tr>")
        self._body += [f"<tr>{_cells('td', row)}</tr>" for row in rows]
        self._body.append("</table>")

    def chart(self, figure: plotly.graph_objects.Figure, caption: str) -> None:
        """Add a chart that shows its numbers where the mouse is."""
        if not self._scripts:  # it has five megabytes, and serves all charts
            from plotly.offline import get_plotlyjs

            self._scripts = f"<script>{get_plotlyjs()}</script>"
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        self._body.append(f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def picture(self, picture: Figure | Image | bytes, caption: str) -> None:
        """Add a picture, or the PNG file of one, with what it shows; the terminal gets the caption alone."""
        self._print(f"[picture: {caption}]")
        data = base64.b64encode(picture if isinstance(picture, bytes) else _png(picture)).decode()
        caption = html.escape(caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        self._body.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

    def save(self, path: Path) -> None:
        """Write the page, with links to its sections at the top.

        Raises:
            OSError: the file cannot be written.
        """
        marks = (html.escape(mark) for mark in self._anchors)
        self._body[1] = "<nav>" + " ".join(f'<a href="#{mark}">{mark}</a>' for mark in marks) + "</nav>"
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>{self._scripts}'
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "\n".join(self._body)
        content = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
        write_whole(path, content.encode())


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _png(picture: Figure | Image) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, Image):
        picture.save(buffer, "PNG")
    else:
        picture.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return buffer.getvalue()
