"""Role words out of the text that a trace prints of them.

The kernel's tracepoints print a part of the word, the plugin of trace-cmd another; a
wording (:mod:`mmulab.kvm.roles.wording`) read backwards gives the bits that are told.
The fields that are not told can have any value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mmulab.kvm.roles.decoders import DECODERS
from mmulab.kvm.roles.word import RoleLayout
from mmulab.kvm.roles.wording import Part, Wording

KERNEL = "the kernel"
"""Who prints a role in the kernel's own words."""
_RAW = re.compile(r"\bWORD: ([0-9a-f]{8})\b")
"""What the plugin prints of a file from a machine of the other byte order."""
_OWN = re.compile(r" \[([a-z_0-9 ]+)\]")
"""What the model's own lines add in brackets: the fields that the trace hides and that are set."""
OWN_NAMES = {
    "wp": "cr0_wp",
    "smep_nwp": "smep_andnot_wp",
    "smap_nwp": "smap_andnot_wp",
    "guest_mode": "guest_mode",
    "passthrough": "passthrough",
    "smm": "smm",
}
"""The words in these brackets, and the fields that they name."""


class TracedRole(NamedTuple):
    """A role as far as a text tells it.

    Attributes
    ----------
    word : int
        The bits told; all others are 0.
    hidden : tuple of str
        Fields of the layout of which some bit is not told, the lowest first.
    by : str
        Who printed the text: the kernel, or a tool by name.
    """

    word: int
    hidden: tuple[str, ...]
    by: str


class _Source(NamedTuple):
    """Someone who prints roles: in which words, and what its names mean as bits."""

    by: str
    wording: Wording
    layout: RoleLayout


def read_trace(text: str, layout: RoleLayout, wording: Wording | None) -> TracedRole | None:
    """Return the role that a line of a trace tells; None if it tells none.

    Parameters
    ----------
    text : str
    layout : RoleLayout
        The kernel's.
    wording : Wording or None
        The kernel's; None if it prints no roles.

    Examples
    --------
    >>> from mmulab.kvm.roles.history import find_role_version
    >>> v = find_role_version("6.1")
    >>> found = read_trace("sp gen 0 gfn 100 l1 4-byte q0 direct wux nxe ad root 0 sync", v.layout, v.wording)
    >>> hex(found.word), found.hidden[:2]
    ('0x1791', ('cr0_wp', 'smep_andnot_wp'))
    """
    raw = _RAW.search(text)
    if raw is not None:
        return TracedRole(int(raw[1], 16), (), "trace-cmd, which could not read it")
    for source in _sources(layout, wording):
        match = _pattern(source.wording).search(text)
        if match is not None:
            return _read(source, match, text[match.end() :], layout)
    return None


def _sources(layout: RoleLayout, wording: Wording | None) -> Iterator[_Source]:
    if wording is not None:
        yield _Source(KERNEL, wording, layout)
    for tool in reversed(DECODERS):
        yield _Source(tool.name, tool.wording, tool.layout)


def _read(source: _Source, match: re.Match[str], rest: str, layout: RoleLayout) -> TracedRole | None:
    word = told = 0
    for index, part in enumerate(source.wording):
        value = _value(part, match[f"p{index}"])
        most = source.layout.mask[part.field] >> source.layout.shift[part.field]
        if value > most:
            return None
        word = source.layout.set(word, part.field, value)
        told |= source.layout.mask[part.field] if _is_exact(part, value, most) else 0
    own = _OWN.match(rest)
    if own is not None:
        told |= sum(layout.mask.get(name, 0) for name in OWN_NAMES.values())
        word |= _own_bits(own[1].split(), layout)
    hidden = tuple(name for name, mask in layout.mask.items() if mask & ~told)
    return TracedRole(word, hidden, source.by)


def _own_bits(names: Sequence[str], layout: RoleLayout) -> int:
    named = (field for name, field in OWN_NAMES.items() if name in names and field in layout.shift)
    return sum(1 << layout.shift[field] for field in named)


def _pattern(wording: Wording) -> re.Pattern[str]:
    """Return what matches the wording's texts, with a group ``p0``, ``p1``.. for each part."""
    parts = "".join(f"(?P<p{index}>{_texts(part)})" for index, part in enumerate(wording))
    return re.compile(rf"(?<!\S){parts}(?!\S)")


def _texts(part: Part) -> str:
    if isinstance(part.texts, str):
        return r"[0-9]{1,3}".join(map(re.escape, part.texts.split("{}")))
    return "|".join(re.escape(text) for text in sorted(part.texts, key=len, reverse=True))


def _value(part: Part, text: str) -> int:
    if isinstance(part.texts, str):
        before, _, after = part.texts.partition("{}")
        return int(text[len(before) : len(text) - len(after)])
    return part.texts.index(text)


def _is_exact(part: Part, value: int, most: int) -> bool:
    """Whether the text tells this very value; the last of few texts stands for all values above."""
    return isinstance(part.texts, str) or value < len(part.texts) - 1 or value == most
