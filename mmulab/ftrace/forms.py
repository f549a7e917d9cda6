"""How one field stands in a line: its pattern, its numbers, its text.

A form is named in a template as Python's own format is (``{gfn:x}``, ``{info1:#018x}``, ``{level:d}``), or
by a word of :data:`FORMS`. Numbers are read with ``0x`` or without and with any number of zeros, because
libtraceevent prints a few of them otherwise than the kernel does.

Source: Linux 6.1 ``lib/vsprintf.c``, ``include/trace/stages/stage3_trace_output.h``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.x86.exceptions import EXCEPTIONS
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

Column = npt.NDArray[Any]
FLAGS = {
    "P": PFERR_PRESENT_MASK,
    "W": PFERR_WRITE_MASK,
    "U": PFERR_USER_MASK,
    "RSVD": PFERR_RSVD_MASK,
    "F": PFERR_FETCH_MASK,
}
"""The bits that the trace has names for (``kvm_mmu_trace_pferr_flags``)."""
NULL = ("(null)", "(____ptrval____)")


class Form(NamedTuple):
    """One way to print a field.

    Attributes
    ----------
    pattern : str
        A regular expression with one group.
    dtype : str
        The column's type; "" for text.
    read : callable
        A text's value.
    write : callable
        A value's text.
    """

    pattern: str
    dtype: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]

    def column(self, texts: Sequence[str]) -> Column:
        """Return the values of many texts; raises ``OverflowError`` if one is too large."""
        if not self.dtype:
            return np.array(list(map(intern, texts)), object)
        return np.fromiter(map(self.read, texts), self.dtype, len(texts))


def flags_text(code: int) -> str:
    """Name the bits of an error code as the kernel's trace does; bits without a name follow as a number.

    >>> flags_text(0x100000007), flags_text(0)
    ('P|W|U|0x100000000', '')
    """
    rest = code & ~sum(FLAGS.values())
    named = [name for name, mask in FLAGS.items() if code & mask]
    return "|".join([*named, hex(rest)] if rest else named)


def _flags(text: str) -> int:
    words = text.split("|") if text else []
    return sum(FLAGS[word] if word in FLAGS else int(word, 16) for word in words)


_hex = partial(int, base=16)


def _any_base(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)


def _pointer(text: str) -> int:
    return 0 if text in NULL else int(text, 16)


def _pointer_text(value: int) -> str:
    return f"{value:016x}" if value else NULL[0]


def _exception(text: str) -> int:
    return _VECTORS[text] if text in _VECTORS else int(text, 16)


_VECTORS = {name: vector for vector, name in EXCEPTIONS.items()}
_FLAG = f"(?:{'|'.join(FLAGS)}|0x[0-9a-f]{{1,16}})"
_DIGITS = "(?:0x)?([0-9a-f]{1,16})"


def choice(*texts: str, first: int = 0) -> Form:
    """Return the form of a field with few values, one text each, counted from `first`."""
    values = {text: number for number, text in enumerate(texts, first)}
    longest = sorted(texts, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest))
    return Form(f"({pattern})", "i8", values.__getitem__, lambda value: texts[int(value) - first])


FORMS: Mapping[str, Form] = {
    "d": Form(r"(-?\d{1,18})", "i8", int, "{:d}".format),
    "signed": Form(r"(0x[0-9a-f]{1,15}|-?\d{1,18})", "i8", _any_base, "{:d}".format),
    "unsigned": Form(r"(0x[0-9a-f]{1,16}|\d{1,19})", "u8", _any_base, "{:#x}".format),
    "flags": Form(rf"({_FLAG}(?:\|{_FLAG})*|)", "u8", _flags, flags_text),
    "pointer": Form(
        r"((?:0x)?[0-9a-f]{1,16}|" + "|".join(map(re.escape, NULL)) + ")", "u8", _pointer, _pointer_text
    ),
    "exception": Form(
        "(" + "|".join(_VECTORS) + "|0x[0-9a-f]{1,2})",
        "u8",
        _exception,
        lambda value: EXCEPTIONS.get(int(value), f"{value:#x}"),
    ),
    "text": Form(r"(\S.*?)", "", str, str),
    "word": Form(r"(\S+)", "", str, str),
    "bytes": Form(r"((?:[0-9a-f]{2}(?: [0-9a-f]{2})*)?)", "", str, str),
    "role": Form(r"(l\d+ \d-byte q\S.*?)", "", str, str),
    "old_role": Form(r"(l?\d\S* (?:pae|q\d)\b.*?|WORD: [0-9a-f]{8})", "", str, str),
    "sync": choice("sync", "unsync"),
    "created": choice("existing", "new"),
    "r": choice("-", "r"),
    "w": choice("-", "w"),
    "x_": choice("-", "x"),
    "u": choice("", "-", "u", first=-1),
    "rw": choice("read", "write"),
    "RW": choice("Read", "Write"),
    "yn": choice("n", "y"),
    "on": choice("off", "on"),
    "failed": choice("", " failed"),
    "FAIL": choice("", " FAIL"),
    "gp": choice("", " (#GP)"),
    "reinjected": choice("", " [reinjected]"),
    "immediate": choice("", "[immediate exit]"),
    "entering": choice("leaving", "entering"),
    "load": choice("unload", "load"),
    "soft": choice("IRQ", "Soft/INTn"),
    "found": choice("not found", "found"),
    "max_basic": choice("", ", used max basic"),
    "gpa": choice("GVA", "GPA"),
}
"""Forms that have a word for a name. A choice's values count from 0, those of ``u`` from -1 (no user bit)."""


def form(spec: str) -> Form:
    """Return the form that a template names."""
    if spec.endswith("x") and spec not in FORMS:
        return Form(_DIGITS, "u8", _hex, ("{:" + spec + "}").format)
    return FORMS[spec]
