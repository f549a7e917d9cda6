"""Results tables: shown in the notebook, kept in it as data, written beside it by a run.

A table travels inside the notebook's own outputs, so it is the same however the
notebook was run; :func:`harvest` takes the tables out of an executed notebook and
:meth:`Table.csv` is their file form. Nothing of the machine, the hour or the path
gets in: running again gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mmulab.report.outputs import shown

__all__ = ["TABLE_MIME", "Table", "harvest", "is_number"]

TABLE_MIME = "application/vnd.mmulab.table+json"

Value = int | float | str | bool | None
_FEW = 4
"""Values of a column that the heading of a group counts."""
_LONGEST = 30
"""Characters of a word that a cell of a page holds."""


@dataclass(frozen=True)
class Table:
    """A results table.

    Attributes
    ----------
    name : str
        Its file name without ``.csv``: letters, digits, ``-`` and ``_``.
    columns : sequence of str
    rows : sequence of sequence
        One value a column; ints, floats, strings, bools, None, or numpy scalars of those.
    caption : str
        One sentence for the reader.
    fold : str
        A column by whose values the rows are shown folded, a group each; empty for none. A group's
        heading counts the values of the columns after it, where a column has few; radio buttons leave
        the rows with one of those values.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    fold: str = ""

    def __post_init__(self) -> None:
        """Turn values into plain Python ones and check the shape."""
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"'{self.name}' is no name for a table's file")
        for number, column in enumerate(self.columns):
            if column in self.columns[:number]:
                raise ValueError(f"table {self.name}: two columns are called '{column}'")
        if self.fold and self.fold not in self.columns:
            raise ValueError(f"table {self.name}: it folds by '{self.fold}', which is none of its columns")
        rows = tuple(tuple(_plain(value) for value in row) for row in self.rows)
        width = len(self.columns)
        for number, row in enumerate(rows):
            if len(row) != width:
                raise ValueError(f"table {self.name}: row {number} has {len(row)} values, not {width}")
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", rows)

    def csv(self) -> str:
        """Return the table as CSV text: header, rows in order, ``\\n`` line ends, None as empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def _repr_html_(self) -> str:
        if self.fold:
            return self._folded()
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return _table(self.columns, self.rows, caption)

    def _folded(self) -> str:
        """Return the table in groups that open without a script, in the order in which they come up."""
        at = self.columns.index(self.fold)
        few = [
            number
            for number in range(at + 1, len(self.columns))
            if len({row[number] for row in self.rows}) <= _FEW
        ]
        found = {number: _rarest([row[number] for row in self.rows]) for number in few}
        choices = {number: values for number, values in found.items() if len(values) > 1}
        mark = "fold" + hashlib.sha256(repr((self.name, self.columns, self.rows)).encode()).hexdigest()[:12]
        parts = [f"<p>{escape(self.caption)}</p>"] if self.caption else []
        parts.append(_filter(mark, self.columns, choices))
        for group in dict.fromkeys(row[at] for row in self.rows):
            rows = [row for row in self.rows if row[at] == group]
            words = [f"{_shown(group)}: {len(rows)}"]
            words += [f"{self.columns[number]}: {_counts([row[number] for row in rows])}" for number in few]
            classes = [_classes(row, choices) for row in rows]
            own = _table(*_without(at, self.columns, rows), classes=classes)
            has = " ".join(dict.fromkeys(" ".join(classes).split()))
            head = f"<summary>{escape('; '.join(words))}</summary>"
            start = f'<details class="{has}">' if has else "<details>"
            parts.append(f"{start}{head}{own}</details>")
        return f'<div class="folded {mark}">{"".join(parts)}</div>'

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        record = {name: getattr(self, name) for name in ("name", "columns", "rows", "caption", "fold")}
        return {TABLE_MIME: record, "text/html": self._repr_html_(), "text/plain": self.csv()}


def _plain(value: Any) -> Value:
    value = value.item() if hasattr(value, "item") else value
    if value is None or isinstance(value, int | float | str | bool):
        return value
    raise TypeError(f"{value!r} cannot be kept in a results table; give a number, a string or None")


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Value]],
    caption: str = "",
    classes: Sequence[str] = (),
) -> str:
    """Return a table; `classes` are those of its rows, if they have any."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    starts = [f'<tr class="{own}">' if own else "<tr>" for own in classes] or ["<tr>"] * len(rows)
    body = "".join(f"{start}{''.join(map(_cell, row))}</tr>" for start, row in zip(starts, rows, strict=True))
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


Choices = Mapping[int, Sequence[Value]]
"""By column: the values that its filter offers."""


def _filter(mark: str, columns: Sequence[str], choices: Choices) -> str:
    """Return radio buttons that leave the rows with one value of a column, by a style sheet alone.

    While one is chosen the groups stand open, in browsers that let a style sheet open them; elsewhere
    those with such rows are left, to be opened.
    """
    style, fields = [], []
    for number, values in choices.items():
        buttons = [f'<label><input type="radio" name="{mark}-{number}" checked> all</label>']
        for at, value in enumerate(values):
            own, kind = f"{mark}-{number}-{at}", f"c{number}v{at}"
            chosen = f".{mark}:has(#{own}:checked)"
            style.append(f"{chosen} :is(tbody tr, details):not(.{kind}) {{ display: none; }}")
            button = f'<input type="radio" name="{mark}-{number}" class="one" id="{own}">'
            buttons.append(f"<label>{button} {escape(_shown(value) or 'none')}</label>")
        legend = f"<legend>{escape(columns[number])}</legend>"
        fields.append(f"<fieldset>{legend}{''.join(buttons)}</fieldset>")
    if not fields:
        return ""
    style.append(f".{mark}:has(.one:checked) details::details-content {{ {_OPEN} }}")
    return f"<style>{_FIELDS.replace('ID', mark)}{' '.join(style)}</style>{''.join(fields)}"


_OPEN = "content-visibility: visible; block-size: auto;"
_FIELDS = """
.ID fieldset { display: inline-block; margin: 0 0.75rem 0.5rem 0; padding: 0.1rem 0.6rem; }
.ID fieldset { border: 1px solid #ccc; }
.ID legend { font-size: 0.85rem; color: #555; }
.ID label { margin-right: 0.75rem; white-space: nowrap; }
"""


def _classes(row: Sequence[Value], choices: Choices) -> str:
    """Return what the filter knows a row by."""
    return " ".join(f"c{number}v{values.index(row[number])}" for number, values in choices.items())


def _without(
    at: int, columns: Sequence[str], rows: Sequence[Sequence[Value]]
) -> tuple[list[str], list[list[Value]]]:
    """Return columns and rows without the column `at`."""
    return [*columns[:at], *columns[at + 1 :]], [[*row[:at], *row[at + 1 :]] for row in rows]


def _counts(values: Sequence[Value]) -> str:
    """Return how often each value comes, the rarest first."""
    found = Counter(values)
    return ", ".join(f"{found[value]} {_shown(value)}".strip() for value in _rarest(values))


def _rarest(values: Sequence[Value]) -> list[Value]:
    """Return the values, the rarest first: there one looks first."""
    return [value for value, _ in sorted(Counter(values).items(), key=lambda entry: entry[1])]


def is_number(value: object) -> bool:
    """Whether a value is a number, which a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Value) -> str:
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def _cell(value: Value) -> str:
    side = "right" if is_number(value) else "left"
    return f'<td style="text-align: {side}">{_breakable(_shown(value))}</td>'


def _breakable(text: str) -> str:
    """Return text as HTML in which a word as long as a function's full name may wrap at an underscore."""
    words = escape(text).split(" ")
    return " ".join(word.replace("_", "_<wbr>") if len(word) > _LONGEST else word for word in words)


def harvest(notebook: Any) -> list[Table]:
    """Return the tables in the outputs of an executed notebook, in order.

    Parameters
    ----------
    notebook : nbformat.NotebookNode

    Raises
    ------
    ValueError
        If two tables have one name.
    """
    tables = [Table(**found) for found in shown(notebook, TABLE_MIME)]
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the notebook shows two results tables named '{name}'")
    return tables
