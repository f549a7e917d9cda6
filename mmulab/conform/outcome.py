"""Outcomes as a recording writes them.

A recorded outcome is a flat JSON object; :func:`decode_outcome` turns its
numbers into ints, :func:`encode_outcome` gives a model's outcome the same
form, so that the two compare key by key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmulab.conform.values import count_value, hex_value, list_value, object_value, text_value
from mmulab.errors import error_str, quoted
from mmulab.machine.op import Mmio, Outcome, OutcomeKind

HOST_DIED = str(OutcomeKind.HOST_DIED)
"""Outcome of an op that the kernel did not survive; ``words`` are the lines that it said."""
Decoded = dict[str, Any]
"""An outcome: ``out`` and the keys of that kind, numbers as ints."""


def _int(value: Any) -> int:
    return hex_value(value) if isinstance(value, str) else count_value(value)


def _mmio(exits: Any) -> list[Mmio]:
    return [
        Mmio(
            write=text_value(m["rw"]) == "w",
            gpa=_int(m["gpa"]),
            size=count_value(m["len"], 1, 8),
            value=_int(m["data"]),
        )
        for m in map(object_value, list_value(exits))
    ]


def _dirty(pages: Any) -> list[int]:
    return [hex_value(page) for page in text_value(pages).split(",") if page]


def _ring(pairs: Any) -> list[tuple[int, int]]:
    ring = []
    for pair in text_value(pairs).split(","):
        if pair:
            slot, _, offset = pair.partition(":")
            ring.append((hex_value(slot), hex_value(offset)))
    return ring


def _words(lines: Any) -> list[str]:
    return [text_value(line) for line in list_value(lines)]


def _name(value: Any) -> str:
    names = [str(kind) for kind in OutcomeKind]
    if text_value(value) not in names:
        raise ValueError(f"unknown outcome {quoted(value)!r}, expected one of {' '.join(names)}")
    return text_value(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "out": _name,
    "mmio": _mmio,
    "dirty": _dirty,
    "ring": _ring,
    "words": _words,
}


def decode_outcome(record: dict[str, Any]) -> Decoded:
    """Return a recorded outcome with its numbers as ints.

    Raises
    ------
    KeyError, TypeError, ValueError
        Not an outcome.
    """
    decoded = {
        key: _READERS[key](value) if key in _READERS else _int(value)
        for key, value in object_value(record).items()
    }
    if "out" not in decoded:
        raise KeyError("out")
    return decoded


def encode_outcome(outcome: Outcome) -> Decoded:
    """Return a model's outcome in the form of a decoded recorded one."""
    o = outcome
    fields: dict[OutcomeKind, tuple[tuple[str, Any], ...]] = {
        OutcomeKind.OK: (
            ("rip", o.rip),
            ("rax", o.rax),
            ("mmio", o.mmio or None),
            ("cf", o.cf),
            ("zf", o.zf),
        ),
        OutcomeKind.EXC: (
            ("vec", o.vector),
            ("err", o.error_code),
            ("rip", o.rip),
            ("cr2", o.cr2),
            ("mmio", o.mmio or None),
            ("zf", o.zf),
        ),
        OutcomeKind.HOST: (("ret", o.result), ("dirty", o.dirty), ("ring", o.ring)),
        OutcomeKind.INTERNAL_ERROR: (("sub", o.suberror),),
        OutcomeKind.SHUTDOWN: (),
        OutcomeKind.L2: (),
        OutcomeKind.VMFAIL: (("cf", o.cf), ("zf", o.zf), ("insnerr", o.error)),
        OutcomeKind.DIRTY_RING_FULL: (),
        OutcomeKind.HANG: (("errno", o.error),),
        OutcomeKind.HOST_DIED: (("words", o.words),),
        OutcomeKind.VMEXIT: tuple((o.vmexit or {}).items()),
    }
    encoded = {key: value for key, value in fields[o.kind] if value is not None}
    return {"out": str(o.kind), **encoded}


_AS_IT_IS = ("out", "words", "vec", "ret", "zf", "cf", "sub", "errno", "l1db")
"""Keys that a recording writes as texts or JSON numbers."""


def outcome_record(decoded: Decoded) -> dict[str, Any]:
    """Return an outcome as a recording writes it; the inverse of :func:`decode_outcome`."""
    return {key: _recorded(key, value) for key, value in decoded.items()}


def _recorded(key: str, value: Any) -> Any:
    if key == "mmio":
        return [
            {"rw": "w" if m.write else "r", "gpa": hex(m.gpa), "len": m.size, "data": hex(m.value)}
            for m in value
        ]
    if key == "dirty":
        return ",".join(f"{page:x}" for page in value)
    if key == "ring":
        return ",".join(f"{slot:x}:{offset:x}" for slot, offset in value)
    return value if key in _AS_IT_IS else hex(value)


def outcome_str(decoded: Decoded) -> str:
    """Print an outcome in one line, numbers in hex; what a call returned in decimal, an error with its name.

    >>> outcome_str({"out": "exc", "vec": 14, "err": 5})
    'exc vec=e err=5'
    >>> outcome_str({"out": "host", "ret": -22}), outcome_str({"out": "hang", "errno": 5})
    ('host ret=-22 EINVAL', 'hang errno=5 EIO')
    >>> outcome_str({"out": "host_died", "words": ["BUG: unable to handle page fault", "CPU: 0"]})
    'host_died: BUG: unable to handle page fault'
    """
    if decoded["out"] == HOST_DIED:
        return ": ".join([HOST_DIED, *decoded.get("words", ())[:1]])
    return " ".join([decoded["out"], *(f"{k}={_shown(k, v)}" for k, v in decoded.items() if k != "out")])


def _shown(key: str, value: Any) -> str:
    if key == "errno" or (key == "ret" and value < 0):
        return error_str(value)
    return str(value) if key == "ret" else _value(value)


def _value(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:x}"
    if isinstance(value, Mmio):
        return f"{'w' if value.write else 'r'}{value.size}@{value.gpa:x}={value.value:x}"
    if isinstance(value, tuple):
        return ":".join(_value(v) for v in value)
    return ",".join(_value(v) for v in value)
