"""A word as a strip of its bit fields: roles, shadow entries, guest entries.

A cell is a field; its name stands slanted above it, its bits below. What
differs from another word is framed and marked with the other word's value, so
that it can be read without colour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mmulab.widgets.scene_svg import COLORS, GRID, INK, MONO, Canvas, Svg, text_width

MARKED = "#fff3bf"
_NAMES_ANGLE = -38
_CELL = 22
_HEIGHT = 24
_LANE = 62
"""From the top of one word to that of the next, with room for the bits and for what differs."""
_LOST = "missing"


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


def _draw(
    canvas: Canvas, cell: Cell, x: float, top: float, step: float, size: float, *, name: bool = True
) -> None:
    middle = x + step / 2
    fill = "#f2f2f2" if not cell.name else MARKED if cell.was is not None else "#ffffff"
    tip = f"{cell.name or 'not used'}, bits {cell.bits}: {cell.text}"
    canvas.rect(x, top, step, _HEIGHT, fill, INK if cell.name else GRID, tip)
    weight = "bold" if cell.set else "normal"
    canvas.text(middle, top + 16, cell.text, anchor="middle", size=size, font=MONO, weight=weight)
    canvas.text(middle, top + _HEIGHT + 13, cell.bits, anchor="middle", size=9, fill="#555555")
    if cell.name and name:
        canvas.text(middle - 2, top - 6, cell.name, size=size, weight=weight, turn=_NAMES_ANGLE)
    if cell.was is not None:
        canvas.rect(x + 1.5, top + 1.5, step - 3, _HEIGHT - 3, "none", INK)
        canvas.text(middle, top + _HEIGHT + 29, f"≠{cell.was}", anchor="middle", size=size, font=MONO)


class Lane(NamedTuple):
    """One of several words that stand one above the other.

    Attributes
    ----------
    label : str
        Whose word it is.
    cells : sequence of Cell
        The highest bits first; cells without a name are left out.
    lost : collection of str
        Fields that would tell the words apart and that this one does not have.
    """

    label: str
    cells: Sequence[Cell]
    lost: Collection[str] = ()


def lanes(words: Sequence[Lane], *, title: str) -> Svg:
    """Draw words one above the other, a column for each field that any of them has.

    Columns stand in the last word's order, with what only others have behind it.
    Where a word lacks a field of another, its place is empty; if the field is
    among those it lost, the place says so.
    """
    size = 11.0
    names = list(dict.fromkeys(cell.name for lane in words[::-1] for cell in lane.cells if cell.name))
    placed = [{cell.name: cell for cell in lane.cells if cell.name} for lane in words]
    widths = {
        name: max(
            _CELL,
            *(text_width(_widest(cells[name]), size, mono=True) + 10 for cells in placed if name in cells),
            *(text_width(_LOST, size) + 10 for lane in words if name in lane.lost),
        )
        for name in names
    }
    rise = max(text_width(name, size) for name in names) * 0.62
    left = 20 + max(text_width(lane.label, size) for lane in words)
    overhang = max(text_width(name, size) * 0.79 for name in names[-3:])
    width = max(left + sum(widths.values()) + overhang, text_width(title, 14) + 24)
    top = 40 + rise
    canvas = Canvas(width, top + _LANE * len(words), title)
    x = left
    for name, step in widths.items():
        canvas.text(x + step / 2 - 2, top - 6, name, size=size, turn=_NAMES_ANGLE)
        for number, (lane, cells) in enumerate(zip(words, placed, strict=True)):
            y = top + _LANE * number
            if name in cells:
                _draw(canvas, cells[name], x, y, step, size, name=False)
            elif name in lane.lost:
                _draw_lost(canvas, name, x, y, step, size)
        x += step
    for number, lane in enumerate(words):
        canvas.text(left - 10, top + _LANE * number + 16, lane.label, anchor="end", size=size)
    return canvas.svg()


def _draw_lost(canvas: Canvas, name: str, x: float, y: float, step: float, size: float) -> None:
    frame = [
        (x + 1, y + 1),
        (x + step - 1, y + 1),
        (x + step - 1, y + _HEIGHT - 1),
        (x + 1, y + _HEIGHT - 1),
    ]
    canvas.polygon(frame, "#fde3d3", "none", f"{name}: no field of this word")
    canvas.line([*frame, frame[0]], COLORS[5], 2, "4 3")
    canvas.text(x + step / 2, y + 16, _LOST, anchor="middle", size=size, weight="bold")
