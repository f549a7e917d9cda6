"""Read a trace: lines into columns, a block at a time.

Most lines are plain: they are split at ``": "`` and sorted by their event's name, and a whole block's lines
of one name go through one regular expression. What is not plain goes through :meth:`Reader._odd`, line by
line.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from mmulab.errors import InputError, named, quoted
from mmulab.ftrace.kind import Kind, count_unread, is_probe
from mmulab.ftrace.layouts import FOREIGN, LAYOUTS
from mmulab.ftrace.lines import (
    HEADER_ONLY,
    HIERARCHY,
    NAMED,
    PRIVATE,
    STACK,
    UNKNOWN_PLACE,
    Lost,
    Place,
    frame,
    is_passed,
    lost,
    names_cpu,
    read_header,
    read_place,
    read_time,
)
from mmulab.ftrace.source import LONGEST, STDIN, Ended, clean, is_binary, read_blocks
from mmulab.ftrace.trace import UNKNOWN_TIME, Counts, Trace

MOST_NAMES = 4096
"""Names of events; the kernel has some 2,000."""
MOST_STACKS = 100_000
MOST_TAIL = 4
"""Lines that a mailer makes of one event, but for the first."""
_NO_HEAD = ""


def read_trace(path: str, stdin: IO[bytes] | None = None) -> Trace:
    """Read a trace of any of the three texts.

    Parameters
    ----------
    path : str
        A file, packed or not; ``-`` for standard input.
    stdin : file, optional

    Raises
    ------
    InputError
        There is no event of a trace in it.
    """
    reader = Reader()
    with _without_collection():
        for block in read_blocks(path, stdin):
            if isinstance(block, Ended):
                reader.counts.ended = block.why
            else:
                reader.block(block)
    trace = reader.trace()
    if not len(trace):
        raise InputError(f"{'standard input' if path == STDIN else named(path)}: {_nothing(trace.counts)}")
    return trace


@contextmanager
def _without_collection() -> Iterator[None]:
    """Hold the collector of cycles: a block makes a million tuples that no cycle goes through."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_text(text: str) -> Trace:
    """Read a trace from a text; one without events gives an empty trace."""
    reader = Reader()
    reader.block(clean(text))
    return reader.trace()


def _nothing(counts: Counts) -> str:
    if counts.ended:
        return f"{counts.ended}, and no event of a trace before that; copy it again"
    if counts.binary:
        return "binary, no text of a trace; give what trace_pipe, 'trace-cmd report' or 'perf script' prints"
    if counts.hierarchies:
        return (
            f"no event of a trace in {counts.lines} lines, but a kernel's log with shadow entries; give those"
            " to 'mmulab spte decode'"
        )
    sample = f", as '{quoted(counts.samples[0])}'" if counts.samples else ""
    return (
        f"no event of a trace in {counts.lines} lines{sample}; give what trace_pipe, 'trace-cmd report' or"
        " 'perf script' prints"
    )


class Reader:
    """Takes blocks of whole lines and gives the trace."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._kinds: list[Kind] = []
        self._by_name: dict[str, Kind] = {}
        self._aliases: dict[str, Kind] = {}
        self._places: dict[str, int] = {}
        self._order: list[np.ndarray] = []
        self._times: list[np.ndarray] = []
        self._where: list[np.ndarray] = []
        self._lost: list[Lost] = []
        self._stacks: dict[int, list[str]] = {}
        self._before = 0
        self._last: Kind | None = None
        self._pending = ""
        self._heads: list[str] = []
        self._numbers: list[int] = []

    def block(self, text: str) -> None:
        """Read one block."""
        lines = text.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        if not lines:
            return
        self.counts.lines += len(lines)
        if max(map(len, lines)) > LONGEST:
            lines = self._short(lines)
        self._plain(lines)
        self._finish()

    def _short(self, lines: list[str]) -> list[str]:
        short = [line for line in lines if len(line) <= LONGEST]
        self.counts.long += len(lines) - len(short)
        return short

    def _plain(self, lines: list[str]) -> None:
        aliases, heads, numbers = self._aliases, self._heads, self._numbers
        last = self._last
        for line in lines:
            try:
                head, name, text = line.split(": ", 2)
                kind = aliases[name]
            except (ValueError, KeyError):
                self._last = last
                self._odd(line)
                last = self._last
                continue
            if head[-1:].isdigit() and not self._pending:
                last = kind
                heads.append(head)
                numbers.append(kind.number)
                kind.texts.append(text)
            else:
                self._last = last
                self._odd(line)
                last = self._last
        self._last = last

    def _odd(self, line: str) -> None:
        if self._pending:
            line = self._completed(line)
        found = read_header(line)
        if found is not None and self._event(*found):
            return
        if HEADER_ONLY.fullmatch(line):
            self._pending = line.rstrip()
        elif (gap := lost(line)) is not None:
            self._lost.append(gap._replace(before=self._before + len(self._heads)))
        elif (function := frame(line)) is not None:
            self._frame(function)
        elif is_passed(line):
            self.counts.passed += 1
            self._last = None
        elif not self._without_head(line):
            self._tail(line)

    def _completed(self, line: str) -> str:
        """Return a line behind the head that a mailer parted from it."""
        head, self._pending = self._pending, ""
        if names_cpu(line):  # an event of its own
            count_unread(self.counts, head)
            return line
        self.counts.joined += 1
        return f"{head} {line.strip()}"

    def _event(self, place: str, time: str, rest: str) -> bool:
        """Take an event with who, where and when; False if there is no name in it."""
        if rest == STACK:
            self.counts.frames += 1
            return True
        named_ = NAMED.fullmatch(rest)
        kind = None if named_ is None else self._kind(named_[1])
        if named_ is None or kind is None:
            return False
        self._aliases.setdefault(named_[1], kind)
        self._push(kind, f"{place} {time}", named_[2])
        return True

    def _without_head(self, line: str) -> bool:
        """Take an event of which only name and text are left, or one of a program of somebody's own."""
        found = NAMED.fullmatch(line)
        if found is not None and (_bare(found[1]) in LAYOUTS or is_probe(found[2])):
            kind = self._kind(found[1])
            if kind is not None:
                self._push(kind, _NO_HEAD, found[2])
            return kind is not None
        private = PRIVATE.fullmatch(line)
        if private is None or private[2].count("=") < 2:
            return False
        kind = self._foreign(private[1], private[2])
        if kind is None:
            return False
        self.counts.private += 1
        self._push(kind, _NO_HEAD, private[2])
        return True

    def _foreign(self, name: str, text: str) -> Kind | None:
        fields = {pair.partition("=")[0] for pair in text.split()}
        for told, (kernels, renamed) in FOREIGN.items():
            if told <= fields:
                kind = self._kind(kernels)
                if kind is not None:
                    kind.by_text, kind.renamed = True, renamed
                return kind
        return self._kind(name)

    def _push(self, kind: Kind, head: str, text: str) -> None:
        self._heads.append(head)
        self._numbers.append(kind.number)
        kind.texts.append(text)
        self._last = kind

    def _frame(self, function: str) -> None:
        self.counts.frames += 1
        event = self._before + len(self._heads) - 1
        if event >= 0 and (event in self._stacks or len(self._stacks) < MOST_STACKS):
            self._stacks.setdefault(event, []).append(function)

    def _tail(self, line: str) -> None:
        """Keep a line that is nothing of its own with the event before it, if there is one."""
        kind = self._last
        if kind is not None and kind.texts:
            tail = kind.tails.setdefault(len(kind.texts) - 1, [])
            if len(tail) < MOST_TAIL:
                tail.append(line.strip())
                return
        self.counts.binary += is_binary(line)
        self.counts.hierarchies += HIERARCHY.search(line) is not None
        count_unread(self.counts, line)

    def _kind(self, name: str) -> Kind | None:
        name = _bare(name)
        kind = self._by_name.get(name)
        if kind is None and len(self._kinds) < MOST_NAMES:
            known = LAYOUTS.get(name)
            kind = Kind(name, len(self._kinds), list(known or ()), by_text=known is None)
            self._by_name[name] = kind
            self._kinds.append(kind)
        return kind

    def _finish(self) -> None:
        """Turn what the block had into columns."""
        heads, numbers = self._heads, self._numbers
        for kind in self._kinds:
            if kind.texts:
                kind.read(self.counts)
        self._last = None
        if not heads:
            return
        parts = [head.rpartition(" ") for head in heads]
        places = self._places
        self._where.append(np.array([places.setdefault(part[0], len(places)) for part in parts], np.uint32))
        self._times.append(_times([part[2] for part in parts]))
        self._order.append(np.array(numbers, np.uint16))
        self._before += len(heads)
        self._heads, self._numbers = [], []

    def trace(self) -> Trace:
        """Return what was read."""
        if self._pending:
            count_unread(self.counts, self._pending)
        kind = _joined(self._order, np.uint16)
        row = np.zeros(len(kind), np.uint32)
        tables = {}
        for one in self._kinds:
            at = np.flatnonzero(kind == one.number)
            row[at] = np.arange(len(at), dtype=np.uint32)
            table = one.table(at)
            if table is not None:
                tables[one.name] = table
            elif one.rows:
                self.counts.unknown[one.name] = one.rows
        return Trace(
            tuple(one.name for one in self._kinds),
            kind,
            row,
            _joined(self._times, np.int64),
            _joined(self._where, np.uint32),
            tuple(map(_place, self._places)),
            tables,
            self._lost,
            self._stacks,
            self.counts,
        )


def _bare(name: str) -> str:
    """Return an event's name without its group, which perf prints."""
    return name.rpartition(":")[2].strip()


def _place(text: str) -> Place:
    found = read_place(text.strip())
    return UNKNOWN_PLACE._replace(task=text.strip()) if found is None else found


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _times(texts: list[str]) -> np.ndarray:
    """Return times in nanoseconds; most texts have six digits after the point."""
    if "".join([text[-7:-6] for text in texts]) == "." * len(texts):
        try:
            micro = np.array(list(map(int, "\n".join(texts).replace(".", "").split("\n"))), np.int64)
        except (ValueError, OverflowError):
            return np.array(list(map(_time, texts)), np.int64)
        return micro * 1000
    return np.array(list(map(_time, texts)), np.int64)


def _time(text: str) -> int:
    if not text or not text.replace(".", "", 1).isdecimal() or len(text) > 17 or not text.isascii():
        return UNKNOWN_TIME
    return read_time(text)
