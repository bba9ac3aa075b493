"""An HTML page in one file, which opens without a network and can be printed to the terminal as it grows."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from lenet.files import write_whole

STYLE = """
body { max-width: 54rem; margin: 3rem auto; padding: 0 1.5rem; font: 17px/1.6 Georgia, serif; color: #222; }
h1 { font-size: 2.1rem; line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
pre { background: #f6f4f0; padding: .9rem 1.1rem; white-space: pre-wrap; font: 14px/1.45 ui-monospace, monospace; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #666; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; margin: 1.2rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .8rem; text-align: right; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
nav a { margin-right: .7rem; white-space: nowrap; }
"""


class Page:
    """Sections of text, tables, pictures and charts, in the order in which they are added.

    If `printed`, everything but the charts is also printed, and pictures as their captions.
    """

    def __init__(self, title: str, introduction: str, printed: bool = False) -> None:
        self.title, self.introduction, self.printed = title, introduction, printed
        self._sections: list[str] = []
        self._body: list[str] = []
        self._plotly = ""
        self._print(f"{title}\n\n{introduction}")

    def section(self, mark: str, title: str = "") -> None:
        """Begin a section. Its mark is a unique word, such as "C1"; the links at the top show it."""
        self._sections.append(mark)
        self._body.append(f'<h2 id="{mark}">{mark} {html.escape(title)}</h2>')
        self._print(f"\n{mark}  {title}\n{'─' * (len(mark) + 2 + len(title))}")

    def text(self, paragraph: str) -> None:
        self._body.append(f"<p>{html.escape(paragraph)}</p>")
        self._print(paragraph)

    def code(self, lines: str) -> None:
        """Add lines in a fixed-width font: matrices, code, settings."""
        self._body.append(f"<pre>{html.escape(lines)}</pre>")
        self._print("\n".join(f"    {line}" for line in lines.splitlines()))

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table: text in the first column, numbers in the others."""
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        self._body.append("<table>")
        for tag, cells in [("th", heads), *(("td", row) for row in rows)]:
            self._body.append(f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>")
            first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            self._print("  ".join([f"    {first.lstrip():<{widths[0]}}", *others]))
        self._body.append("</table>")

    def chart(self, figure: Figure, caption: str) -> None:
        """Add a chart that shows its numbers under the mouse."""
        self._plotly = f"<script>{get_plotlyjs()}</script>"  # five megabytes; one copy serves all charts
        self._figure(figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False}), caption)

    def picture(self, picture: Image | bytes, caption: str) -> None:
        """Add a picture, or the content of a PNG file."""
        if isinstance(picture, Image):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            picture = buffer.getvalue()
        data = base64.b64encode(picture).decode()
        self._figure(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">', caption)
        self._print(f"[picture: {caption}]")

    def save(self, path: Path) -> None:
        """Write the page, with links to its sections at the top; raises OSError if that fails."""
        links = " ".join(f'<a href="#{mark}">{mark}</a>' for mark in self._sections)
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>{self._plotly}'
        top = f"<h1>{html.escape(self.title)}</h1>\n<p>{html.escape(self.introduction)}</p>\n<nav>{links}</nav>"
        body = "\n".join([top, *self._body])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'.encode())

    def _figure(self, content: str, caption: str) -> None:
        self._body.append(f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def _print(self, text: str) -> None:
        if self.printed:
            print(text)
