"""Plain HTML for objects that show themselves in a notebook: tables of text, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def table_html(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """Return a table under a caption.

    >>> table_html(["level"], [[1]], "a < b")
    '<table><caption>a &lt; b</caption><tr><th>level</th></tr><tr><td>1</td></tr></table>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def facts_html(facts: Mapping[str, object], caption: str) -> str:
    """Return names and values, one pair a row."""
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"
