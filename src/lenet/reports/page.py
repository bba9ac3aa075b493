"""An HTML page in one file, which opens without a network and can be printed to the terminal as it grows."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template
from PIL.Image import Image
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from lenet.errors import UserError
from lenet.files import write_whole


class Page:
    """Sections of text, tables, pictures and charts, in the order in which they are added.

    If `printed`, everything but the charts is also printed, and pictures as their captions.
    """

    def __init__(self, title: str, introduction: str, printed: bool = False) -> None:
        self.title, self.introduction, self.printed = title, introduction, printed
        self._sections: list[str] = []
        self._body: list[str] = []
        self._has_charts = False
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
        self._has_charts = True
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
        """Write the page, with links to its sections at the top; raises a UserError that names the file."""
        page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).render(
            title=self.title,
            introduction=self.introduction,
            sections=self._sections,
            body=self._body,
            plotly=get_plotlyjs() if self._has_charts else "",  # five megabytes; one copy serves all charts
        )
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, page.encode())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: cannot be written ({reason}); name another file") from None

    def _figure(self, content: str, caption: str) -> None:
        self._body.append(f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def _print(self, text: str) -> None:
        if self.printed:
            print(text)
