"""A short tour of the shadow MMU: from the first miss to a page out of sync and back.

The guest maps one data page, and its own lowest page table beside it, so that
it can change the data page's entry as an operating system does.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.scenario.builder import FIRST_TABLE, ScenarioBuilder
from mmulab.scenario.grammar import GrammarError
from mmulab.scenario.scenario import Scenario
from mmulab.x86.mode import (
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)

ROOT = 0x10000
PAGE = 4096
_CLEAN = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK
_TABLE = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK


class Shape(NamedTuple):
    """What a tour needs to know of a mode.

    Attributes
    ----------
    mode : str
        Its name in the scenario language.
    levels : int
        Of the guest's tables.
    entry_bytes : int
    region : int
        Bytes that one entry of the root maps; the first of them holds helper pages.
    regions : int
        Number of such entries below the sign bit.
    """

    mode: str
    levels: int
    entry_bytes: int
    region: int
    regions: int


SHAPES = {
    "32-bit": Shape("32", 2, 4, 1 << 22, 1 << 10),
    "pae": Shape("pae", 3, 8, 1 << 30, 4),
    "4-level": Shape("64", 4, 8, 1 << 39, 1 << 8),
    "5-level": Shape("57", 5, 8, 1 << 48, 1 << 8),
}
"""The paging modes that a tour may have."""


class Stop(NamedTuple):
    """One op of the tour and why it is there."""

    op: str
    why: str


@dataclass(frozen=True, slots=True)
class Tour:
    """A tour's scenario and the addresses in it.

    Attributes
    ----------
    scenario : Scenario
    stops : tuple of Stop
        Its ops, the reader's own included.
    data : int
        Guest-virtual address of the data page.
    entry : int
        Guest-virtual address of the entry that maps it.
    first, second : int
        gfns of the data page before and after the guest changes the entry.
    table : int
        gfn of the lowest table.
    """

    scenario: Scenario
    stops: tuple[Stop, ...]
    data: int
    entry: int
    first: int
    second: int
    table: int


def tour(mode: str, seed: int = 0, extra: str = "") -> Tour:
    """Return the tour for a paging mode.

    Parameters
    ----------
    mode : {"32-bit", "pae", "4-level", "5-level"}
    seed : int
        Chooses the addresses.
    extra : str
        Ops of the reader's own for the end, separated by semicolons. ``{data}``,
        ``{entry}``, ``{root}``, ``{first}`` and ``{second}`` stand for addresses:
        of the data page, of its entry, of the root table, and the entry's two values.

    Raises
    ------
    InputError
        No such mode, or an op that the language lacks.
    """
    if mode not in SHAPES:
        raise InputError(f"mode {mode!r}: a tour has one of {', '.join(SHAPES)}")
    shape = SHAPES[mode]
    choose = random.Random(seed)
    region = choose.randrange(1, shape.regions) * shape.region
    # The data page and the table's own page lie in different groups of eight entries: KVM maps
    # the neighbours of a faulting page too, which would take the tour's second fault away.
    index, table_index = choose.sample(range(0, 512, 8), 2)
    first, second = choose.sample(range(0x100, 0x1000), 2)
    data = region + index * PAGE
    table = FIRST_TABLE + (shape.levels - 2) * PAGE
    window = region + table_index * PAGE
    builder = ScenarioBuilder(shape.mode, source=f"tour in {mode} paging, seed {seed}").root(ROOT)
    builder.map(data, first * PAGE, _CLEAN).map(window, table, _TABLE)
    places = {
        "data": f"{data:x}",
        "entry": f"{window + index * shape.entry_bytes:x}",
        "root": f"{ROOT:x}",
        "first": f"{first * PAGE | _CLEAN:x}",
        "second": f"{second * PAGE | _CLEAN | PT_DIRTY_MASK:x}",
    }
    stops = [*_stops(shape.entry_bytes, places), *_own(extra, places)]
    for stop in stops:
        try:
            builder.op(stop.op)
        except GrammarError as error:
            raise InputError(f"op {stop.op!r}: {error}") from error
    return Tour(builder.build(), tuple(stops), data, int(places["entry"], 16), first, second, table // PAGE)


def _stops(width: int, places: dict[str, str]) -> list[Stop]:
    data, entry = places["data"], places["entry"]
    return [
        Stop(
            f"rd u {data}", "The first access misses: KVM walks the guest's tables and builds shadow pages."
        ),
        Stop(f"rd u {data}", "The same again hits: no page fault."),
        Stop(f"wr u {data} 1", "The first write: the guest's entry was clean, so the spte was read-only."),
        Stop(
            f"wr s {width} {entry} {places['second']}",
            "The guest changes its entry: KVM lets the table's shadow page go out of sync.",
        ),
        Stop(f"rd u {data}", "Until the guest says otherwise the old translation may be used, and it is."),
        Stop(f"invlpg {data}", "Now it says so: KVM reads the entry again and replaces the spte."),
        Stop(f"rd u {data}", "The new page, without a fault."),
        Stop(f"cr3 {places['root']}", "A load of CR3 makes all of the guest's changes count."),
        Stop(f"rd u {data}", "So before the guest runs on, KVM brings every page below the root into sync."),
    ]


def _own(extra: str, places: dict[str, str]) -> list[Stop]:
    """Return the reader's ops, with the places' names in braces replaced by addresses and nothing else."""
    pieces = re.split(r"\{([^{}]*)\}", extra)
    for name in pieces[1::2]:
        if name not in places:
            raise InputError(f"extra: {name!r} in braces; {', '.join(places)} are known")
    for text in pieces[::2]:
        if "{" in text or "}" in text:
            raise InputError(
                f"extra: a brace without its other half; {', '.join(places)} are known in braces"
            )
    pieces[1::2] = [places[name] for name in pieces[1::2]]
    return [Stop(op, "Your own.") for op in map(str.strip, "".join(pieces).split(";")) if op]
