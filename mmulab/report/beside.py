"""A page of its own beside a notebook's exported one, to which that one links.

An exported page lets no script run. What needs one, as a stepper through every
moment, is a page beside it: the notebook's output holds it, compressed, and the
report writes it out.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from mmulab.trace.recording import Recording
from mmulab.widgets.stepper_page import MOST, stepper_page

__all__ = ["MIME", "Beside", "link_to", "pages_of", "stepper_beside"]

MIME = "application/vnd.mmulab.page+json"
"""Of an output with such a page."""
_NAME = re.compile(r"[a-z0-9-]+")


class Beside:
    """A page to be written beside the notebook's.

    Parameters
    ----------
    name : str
        Lower-case letters, digits and hyphens; its file is ``NOTEBOOK-NAME.html``.
    title : str
        What the link says.
    html : str
        The whole page.
    """

    def __init__(self, name: str, title: str, html: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"page {name!r}: a name has lower-case letters, digits and hyphens")
        self.name, self.title, self.html = name, title, html

    def __repr__(self) -> str:
        return f"<page {self.name!r}: {self.title}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        packed = base64.b64encode(zlib.compress(self.html.encode("utf-8"), 9)).decode("ascii")
        return {
            MIME: {"name": self.name, "title": self.title, "page": packed},
            "text/html": f"<p>In a report a link stands here: {escape(self.title)}.</p>",
            "text/plain": repr(self),
        }


def stepper_beside(recording: Recording, name: str, title: str, *, at: int = 0) -> Beside:
    """Return a page that steps through a recording, as far as one page goes.

    Parameters
    ----------
    recording : Recording
    name, title : str
        As :class:`Beside` takes them.
    at : int
        Number of the moment that the page opens at.
    """
    first = max(0, at - MOST + 1)
    last = min(len(recording), first + MOST) - 1
    return Beside(name, title, stepper_page(recording, title=title, first=first, last=last, at=at))


def _file_of(page: Mapping[str, str], stem: str) -> str:
    if not _NAME.fullmatch(page["name"]):
        raise ValueError(f"page {page['name']!r} beside {stem} has no plain name")
    return f"{stem}-{page['name']}.html"


def link_to(page: Mapping[str, str], stem: str) -> str:
    """Return the link that an exported page has in the place of such an output."""
    return f'<p class="beside"><a href="{_file_of(page, stem)}">{escape(page["title"])}</a></p>'


def pages_of(notebook: Any, stem: str) -> Iterator[tuple[str, str]]:
    """Yield file name and text of every page that belongs beside an executed notebook's.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
    stem : str
        Of the notebook's file.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get(MIME)
            if page:
                packed = base64.b64decode(page["page"])
                yield _file_of(page, stem), zlib.decompress(packed).decode("utf-8")
