"""The kernel's trace as it lies in memory: pages of the ring buffer, and what an event's bytes mean.

Source: Linux 6.1 ``kernel/trace/ring_buffer.c`` and
``include/linux/ring_buffer.h`` (the same in 6.12); the formats are what
``events/GROUP/NAME/format`` in tracefs says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from mmulab.errors import InputError, quoted

__all__ = ["EventFormat", "Field", "in_order", "parse_format", "payloads"]

_PAGE_HEADER = 16
_COMMIT_BYTES = (1 << 20) - 1
_MISSED_EVENTS = 1 << 31
_TYPE_BITS, _DELTA_BITS = 5, 27
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_FIELD = re.compile(r"field:(?P<declared>.*?);\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d);")
_NAME = re.compile(r"(\w+)\s*(\[[^\]]*\])?$")


class Field(NamedTuple):
    """One field of an event: where it lies, and how it is read."""

    name: str
    offset: int
    size: int
    signed: bool
    is_array: bool


class EventFormat(NamedTuple):
    """An event's layout.

    Attributes
    ----------
    id : int
        The first two bytes of the event.
    name : str
    fields : tuple of Field
        Without those that all events have.
    printed : str
        How the kernel prints it.
    """

    id: int
    name: str
    fields: tuple[Field, ...]
    printed: str

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return an event's fields: integers, and bytes where it is an array."""
        values: dict[str, Any] = {}
        for name, offset, size, signed, is_array in self.fields:
            raw = data[offset : offset + size]
            values[name] = raw if is_array else int.from_bytes(raw, "little", signed=signed)
        return values


def parse_format(text: str) -> EventFormat:
    """Read the text of a ``format`` file.

    Raises
    ------
    InputError
    """
    name = re.search(r"^name:\s*(\S+)", text, re.M)
    number = re.search(r"^ID:\s*(\d+)", text, re.M)
    if name is None or number is None:
        raise InputError(f"the trace's format '{quoted(text, 40)}': no name or ID in it")
    fields = []
    for declared, offset, size, signed in _FIELD.findall(text):
        found = _NAME.search(declared.strip())
        if found is None:
            raise InputError(f"the trace's format of {name[1]}: '{quoted(declared)}' declares no field")
        if not found[1].startswith("common_"):
            fields.append(Field(found[1], int(offset), int(size), signed == "1", bool(found[2])))
    printed = re.search(r"^print fmt:(.*)", text, re.M | re.S)
    return EventFormat(int(number[1]), name[1], tuple(fields), printed[1] if printed else "")


def in_order(pages: Iterable[bytes]) -> list[bytes]:
    """Return the bytes of each event in pages of any CPUs, in the order in which they were traced.

    The trace has the clock ``counter``, which all CPUs share.

    Raises
    ------
    InputError
        The kernel had to drop events.
    """
    found = [event for page in pages for event in payloads(page)]
    return [data for _, data in sorted(found, key=itemgetter(0))]


def payloads(page: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the time and the bytes of each event in a page, in order.

    Raises
    ------
    InputError
        The kernel had to drop events: they came faster than they were read.
    """
    time, commit = struct.unpack_from("<QQ", page)
    if commit & _MISSED_EVENTS:
        raise InputError("the kernel dropped events of the trace; record fewer at once")
    at, end = _PAGE_HEADER, min(_PAGE_HEADER + (commit & _COMMIT_BYTES), len(page))
    while at < end:
        (head,) = struct.unpack_from("<I", page, at)
        kind, delta = head & ((1 << _TYPE_BITS) - 1), head >> _TYPE_BITS
        if kind in (_TIME_EXTEND, _TIME_STAMP):
            delta |= struct.unpack_from("<I", page, at + 4)[0] << _DELTA_BITS
            time = delta if kind == _TIME_STAMP else time + delta
            at += 8
        elif kind == _PADDING:
            if not delta:
                return
            at += 4 + struct.unpack_from("<I", page, at + 4)[0]
        elif kind == 0:  # the length stands in front, and counts itself
            (length,) = struct.unpack_from("<I", page, at + 4)
            time += delta
            yield time, page[at + 8 : at + 4 + length]
            at += 4 + (length + 3) // 4 * 4
        else:
            time += delta
            yield time, page[at + 4 : at + 4 + 4 * kind]
            at += 4 + 4 * kind
