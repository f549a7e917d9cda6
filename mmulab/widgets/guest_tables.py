"""The page tables of a guest as figures."""

from __future__ import annotations

import numpy as np

from mmulab.widgets.figure import Twin, bar_chart, heat_map
from mmulab.workload.snapshot import LevelSummary, Snapshot
from mmulab.x86.mode import PT_PRESENT_MASK, PT_USER_MASK

__all__ = ["directory_map", "leaf_flags", "size_str"]

_COLUMNS = 32
_FLAGS = ("user", "writable", "nx", "accessed", "dirty", "global_")


def size_str(size: int) -> str:
    """Return a size in the largest unit that divides it.

    >>> size_str(4 << 20)
    '4 MiB'
    """
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = max(number for number in range(len(units)) if size % (1 << 10 * number) == 0)
    return f"{size >> 10 * power} {units[power]}"


def directory_map(snapshot: Snapshot) -> Twin:
    """Show every entry of one page directory (level 2): the one with the most different entries.

    Linux fills some directories with one entry, over and over; they are dull to look at.
    """
    tables = (snapshot.gfn[snapshot.levels & 1 << 2 != 0] << np.uint64(12)).tolist()
    gpa = max(tables, key=lambda table: len(np.unique(snapshot.entries(table, 2))))
    entries = snapshot.entries(gpa, 2)
    present = entries & np.uint64(PT_PRESENT_MASK) != 0
    page = snapshot.maps_page(entries, 2)
    user = entries & np.uint64(PT_USER_MASK) != 0
    size = size_str(1 << snapshot.mode.level_shift(2))
    names = ["page table", f"{size} page, supervisor", f"{size} page, user"]
    kinds = np.where(page, np.where(user, 2, 1), 0)
    cells = [int(kind) if is_present else None for kind, is_present in zip(kinds, present, strict=True)]
    title = f"{snapshot.name}: the {len(entries)} entries of the page directory at gfn {gpa >> 12:#x}"
    return heat_map(
        [cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)],
        title=title,
        value_label=f"each entry maps {size}; white: not present",
        names=names,
    )


def leaf_flags(snapshot: Snapshot) -> Twin:
    """Count the leaf entries of each level, and those with each flag set."""
    counts: dict[str, int] = {}
    for summary in snapshot.summary():
        if summary.leaves:
            counts |= _flags(summary)
    title = f"{snapshot.name}: leaf entries by level and flag"
    return bar_chart(list(counts), list(counts.values()), title=title, value_label="leaf entries")


def _flags(summary: LevelSummary) -> dict[str, int]:
    name = f"{size_str(summary.page_size)} pages (level {summary.level})"
    flags = {
        f"{name}, {flag.rstrip('_').replace('nx', 'NX')}": int(getattr(summary, flag)) for flag in _FLAGS
    }
    return {name: summary.leaves, **flags}
