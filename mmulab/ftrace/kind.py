"""One kind of event while a trace is read: its lines, and the columns they become."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmulab.ftrace.forms import Column
from mmulab.ftrace.layout import PROBE, RAW, UNPARSED, Layout
from mmulab.ftrace.trace import NOT_READ, Counts, Table

MOST_LAYOUTS = 32
"""Layouts that the text itself may give for one name."""
SAMPLES = 5
_PROBE = re.compile(r"\s*(\([^(){}]*\))((?: +\w+=[^\s{}]+)*)\s*")
_FIELDS = re.compile(rf"\s*({re.escape(UNPARSED)})?((?: *\b\w+=[^\s{{}}]+)+)\s*")
_SPECS = {"i8": "signed", "u8": "unsigned"}
_PAIR = re.compile(r"(\w+)=(\S+)")


def is_probe(text: str) -> bool:
    """Whether a line is a probe's, by its place in brackets."""
    return _PROBE.fullmatch(text) is not None


def layout_of(text: str, names: Mapping[str, str], types: Mapping[str, str]) -> Layout | None:
    """Return the layout of a line of ``name=value`` pairs: a probe's, or a tool's that cannot print better.

    Parameters
    ----------
    text : str
    names : mapping of str to str
        Fields that have another name here.
    types : mapping of str to str
        The columns' types of fields that are known.
    """
    probe = _PROBE.fullmatch(text)
    found = probe or _FIELDS.fullmatch(text)
    if found is None:
        return None
    begin = "({probe:text})" if probe else (found[1] or "")
    pairs = _PAIR.findall(found[2])
    body = " ".join(_field(name, value, names.get(name, name), types) for name, value in pairs)
    return Layout(f"{begin} {body}".strip(), by=PROBE if probe else RAW)


def _field(name: str, value: str, known_as: str, types: Mapping[str, str]) -> str:
    spec = _SPECS.get(types.get(known_as, "")) or _spec(value)
    return f"{name}={{{known_as}:{spec}}}"


def _spec(value: str) -> str:
    if re.fullmatch(r"0x[0-9a-f]{1,16}", value):
        return "#x"
    return "d" if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) else "word"


@dataclass
class Kind:
    """One kind of event.

    Attributes
    ----------
    layouts : list of Layout
    by_text : bool
        Whether lines may give layouts of their own.
    texts : list of str
        The lines of the block that is being read.
    tails : dict of int to list of str
        Lines after one of them that may belong to it.
    """

    name: str
    number: int
    layouts: list[Layout]
    by_text: bool
    renamed: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(init=False)
    texts: list[str] = field(default_factory=list)
    tails: dict[int, list[str]] = field(default_factory=dict)
    rows: int = 0
    _pieces: list[tuple[Column | slice, int, tuple[Column, ...]]] = field(default_factory=list)
    _recent: int = 0

    def __post_init__(self) -> None:
        """Note the types of the fields that are known: a line's own layout may not change them."""
        self.types = {name: one.dtype for layout in self.layouts for name, one in layout.forms.items()}

    def read(self, counts: Counts) -> None:
        """Turn the block's lines into columns."""
        texts, self.texts = self.texts, []
        first, self.rows = self.rows, self.rows + len(texts)
        if not texts or not (self.layouts or self.by_text):
            return
        if not self.layouts:
            self._learn(texts[0])
        if not self.tails and self._all(texts, first):
            return
        tails, self.tails = self.tails, {}
        self._each(texts, first, tails, counts)

    def _all(self, texts: Sequence[str], first: int) -> bool:
        for number in (self._recent, *range(len(self.layouts))):
            if number < len(self.layouts):
                columns = self.layouts[number].read(texts)
                if columns is not None:
                    self._recent = number
                    self._pieces.append((slice(first, first + len(texts)), number, columns))
                    return True
        return False

    def _each(self, texts: Sequence[str], first: int, tails: dict[int, list[str]], counts: Counts) -> None:
        found: dict[int, tuple[list[int], list[object]]] = {}
        for at, text in enumerate(texts):
            tail = tails.get(at, [])
            for taken in range(len(tail), -1, -1):
                number, row = self._match(" ".join([text, *tail[:taken]]))
                if number != NOT_READ:
                    break
            counts.joined += taken
            for line in tail[taken:]:
                count_unread(counts, line)
            if number == NOT_READ:
                self._count_unreadable(text, counts)
                continue
            rows, values = found.setdefault(number, ([], []))
            rows.append(first + at)
            values.append(row)
        for number, (rows, values) in found.items():
            self._pieces.append((np.array(rows), number, self.layouts[number].columns(values)))

    def _match(self, text: str) -> tuple[int, object]:
        for number, layout in enumerate(self.layouts):
            row = layout.match(text)
            if row is not None:
                return number, row
        if self._learn(text):
            return len(self.layouts) - 1, self.layouts[-1].match(text)
        return NOT_READ, None

    def _learn(self, text: str) -> bool:
        """Take the layout that a line itself tells; True if the line is of it."""
        if len(self.layouts) >= MOST_LAYOUTS or not (self.by_text or UNPARSED in text):
            return False
        layout = layout_of(text, self.renamed, self.types)
        if layout is None or layout.match(text) is None:
            return False
        self.layouts.append(layout)
        return True

    def _count_unreadable(self, text: str, counts: Counts) -> None:
        if self.by_text:
            return  # an event that is not known here need not be of pairs
        counts.unreadable[self.name] = counts.unreadable.get(self.name, 0) + 1
        add_sample(counts, f"{self.name}: {text}")

    def table(self, at: Column) -> Table | None:
        """Return all the rows; None if no layout is known."""
        if not self.layouts:
            return None
        layout = np.full(self.rows, NOT_READ, np.uint8)
        columns: dict[str, Column] = {}
        for rows, number, values in self._pieces:
            layout[rows] = number
            for name, piece in zip(self.layouts[number].fields, values, strict=True):
                _column(columns, name, piece, self.rows)[rows] = piece
        return Table(at, layout, tuple(self.layouts), columns)


def _column(columns: dict[str, Column], name: str, piece: Column, rows: int) -> Column:
    """Return the column that takes a piece: of its type, or of objects if the layouts differ in it."""
    column = columns.get(name)
    if column is None:
        empty: Callable[..., Column] = np.zeros
        column = np.full(rows, "", object) if piece.dtype == object else empty(rows, piece.dtype)
    elif column.dtype not in (piece.dtype, object):
        column = column.astype(object)
    columns[name] = column
    return column


def count_unread(counts: Counts, line: str) -> None:
    """Count a line that is nothing known."""
    counts.unread += 1
    add_sample(counts, line)


def add_sample(counts: Counts, line: str) -> None:
    """Keep a line that was not read, if it is one of the first."""
    if len(counts.samples) < SAMPLES:
        counts.samples.append(line[:200])
