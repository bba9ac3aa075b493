"""A page that is written twice as it grows: as lines on the terminal, and as one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL.Image import Image

_STYLE = """
:root { color-scheme: light; }
body { max-width: 54rem; margin: 3rem auto; padding: 0 1.5rem; font: 17px/1.6 Georgia, serif; color: #222; }
h1 { font-size: 2.1rem; line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.2rem; }
h2 small { color: #a0522d; margin-right: .6rem; font-weight: normal; }
pre { background: #f6f4f0; padding: .9rem 1.1rem; white-space: pre-wrap; }
pre { font: 14px/1.45 ui-monospace, Menlo, monospace; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #666; font-size: .9rem; }
nav a { margin-right: .7rem; white-space: nowrap; }
"""


class Page:
    """A title and sections of text, numbers and pictures, in the order in which they are added.

    Args:
        title: of the whole page.
        introduction: one paragraph below it.
    """

    def __init__(self, title: str, introduction: str) -> None:
        self.title = title
        self._anchors: list[str] = []
        self._body: list[str] = [f"<h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>", ""]
        print(f"{title}\n\n{introduction}")

    def section(self, mark: str, title: str) -> None:
        """Begin a section; its mark is short and unique, such as "C1"."""
        self._anchors.append(mark)
        mark = html.escape(mark)
        self._body.append(f'<h2 id="{mark}"><small>{mark}</small>{html.escape(title)}</h2>')
        print(f"\n{mark}  {title}\n{'─' * (len(mark) + 2 + len(title))}")

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._body.append(f"<p>{html.escape(paragraph)}</p>")
        print(paragraph)

    def numbers(self, block: str) -> None:
        """Add lines whose alignment matters: code, a matrix, a table."""
        self._body.append(f"<pre>{html.escape(block)}</pre>")
        print("\n".join(f"    {line}" for line in block.splitlines()))

    def picture(self, picture: Figure | Image, caption: str) -> None:
        """Add a picture, with what it shows; the terminal gets the caption alone."""
        buffer = io.BytesIO()
        if isinstance(picture, Figure):
            picture.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
        else:
            picture.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        print(f"[picture: {caption}]")
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
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "\n".join(self._body)
        path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n')
