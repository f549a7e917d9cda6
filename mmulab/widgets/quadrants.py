"""How the tables of a 32-bit guest are split over shadow pages, with the shadow pages counted."""

from __future__ import annotations

from collections.abc import Mapping

from mmulab.widgets.scene_svg import COLORS, INK, Canvas, Svg

__all__ = ["quadrants_picture"]

_WIDTH, _TOP, _ROW = 760, 84, 34
_TABLE_X, _TABLE_WIDTH = 16, 270
_SHADOW_X, _SHADOW_WIDTH = 400, 344
_GAP = 64
_TABLES = (
    (2, "page directory", 4, "1 GiB", ("0 to 1 GiB", "1 to 2 GiB", "2 to 3 GiB", "3 to 4 GiB")),
    (1, "page table", 2, "2 MiB", ("lower 2 MiB", "upper 2 MiB")),
)


def quadrants_picture(pages: Mapping[tuple[int, int], int], *, title: str) -> Svg:
    """Draw a guest's 4-byte directory and table beside the shadow pages of each quadrant.

    Parameters
    ----------
    pages : mapping of (int, int) to int
        Number of shadow pages by level and quadrant.
    title : str
    """
    rows = sum(count for _, _, count, _, _ in _TABLES)
    canvas = Canvas(_WIDTH, _TOP + rows * _ROW + _GAP + 16, title)
    canvas.text(_TABLE_X, 44, "guest: 1024 entries of 4 bytes", weight="bold")
    canvas.text(_SHADOW_X, 44, "shadow pages: 512 entries of 8 bytes", weight="bold")
    top = _TOP
    for level, name, parts, size, maps in _TABLES:
        canvas.text(_TABLE_X, top - 10, f"{name} (level {level})")
        canvas.text(_SHADOW_X, top - 10, f"level {level}, each maps {size}")
        for quadrant, mapped in enumerate(maps):
            found = pages.get((level, quadrant), 0)
            _part(canvas, top + quadrant * _ROW, 1024 // parts, quadrant, mapped, found)
        top += parts * _ROW + _GAP
    return canvas.svg()


def _part(canvas: Canvas, y: float, entries: int, quadrant: int, mapped: str, pages: int) -> None:
    """Draw one part of a guest table and what shadows it."""
    first = quadrant * entries
    middle, base = y + _ROW / 2, y + _ROW / 2 + 4
    canvas.rect(_TABLE_X, y, _TABLE_WIDTH, _ROW, "#ffffff", INK)
    canvas.text(_TABLE_X + 8, base, f"entries {first} to {first + entries - 1}: {mapped}")
    canvas.line([(_TABLE_X + _TABLE_WIDTH, middle), (_SHADOW_X, middle)], COLORS[quadrant], 2)
    canvas.rect(_SHADOW_X, y + 3, _SHADOW_WIDTH, _ROW - 6, "#ffffff", COLORS[quadrant])
    count = f"{pages:,} shadow page{'' if pages == 1 else 's'}"
    canvas.text(_SHADOW_X + 8, base, f"quadrant {quadrant}: {count}", weight="bold")
