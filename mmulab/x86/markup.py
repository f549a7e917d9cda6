"""Plain HTML for objects that show themselves in a notebook: tables of text, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from html import escape
from typing import Any, ClassVar, Protocol


class Record(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def changed_fields(record: Record) -> dict[str, str]:
    """Return the fields of a record that are not as by default, numbers in hexadecimal.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Fault:
    ...     kind: str
    ...     cr2: int | None = None
    >>> changed_fields(Fault("exc", 0x40000000))
    {'kind': 'exc', 'cr2': '0x40000000'}
    """
    values = {f.name: (getattr(record, f.name), f.default) for f in fields(record)}
    return {name: hex_str(value) for name, (value, default) in values.items() if value != default}


def hex_str(value: object) -> str:
    """Return a value in words, the numbers in it in hexadecimal.

    >>> hex_str({"gpa": 0x1000, "pages": [16, True]})
    'gpa:0x1000,pages:0x10,True'
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{hex_str(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(hex_str, value))
    return str(value)


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
