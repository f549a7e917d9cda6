"""A word as a strip of its bit fields: roles, shadow entries, guest entries.

A cell is a field; its name stands slanted above it, its bits below. What
differs from another word is framed and marked with the other word's value, so
that it can be read without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmulab.widgets.scene_svg import GRID, INK, MONO, Canvas, Svg, text_width

MARKED = "#fff3bf"
_NAMES_ANGLE = -38
_CELL = 22
_HEIGHT = 24


class Cell(NamedTuple):
    """One field of a word.

    Attributes
    ----------
    name : str
        Empty for bits that nothing uses.
    text : str
        The value as it is shown.
    bits : str
        Where the field lies: ``7`` or ``10-8``.
    set : bool
        The field says something: it is drawn in bold.
    was : str or None
        Another word's value of the field, if it differs.
    """

    name: str
    text: str
    bits: str
    set: bool = False
    was: str | None = None


def strip(cells: Sequence[Cell], *, title: str) -> Svg:
    """Draw the cells side by side, the highest bits at the left."""
    size = 11
    rise = max((text_width(cell.name, size) for cell in cells), default=0) * 0.62
    widths = [max(_CELL, text_width(_widest(cell), size, mono=True) + 10) for cell in cells]
    left, top = 8.0, 40 + rise
    overhang = max((text_width(cell.name, size) * 0.79 for cell in cells[-3:]), default=0)
    marked = any(cell.was is not None for cell in cells)
    width = max(left + sum(widths) + overhang, text_width(title, 14) + 24)
    canvas = Canvas(width, top + _HEIGHT + (38 if marked else 22), title)
    x = left
    for cell, step in zip(cells, widths, strict=True):
        _draw(canvas, cell, x, top, step, size)
        x += step
    return canvas.svg()


def _widest(cell: Cell) -> str:
    return max(cell.text, cell.bits, cell.was or "", key=len)


def _draw(canvas: Canvas, cell: Cell, x: float, top: float, step: float, size: float) -> None:
    middle = x + step / 2
    fill = "#f2f2f2" if not cell.name else MARKED if cell.was is not None else "#ffffff"
    tip = f"{cell.name or 'not used'}, bits {cell.bits}: {cell.text}"
    canvas.rect(x, top, step, _HEIGHT, fill, INK if cell.name else GRID, tip)
    weight = "bold" if cell.set else "normal"
    canvas.text(middle, top + 16, cell.text, anchor="middle", size=size, font=MONO, weight=weight)
    canvas.text(middle, top + _HEIGHT + 13, cell.bits, anchor="middle", size=9, fill="#555555")
    if cell.name:
        canvas.text(middle - 2, top - 6, cell.name, size=size, weight=weight, turn=_NAMES_ANGLE)
    if cell.was is not None:
        canvas.rect(x + 1.5, top + 1.5, step - 3, _HEIGHT - 3, "none", INK)
        canvas.text(middle, top + _HEIGHT + 29, f"≠{cell.was}", anchor="middle", size=size, font=MONO)
