"""An area: one way of paging of a small guest, with a few tables of every level.

Two roots, and below them tables that are reached by more than one path and with more
than one set of rights; the addresses that lead through them. Beside it lies a part that no
op changes: the helper pages, and every table at its own address, so that the guest can write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.tables import PAGE, TABLE_FLAGS, EptTables
from mmulab.x86.mode import (
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_RWX_MASK,
    PagingMode,
)

TABLES: tuple[int, ...] = (*range(0x10000, 0x38000, 0x1000), *range(0x44000, 0x50000, 0x1000))
"""Frames for tables; what SMM uses (0x38000 on) is left out."""


class Entry(NamedTuple):
    """An entry that ops write: its place, and the addresses whose walks meet it at first."""

    gpa: int
    level: int
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Area:
    """One way of paging: its tables, and the addresses that lead through them.

    Attributes
    ----------
    name : {"L1", "L2", "nested"}
    mode : PagingMode
    ept : bool
    roots : tuple of int
    tables : dict of int to tuple of int
        By level, but those of the fixed part.
    entries : tuple of Entry
    addresses : tuple of int
    targets : tuple of int
        What its leaves may lead to.
    fixed : tuple of int
        Tables of the part that no op changes, highest level first.
    """

    name: str
    mode: PagingMode
    ept: bool
    roots: tuple[int, ...]
    tables: dict[int, tuple[int, ...]]
    entries: tuple[Entry, ...] = ()
    addresses: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()


TWO_WAYS = 0x3000
"""An address that 4- and 5-level paging on the same tables lead to two pages."""
Links = tuple[tuple[str, int, str, bool], ...]
"""Table, index, what the entry leads to (a table, or a number of a page), and whether it may be written."""

_LEAVES: Links = (("T0", 0, "0", True), ("T0", 1, "1", True), ("T1", 0, "2", True), ("T1", 1, "4", True))
_BELOW: Links = (
    ("D0", 0, "T0", True),
    ("D0", 1, "T1", True),
    ("D1", 0, "T0", False),
    ("D1", 1, "large", True),
    *_LEAVES,
)
_LONG: Links = (
    ("C3", 1, "D0", True),
    ("C3", 2, "D1", True),
    ("P0", 0, "D0", True),
    ("P0", 1, "D0", False),
    *_BELOW,
)
_SHAPES: dict[str, Links] = {
    "32": (
        ("R0", 256, "T0", True),
        ("R0", 257, "T1", True),
        ("R0", 512, "T0", False),
        ("R0", 513, "large", True),
        ("R1", 256, "T1", True),
        ("R1", 257, "T0", False),
        *_LEAVES,
        ("T0", 512, "3", True),
        ("T1", 512, "5", True),
    ),
    "pae": (
        ("R0", 1, "D0", True),
        ("R0", 2, "D1", True),
        ("R1", 1, "D1", True),
        ("R1", 2, "D0", True),
        *_BELOW,
    ),
    "4level": (("R0", 1, "P0", True), ("R1", 1, "P0", False), *_LONG),
    "5level": (("R0", 1, "Q0", True), ("R1", 1, "Q0", False), ("Q0", 0, "P0", True), *_LONG),
}
_SHAPES["ept4"] = _SHAPES["4level"]
_LEVEL = {"T": 1, "D": 2, "P": 3, "Q": 4}


class AreaMaker:
    """Makes areas in a builder's memory.

    Attributes
    ----------
    frames : list of int
        All tables so far.
    lows : list of (Area, int)
        The areas, each with the table of its fixed part that maps pages.
    """

    def __init__(self, builder: ScenarioBuilder) -> None:
        self.builder = builder
        self.frames: list[int] = []
        self.lows: list[tuple[Area, int]] = []

    def table(self) -> int:
        """Return a cleared frame."""
        gpa: int = TABLES[len(self.frames)]
        self.frames.append(gpa)
        self.builder.fill(gpa, PAGE, 0)
        return gpa

    def area(self, name: str, mode: PagingMode, targets: tuple[int, ...], *, ept: bool = False) -> Area:
        """Make an area; of its fixed part only the helper pages are mapped yet."""
        top, links = mode.root_level, _SHAPES[mode.name]
        tables = {"R0": self.table(), "R1": self.table()}
        for level in range(top - 1, 0, -1):
            tables[f"C{level}"] = self.table()
        for below in dict.fromkeys(table for table, *_ in links):
            tables.setdefault(below, 0)
            tables[below] = tables[below] or self.table()
        for root in ("R0", "R1"):
            self._link(mode, tables[root], 0, tables[f"C{top - 1}"], top, ept)
        for level in range(top - 1, 1, -1):
            self._link(mode, tables[f"C{level}"], 0, tables[f"C{level - 1}"], level, ept)
        levels = {key: _LEVEL.get(key[0]) or (top if key[0] == "R" else int(key[1])) for key in tables}
        for table, index, to, writable in links:
            self._fill(mode, tables, targets, levels[table], (table, index, to, writable), ept)
        found = _addresses(mode, links, levels)
        entries = tuple(
            Entry(tables[table] + index * mode.entry_bytes, levels[table], found.get((table, index), ()))
            for table, index, *_ in links
        )
        by_level = {
            level: tuple(tables[key] for key in tables if levels[key] == level and key[0] != "C")
            for level in range(1, top + 1)
        }
        area = Area(name, mode, ept, (tables["R0"], tables["R1"]), by_level, entries)
        area.addresses = tuple(dict.fromkeys(a for key in found for a in found[key]))
        area.targets = targets
        area.fixed = tuple(tables[f"C{level}"] for level in range(top - 1, 0, -1))
        self.lows.append((area, tables["C1"]))
        self.show(area, tables["C1"], (HELPER_U,), user=True)
        return area

    def show(self, area: Area, table: int, pages: tuple[int, ...], *, user: bool) -> None:
        """Map pages at their own addresses; nested tables grant all, for to them each access is a user's."""
        user = user or area.name == "nested"
        flags = EptTables.leaf_flags if area.ept else TABLE_FLAGS if user else TABLE_FLAGS & ~PT_USER_MASK
        for page in pages:
            self.builder.value(
                area.mode.entry_bytes, table + (page >> 12) * area.mode.entry_bytes, page | flags
            )

    def two_ways(self, area: Area, pages: tuple[int, int]) -> None:
        """Let 5-level tables hold as 4-level ones too, and differ at :data:`TWO_WAYS`.

        To 4-level paging the table of level 2 is one of leaves.
        """
        directory, table = area.fixed[-2:]
        self.show(area, directory, (HELPER_S, HELPER_U), user=True)
        for number, page in zip((directory, table), pages, strict=True):
            self.builder.value(8, number + 8 * (TWO_WAYS >> 12), page | TABLE_FLAGS)
        area.addresses = (TWO_WAYS, *area.addresses)
        place = 8 * (TWO_WAYS >> 12)
        area.entries += (Entry(directory + place, 1, (TWO_WAYS,)), Entry(table + place, 1, (TWO_WAYS,)))

    def _link(self, mode: PagingMode, table: int, index: int, below: int, level: int, ept: bool) -> None:
        at = table + index * mode.entry_bytes
        self.builder.value(mode.entry_bytes, at, below | link_flags(mode, level, ept))

    def _fill(
        self,
        mode: PagingMode,
        tables: dict[str, int],
        targets: tuple[int, ...],
        level: int,
        link: tuple[str, int, str, bool],
        ept: bool,
    ) -> None:
        table, index, to, writable = link
        if to == "large":
            value = (0x200000 if mode.entry_bytes == 8 else 0) | leaf_flags(level, ept)
        elif to.isdigit():
            value = targets[int(to)] | leaf_flags(level, ept)
        else:
            value = tables[to] | link_flags(mode, level, ept)
        if not writable and not (mode.has_pdptes and level == 3):
            value &= ~PT_WRITABLE_MASK
        self.builder.value(mode.entry_bytes, tables[table] + index * mode.entry_bytes, value)


def link_flags(mode: PagingMode, level: int, ept: bool) -> int:
    """Return the low bits of an entry that leads to a table and grants all; a PDPTE of PAE has but P."""
    if ept:
        return VMX_EPT_RWX_MASK
    return PT_PRESENT_MASK if mode.has_pdptes and level == 3 else TABLE_FLAGS


def leaf_flags(level: int, ept: bool) -> int:
    """Return the low bits of a leaf that grants all."""
    return (EptTables.leaf_flags if ept else TABLE_FLAGS) | (PT_PAGE_SIZE_MASK if level > 1 else 0)


def _addresses(
    mode: PagingMode, links: Links, levels: dict[str, int]
) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the addresses whose walks meet each entry, by table and index."""
    below: dict[str, list[tuple[int, str]]] = {}
    for table, index, to, _ in links:
        below.setdefault(table, []).append((index, to))
    for level in range(mode.root_level, 1, -1):
        table = "R0" if level == mode.root_level else f"C{level}"
        below.setdefault(table, []).append((0, f"C{level - 1}"))
    found: dict[tuple[str, int], list[int]] = {}
    paths: list[tuple[str, int, tuple[tuple[str, int], ...]]] = [("R0", 0, ()), ("R1", 0, ())]
    while paths:
        table, address, path = paths.pop()
        for index, to in below.get(table, ()):
            here = address | index << mode.level_shift(levels[table])
            way = (*path, (table, index))
            if to in levels:
                paths.append((to, here, way))
                continue
            pages = (here,) if to != "large" else (here, here | PAGE)
            for place, page in product(way, pages):
                found.setdefault(place, []).append(page)
    return {place: tuple(dict.fromkeys(pages)) for place, pages in found.items()}
