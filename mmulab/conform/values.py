"""The values in a recorded event: numbers, error codes, frames, sptes.

A recording names no host-physical address. Frames are *canonical* numbers: of
a page in the guest's backing, or one of the names below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

FRAME_SP = (1 << 40) - 1
"""Canonical frame number of a shadow page (recorded ``sp``)."""
FRAME_HOST = (1 << 40) - 2
"""Canonical frame number of a host frame outside backing and tables (recorded ``host``)."""
PFN_NOSLOT = 1 << 63
"""``KVM_PFN_NOSLOT`` (Linux 6.1 ``include/linux/kvm_host.h``), recorded ``noslot``."""

Record = dict[str, Any]
"""A JSON object as a recording holds it."""

_FRAME_NAMES = {FRAME_SP: "sp", FRAME_HOST: "host", PFN_NOSLOT: "noslot"}
_FRAME_NUMBERS = {name: number for number, name in _FRAME_NAMES.items()}
_PFERR_LETTERS = (
    (PFERR_PRESENT_MASK, "P"),
    (PFERR_WRITE_MASK, "W"),
    (PFERR_USER_MASK, "U"),
    (PFERR_RSVD_MASK, "R"),
    (PFERR_FETCH_MASK, "F"),
)
_PFERR_LOW = sum(mask for mask, _ in _PFERR_LETTERS)
_MMIO_TYPES = {"read": "read", "write": "write", "unsat_read": "unsatisfied-read"}
_MMIO_NAMES = {name: recorded for recorded, name in _MMIO_TYPES.items()}
_PROBE_DIGIT = 10
"""Below it the recordings write an argument of a function probe as a JSON number."""


def frame_str(frame: int) -> str:
    """Print a canonical frame number.

    >>> frame_str(0x100), frame_str(FRAME_SP)
    ('0x100', 'sp')
    """
    return _FRAME_NAMES.get(frame) or hex(frame)


def _frame(text: str) -> int:
    known = _FRAME_NUMBERS.get(text)
    return int(text, 16) if known is None else known


def pferr_letters(code: int) -> str:
    """Print an error code as recordings do: letters, then ``|hex`` of the bits above 4.

    >>> pferr_letters(0x17), pferr_letters(0x100000004)
    ('PWUF', 'U|100000000')
    """
    text = "".join(letter for mask, letter in _PFERR_LETTERS if code & mask)
    high = code & ~_PFERR_LOW
    return f"{text}|{high:x}" if high else text


def _pferr(text: str) -> int:
    letters, _, high = text.partition("|")
    code = int(high, 16) if high else 0
    known = {letter: mask for mask, letter in _PFERR_LETTERS}
    for letter in letters:
        code |= known[letter]
    return code


def _spte(record: Record) -> int:
    value = int(record["v"], 16)
    return value | _frame(record["f"]) << 12 if "f" in record else value


def _spte_record(spte: int) -> Record:
    if not spte & SPTE_MMU_PRESENT_MASK:
        return {"v": hex(spte)}
    frame = (spte & PT_BASE_ADDR_MASK) >> 12
    return {"v": hex(spte & ~PT_BASE_ADDR_MASK), "f": frame_str(frame)}


def _hex(text: str) -> int:
    return int(text, 16)


def _probe(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 16)


def _probe_record(value: int) -> int | str:
    return value if value < _PROBE_DIGIT else hex(value)


def _same(value: Any) -> Any:
    return value


class Kind(NamedTuple):
    """How the value of one key is written."""

    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]


HEX = Kind(_hex, hex)
INT = Kind(_same, _same)
BOOL = Kind(bool, int)
PROBE = Kind(_probe, _probe_record)
PFERR = Kind(_pferr, pferr_letters)
FRAME = Kind(_frame, frame_str)
SPTE = Kind(_spte, _spte_record)
INDEX = Kind(lambda index: 8 * index, lambda sptep: sptep >> 3)
MMIO = Kind(_MMIO_TYPES.__getitem__, _MMIO_NAMES.__getitem__)
RW = Kind(lambda rw: rw == "w", lambda write: "w" if write else "r")


class FrameMap(NamedTuple):
    """Which host frames are the guest's backing, which are tables.

    Attributes
    ----------
    backing, backing_frames : int
        First frame and number of frames of the guest's backing.
    """

    backing: int
    backing_frames: int

    def frame(self, frame: int) -> int:
        """Return the canonical number of a host frame."""
        page = frame - self.backing
        if 0 <= page < self.backing_frames:
            return page
        return FRAME_SP if 0 < frame < self.backing else FRAME_HOST

    def pfn(self, pfn: int) -> int:
        """Return the canonical number of a ``kvm_pfn_t``."""
        return PFN_NOSLOT if pfn & PFN_NOSLOT else self.frame(pfn)

    def spte(self, spte: int) -> int:
        """Return an spte with its frame, if it is present, replaced."""
        if not spte & SPTE_MMU_PRESENT_MASK:
            return spte
        return spte & ~PT_BASE_ADDR_MASK | self.frame((spte & PT_BASE_ADDR_MASK) >> 12) << 12
