"""The values in a recorded event: numbers, error codes, frames, sptes.

A recording names no host-physical address. Frames are *canonical* numbers: of
a page in the guest's backing, or one of the names below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmulab.errors import quoted
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
_HEX_DIGITS = re.compile(r"(0x)?[0-9a-fA-F]{1,32}")
_LOWEST, _HIGHEST = -(1 << 63), (1 << 64) - 1
_PROBE_DIGIT = 10
"""Below it the recordings write an argument of a function probe as a JSON number."""


def frame_str(frame: int) -> str:
    """Print a canonical frame number.

    >>> frame_str(0x100), frame_str(FRAME_SP)
    ('0x100', 'sp')
    """
    return _FRAME_NAMES.get(frame) or hex(frame)


def hex_value(text: Any, bits: int = 64) -> int:
    """Read a number as recordings write it: hexadecimal, with or without ``0x``.

    Raises
    ------
    ValueError
        It is no such text, or has more than `bits` bits.

    Examples
    --------
    >>> hex_value("0x1f")
    31
    """
    if not isinstance(text, str) or not _HEX_DIGITS.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no hexadecimal number such as '0x1f'")
    value = int(text, 16)
    if value >> bits:
        raise ValueError(f"{_shown(text)} has more than {bits} bits")
    return value


def count_value(value: Any, low: int = _LOWEST, high: int = _HIGHEST) -> int:
    """Return a JSON number that is an integer in ``low..high``.

    Raises
    ------
    ValueError
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{_shown(value)} is no number in {low} to {high}")
    return value


def text_value(value: Any) -> str:
    """Return a JSON string.

    Raises
    ------
    ValueError
    """
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no text")
    return value


def list_value(value: Any) -> list[Any]:
    """Return a JSON array.

    Raises
    ------
    ValueError
    """
    if not isinstance(value, list):
        raise ValueError(f"{_shown(value)} is no list")
    return value


def object_value(value: Any) -> Record:
    """Return a JSON object.

    Raises
    ------
    ValueError
    """
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(value)} is no object")
    return value


def _shown(value: Any) -> str:
    return quoted(repr(value), 40)


def _frame(text: Any) -> int:
    known = _FRAME_NUMBERS.get(text_value(text))
    return hex_value(text) if known is None else known


def pferr_letters(code: int) -> str:
    """Print an error code as recordings do: letters, then ``|hex`` of the bits above 4.

    >>> pferr_letters(0x17), pferr_letters(0x100000004)
    ('PWUF', 'U|100000000')
    """
    text = "".join(letter for mask, letter in _PFERR_LETTERS if code & mask)
    high = code & ~_PFERR_LOW
    return f"{text}|{high:x}" if high else text


def _pferr(text: str) -> int:
    letters, bar, high = text_value(text).partition("|")
    code = hex_value(high) if bar else 0
    known = {letter: mask for mask, letter in _PFERR_LETTERS}
    for letter in letters:
        if letter not in known:
            raise ValueError(f"{_shown(text)} has the letter {_shown(letter)}, not one of PWURF")
        code |= known[letter]
    return code


def _spte(record: Record) -> int:
    value = hex_value(object_value(record)["v"])
    return value | _frame(record["f"]) << 12 if "f" in record else value


def _spte_record(spte: int) -> Record:
    if not spte & SPTE_MMU_PRESENT_MASK:
        return {"v": hex(spte)}
    frame = (spte & PT_BASE_ADDR_MASK) >> 12
    return {"v": hex(spte & ~PT_BASE_ADDR_MASK), "f": frame_str(frame)}


def _probe(value: Any) -> int:
    return hex_value(value) if isinstance(value, str) else count_value(value)


def _bool(value: Any) -> bool:
    return bool(count_value(value, 0, 1))


def _probe_record(value: int) -> int | str:
    return value if value < _PROBE_DIGIT else hex(value)


def _number_or_name(value: Any) -> Any:
    return value if isinstance(value, str) else count_value(value)


def _same(value: Any) -> Any:
    return value


class Kind(NamedTuple):
    """How the value of one key is written."""

    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]


HEX = Kind(hex_value, hex)
INT = Kind(_number_or_name, _same)
BOOL = Kind(_bool, int)
PROBE = Kind(_probe, _probe_record)
PFERR = Kind(_pferr, pferr_letters)
FRAME = Kind(_frame, frame_str)
SPTE = Kind(_spte, _spte_record)
INDEX = Kind(lambda index: 8 * count_value(index, 0, 511), lambda sptep: sptep >> 3)
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
