"""An executed notebook as one HTML page that needs neither network nor script.

A live widget cannot be seen without a kernel and the scripts that draw it, so
every figure carries a picture of the same content (:mod:`mmulab.widgets.figure`)
and the page shows that one. An output that exists only as a live control is
replaced by a line that says so: no gap without a word. The page forbids itself
every request by its content security policy, and :func:`remote_references`
finds what would have needed one. Links are not among it: nothing of them is loaded.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mmulab.report import beside
from mmulab.report.links import commits_in, linked

__all__ = ["export", "remote_references", "shell"]

TEMPLATES = Path(__file__).parent / "template"
STATIC = ("image/svg+xml", "text/html", "image/png", "image/jpeg", "text/markdown", "text/plain")
"""What the page can show, best first."""
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
LIVE_ONLY = "<p class='live-only'>In JupyterLab an interactive control stands here.</p>"


def export(notebook: Any, title: str) -> str:
    """Return the page of an executed notebook.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        It is not changed.
    title : str
        The notebook's name, with which the names of pages beside this one begin.

    Raises
    ------
    ValueError
        If an output needs a script or something from the network: a bug of the notebook.
    """
    exporter, colours = _exporter()
    style = _style() + colours
    resources = {"metadata": {"name": title}, "mmulab_style": style}
    html, _ = exporter.from_notebook_node(_still(notebook, title), resources=resources)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    html = linked(html, commits_in(" ".join(prose)))
    found = remote_references(html)
    if found:
        raise ValueError(f"page '{title}' is not self-contained: {'; '.join(found)}")
    return str(html)


@cache
def _exporter() -> tuple[Any, str]:
    """Return what writes pages, and the style of highlighted code; reading its templates takes a while."""
    from nbconvert.exporters import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = list(STATIC)
    exporter = HTMLExporter(config=config, template_name="mmulab", extra_template_basedirs=[str(TEMPLATES)])
    return exporter, HtmlFormatter(nobackground=True).get_style_defs(".highlight")


def shell(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Return a page of the same look around `body`, which is HTML.

    Parameters
    ----------
    title : str
        Plain text.
    body : str
    style : str
        More of a style sheet.
    script : str
        The only one that the page lets run, at its end.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        sha256 = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{sha256}'"
        body += f"\n<script>{script}</script>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    return (TEMPLATES / "mmulab" / "style.css").read_text("utf-8")


def _still(notebook: Any, title: str) -> Any:
    """Return a copy without live views: the picture beside one stays, or a line of text stands for it.

    Cells are numbered, because papermill gives the one that it adds a random name.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            page = data.pop(beside.MIME, None)
            if page:
                data["text/html"] = beside.link_to(page, title)
            if data.pop(WIDGET_MIME, None) and not set(STATIC[:-1]) & set(data):
                data["text/html"] = LIVE_ONLY
    return notebook


def remote_references(html: str) -> list[str]:
    """Return what in `html` is a script or would be fetched when the page is opened; links do not count."""
    finder = _Finder()
    finder.feed(html)
    finder.close()
    return finder.found


class _Finder(HTMLParser):
    """Collects scripts, attributes that load something, and style sheets that do."""

    _LOADING = frozenset({"src", "srcset", "data", "poster", "background", "action", "formaction"})
    _CSS_LOAD = re.compile(r"@import|url\((?!\s*['\"]?(?:#|data:))", re.IGNORECASE)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        if tag in ("script", "base"):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            value = value or ""
            loads = name in self._LOADING or (name.endswith("href") and tag != "a")
            if (loads and not value.startswith(("data:", "#"))) or self._CSS_LOAD.search(value):
                self.found.append(f"<{tag} {name}={value[:60]!r}>")
            if name.startswith("on"):
                self.found.append(f"<{tag} {name}>")

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style and self._CSS_LOAD.search(data):
            self.found.append("style sheet that loads something")
