"""A trace that was read: columns for each kind of event, and what was not read, counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.ftrace.forms import Column
from mmulab.ftrace.layout import Layout
from mmulab.ftrace.lines import Lost, Place

NOT_READ = 255
"""The layout of a row whose text no layout fits."""
UNKNOWN_TIME = -1


class TracedEvent(NamedTuple):
    """One event: when (ns, -1 if unknown), who and where, its name, and the fields that are told."""

    time: int
    place: Place
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """All events of one name, a row each.

    Attributes
    ----------
    at : array
        The number of each event in the trace.
    layout : array
        Which of `layouts` each line had; :data:`NOT_READ` if none.
    layouts : tuple of Layout
    columns : mapping of str to array
        A field that a row's layout does not tell is 0 or "" there; see :meth:`told`.
    """

    at: npt.NDArray[np.int64]
    layout: npt.NDArray[np.uint8]
    layouts: tuple[Layout, ...]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def told(self, name: str) -> npt.NDArray[np.bool_]:
        """Return for each row whether it tells the field `name`."""
        has = np.array([name in one.forms for one in self.layouts] + [False] * (256 - len(self.layouts)))
        found: npt.NDArray[np.bool_] = has[self.layout]
        return found

    def telling(self, *names: str) -> Table:
        """Return the rows that tell all of some fields."""
        rows = np.logical_and.reduce([self.told(name) for name in names])
        if rows.all():
            return self
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Table(self.at[rows], self.layout[rows], self.layouts, columns)

    def fields(self, row: int) -> dict[str, Any]:
        """Return what a row tells."""
        number = int(self.layout[row])
        if number == NOT_READ:
            return {}
        layout = self.layouts[number]
        return {name: _plain(self.columns[name][row]) for name in layout.fields}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@dataclass
class Counts:
    """What was in the text, in lines.

    Attributes
    ----------
    passed : int
        Headings, marks of a cut, empty lines.
    frames : int
        Lines of stacks.
    private : int
        Events that a program of somebody's own printed, read by their fields' names.
    joined : int
        Lines that a mailer had wrapped, put together again.
    unread : int
        Lines that are none of these.
    long : int
        Lines that are too long to be an event's.
    binary : int
        Of the lines not read those with characters that no text has.
    hierarchies : int
        Of the lines not read those of a log that show a shadow entry.
    unreadable : dict of str to int
        Events of a known name whose text no layout fits.
    unknown : dict of str to int
        Events of names that are not known here.
    samples : list of str
        The first lines that were not read.
    ended : str
        How the file ended before its time; "" if it did not.
    """

    lines: int = 0
    passed: int = 0
    frames: int = 0
    private: int = 0
    joined: int = 0
    unread: int = 0
    long: int = 0
    binary: int = 0
    hierarchies: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    ended: str = ""


@dataclass(frozen=True)
class Trace:
    """A trace, in the text's order.

    Attributes
    ----------
    names : tuple of str
    kind : array
        Each event's name, by its number in `names`.
    row : array
        Its row in the table of that name.
    time : array
        Nanoseconds (ticks, if the text has no points in its times); -1 where it is not told.
    place : array
        Who and where, by the number in `places`.
    tables : mapping of str to Table
        Of the names whose fields are known.
    lost : list of Lost
    stacks : mapping of int to list of str
        The functions of an event's stack, by the event's number, the innermost first.
    """

    names: tuple[str, ...]
    kind: npt.NDArray[np.uint16]
    row: npt.NDArray[np.uint32]
    time: npt.NDArray[np.int64]
    place: npt.NDArray[np.uint32]
    places: tuple[Place, ...]
    tables: Mapping[str, Table]
    lost: list[Lost]
    stacks: Mapping[int, list[str]]
    counts: Counts

    def __len__(self) -> int:
        return len(self.kind)

    @cached_property
    def event_counts(self) -> dict[str, int]:
        """How many events there are of each name, the most first."""
        numbers = np.bincount(self.kind, minlength=len(self.names))
        pairs = [(name, int(count)) for name, count in zip(self.names, numbers, strict=True) if count]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))

    def event(self, number: int) -> TracedEvent:
        """Return one event."""
        name = self.names[self.kind[number]]
        table = self.tables.get(name)
        fields = {} if table is None else table.fields(int(self.row[number]))
        return TracedEvent(int(self.time[number]), self.places[self.place[number]], name, fields)

    def events(self) -> Iterator[TracedEvent]:
        """Yield every event."""
        return map(self.event, range(len(self)))

    @cached_property
    def thread_counts(self) -> dict[int, int]:
        """How many events each thread has, by its pid; -1 for those of whom it is not told."""
        counts: dict[int, int] = {}
        numbers = np.bincount(self.place, minlength=len(self.places)).tolist()
        for place, number in zip(self.places, numbers, strict=True):
            counts[place.pid] = counts.get(place.pid, 0) + number
        return counts

    @cached_property
    def vcpu_threads(self) -> dict[int, list[int]]:
        """The threads that ran each vCPU, as far as events tell; more than one is more than one VM."""
        found: dict[int, set[int]] = {}
        pids = np.array([place.pid for place in self.places])
        for name in ("kvm_exit", "kvm_entry", "kvm_page_fault"):
            table = self.tables.get(name)
            table = None if table is None else table.telling("vcpu_id")
            if table is None or not len(table):
                continue
            pairs = np.stack([table["vcpu_id"].astype(np.int64), pids[self.place[table.at]]])
            for vcpu, pid in np.unique(pairs, axis=1).T.tolist():
                found.setdefault(vcpu, set()).update({pid} - {-1})
        return {vcpu: sorted(threads) for vcpu, threads in sorted(found.items())}
