"""The walk in two dimensions: a row for each entry of the guest, a column for each nested one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmulab.widgets.scene_svg import COLORS, GRID, INK, MONO, Canvas, Svg
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)
from mmulab.x86.walk import Walk

_TOP, _ROW, _LEFT, _CELL = 64, 42, 236, 92


def entries(walk: Walk) -> list[tuple[int, int]]:
    """Return level and value of each entry that a walk read, root first; a PDPTE is of level 3."""
    top = [] if walk.pdpte is None else [(3, walk.pdpte)]
    stopped_there = bool(top) and walk.level == 3
    levels = range(walk.max_level, walk.level - 1, -1) if walk.level and not stopped_there else ()
    return top + [(level, walk.ptes[level]) for level in levels]


def two_walks_picture(outer: Walk, inner: Sequence[Walk], *, title: str, ept: bool = False) -> Svg:
    """Draw a walk of a guest's tables, and for each of its steps the walk of the nested tables.

    Parameters
    ----------
    outer : Walk
        Of the guest's own tables.
    inner : sequence of Walk
        Of the nested tables: one for each entry that `outer` read in memory, and one for
        the address it arrived at. Empty where the guest has no nested tables.
    title : str
    ept : bool
        The nested tables are EPT.
    """
    columns = max((len(entries(found)) for found in inner), default=0)
    rows = list(_rows(outer, inner))
    width = max(_LEFT + _CELL * (columns + 1) + 24, 420)
    canvas = Canvas(width, _TOP + _ROW * len(rows) + 16, title)
    canvas.text(16, _TOP - 14, "the guest's tables")
    if inner:
        canvas.text(_LEFT, _TOP - 14, "nested tables, root to leaf, and where they lead")
    for number, (label, text, below) in enumerate(rows):
        y = _TOP + _ROW * number
        canvas.rect(16, y, _LEFT - 40, _ROW - 8, "#eef4fa", INK)
        canvas.text(24, y + 14, label, size=11)
        canvas.text(24, y + 28, text, size=11, font=MONO)
        if below is not None:
            _inner_row(canvas, below, y, columns, _ept_fault(below) if ept else pferr_str(below.error or 0))
    return canvas.svg()


def _ept_fault(walk: Walk) -> str:
    """Name what EPT refused: the access, and whether an entry was misconfigured."""
    if (walk.error or 0) & PFERR_RSVD_MASK:
        return "misconfig"
    wanted = zip((PFERR_USER_MASK, PFERR_WRITE_MASK, PFERR_FETCH_MASK), "RWX", strict=True)
    return "no " + "|".join(name for mask, name in wanted if walk.pfec & mask)


def _rows(outer: Walk, inner: Sequence[Walk]) -> Iterator[tuple[str, str, Walk | None]]:
    walks = iter(inner)
    read = entries(outer)
    # A PDPTE that lies in a register was not read now, so there is no nested walk for it.
    from_register = outer.pdpte is not None and len(inner) < len(read) + (outer.error is None)
    for number, (level, entry) in enumerate(read):
        where = outer.entry_addr[level]
        place = f"level {level}, at {where:#x}" if where else f"level {level}, PDPTE"
        yield place, f"{entry:#x}", None if from_register and not number else next(walks, None)
    if outer.error is None:
        yield "arrives at", f"{outer.pa:#x}", next(walks, None)
    else:
        yield "page fault", pferr_str(outer.error), next(walks, None)


def _inner_row(canvas: Canvas, walk: Walk, y: float, columns: int, fault: str) -> None:
    cells = entries(walk)
    canvas.line([(_LEFT - 24, y + 17), (_LEFT, y + 17)], INK)
    for column, (level, entry) in enumerate(cells):
        x = _LEFT + _CELL * column
        canvas.rect(x, y, _CELL - 8, _ROW - 8, "#ffffff", GRID, f"level {level}: {entry:#x}")
        canvas.text(x + 6, y + 14, f"level {level}", size=10)
        canvas.text(x + 6, y + 28, f"{entry:#x}", size=11, font=MONO)
    x = _LEFT + _CELL * columns
    end = f"{walk.pa:#x}" if walk.error is None else fault
    canvas.rect(x, y, _CELL - 8, _ROW - 8, "#ffffff" if walk.error is None else "#fff3bf", COLORS[2])
    canvas.text(x + 6, y + 14, "gpa" if walk.error is None else "fault", size=10)
    canvas.text(x + 6, y + 28, end, size=11, font=MONO, weight="bold")
