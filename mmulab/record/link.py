"""The link to a recording host: a file that both sides see, a mailbox for one job and a ring for answers.

``vmm/link.h`` is the other side: there the file is the memory of a device, or a
disk. What the host has written is here at once and stays here when its kernel dies.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmulab.errors import InputError

__all__ = ["LINK_BYTES", "Kind", "Link", "Record"]

LINK_BYTES = 64 << 20
_MAILBOX, _RING = 0x1000, 0x400000
_JOB, _JOB_BYTES, _CONSUMED, _PRODUCED = 8, 16, 24, 512
"""Words; a disk is written by sectors, so what the host writes lies in one of its own."""
_POWER_OFF = (1 << 64) - 1
_HEAD = 8


class Kind:
    """What a record is, by its first byte (``vmm/host.h``)."""

    FILE = ord("F")
    CPUID = ord("C")
    READY = ord("R")
    BEGIN = ord("B")
    OUTCOME = ord("L")
    TRACE = ord("T")
    FRAMES = ord("P")
    TOTAL = ord("S")
    NOTE = ord("W")
    ERROR = ord("X")
    DONE = ord("D")


class Record(NamedTuple):
    """One record: its kind and what it holds."""

    kind: int
    data: bytes

    @property
    def text(self) -> str:
        """What it holds, as text."""
        return self.data.decode("utf-8", "replace")


class Link:
    """The outer end of the link.

    Parameters
    ----------
    path : Path
        The file that is the device's memory, or the disk; it is made.
    size : int
        Bytes of it, a power of two.
    """

    def __init__(self, path: Path, size: int = LINK_BYTES) -> None:
        with open(path, "w+b") as file:
            file.truncate(size)
            self.memory = mmap.mmap(file.fileno(), size)
        self.ring_bytes = size - _RING
        self.jobs = 0

    def close(self) -> None:
        """Let go of the memory."""
        self.memory.close()

    def send(self, job: str) -> None:
        """Put a job into the mailbox; the one before must be done.

        Raises
        ------
        InputError
            It is larger than the mailbox.
        """
        data = job.encode()
        if len(data) > _RING - _MAILBOX:
            raise InputError(f"the scenario has {len(data)} bytes as a job; {_RING - _MAILBOX} are the limit")
        self.memory[_MAILBOX : _MAILBOX + len(data)] = data
        self.jobs += 1
        self._set(_JOB_BYTES, len(data))
        self._set(_JOB, self.jobs)

    def power_off(self) -> None:
        """Tell the host to end."""
        self._set(_JOB, _POWER_OFF)

    def records(self) -> Iterator[Record]:
        """Yield what has come since the last call."""
        produced, at = self._get(_PRODUCED), self._get(_CONSUMED)
        while at < produced:
            kind, length = struct.unpack("<II", self._read(at, _HEAD))
            data = self._read(at + _HEAD, length)
            at += (_HEAD + length + 7) // 8 * 8
            self._set(_CONSUMED, at)
            yield Record(kind, data)

    def _get(self, word: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, word)[0])

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, word, value)

    def _read(self, at: int, length: int) -> bytes:
        start = at % self.ring_bytes
        head = min(length, self.ring_bytes - start)
        first = self.memory[_RING + start : _RING + start + head]
        return first + self.memory[_RING : _RING + length - head]
