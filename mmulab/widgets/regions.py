"""Who wins where as two prices vary: a grid for each piece of work, with the prices along its edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mmulab.widgets.scene_svg import COLORS, INK, Canvas, Svg, text_width

__all__ = ["Region", "regions_picture"]

_CELL, _LEFT, _TOP, _GAP, _FOOT = 15.0, 52.0, 30.0, 28.0, 52.0
_SIZE = 10.0
_SIDE_BY_SIDE = 3


class Region(NamedTuple):
    """A grid of winners.

    Attributes
    ----------
    title : str
    x, y : sequence of float
        Prices, rising.
    winners : sequence of sequence of str
        A row for each of `y`, a name for each of `x`.
    default : str
        The winner at the default prices.
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    winners: Sequence[Sequence[str]]
    default: str


def regions_picture(
    found: Sequence[Region],
    *,
    title: str,
    x: tuple[str, tuple[float, float, float]],
    y: tuple[str, tuple[float, float, float]],
) -> Svg:
    """Draw regions side by side under one key.

    Parameters
    ----------
    found : sequence of Region
        All over the same prices.
    title : str
    x, y : (str, (float, float, float))
        A price's name, and its low end, default and high end: the first and the last are the edges of a
        frame, the default is a cross in it.
    """
    names = list(dict.fromkeys(winner for region in found for row in region.winners for winner in row))
    columns, rows = (len(found[0].x), len(found[0].y)) if found else (0, 0)
    width, height = _LEFT + columns * _CELL + _GAP, _TOP + rows * _CELL + _FOOT
    beside = min(_SIDE_BY_SIDE, max(len(found), 1))
    lines = -(-len(found) // beside)
    top = 40 + 20 * len(names) + 8
    widest = max([text_width(title, 14), *(60 + text_width(name) for name in names), beside * width])
    canvas = Canvas(widest + 16, top + lines * height, title)
    for number, name in enumerate(names):
        canvas.rect(8, 34 + 20 * number, 28, 14, canvas.hatching(number), INK)
        canvas.text(44, 46 + 20 * number, name)
    for number, region in enumerate(found):
        at = 8 + number % beside * width, top + number // beside * height
        _region(canvas, region, names, at, x, y)
    return canvas.svg()


def _region(
    canvas: Canvas,
    region: Region,
    names: Sequence[str],
    at: tuple[float, float],
    x: tuple[str, tuple[float, float, float]],
    y: tuple[str, tuple[float, float, float]],
) -> None:
    left, top = at[0] + _LEFT, at[1] + _TOP
    bottom, right = top + len(region.y) * _CELL, left + len(region.x) * _CELL
    canvas.text(at[0], top - 10, region.title, weight="bold", size=11)
    for row, winners in enumerate(region.winners):
        for column, winner in enumerate(winners):
            tip = f"{x[0]} {region.x[column]:.3g}, {y[0]} {region.y[row]:.3g}: {winner}"
            fill = canvas.hatching(names.index(winner))
            canvas.rect(left + column * _CELL, bottom - (row + 1) * _CELL, _CELL, _CELL, fill, "none", tip)
    canvas.rect(left, top, right - left, bottom - top, "none", INK)
    for number in (0, len(region.x) // 2, len(region.x) - 1):
        middle = left + (number + 0.5) * _CELL
        canvas.text(middle, bottom + 13, f"{region.x[number]:.2g}", anchor="middle", size=_SIZE)
    for number in (0, len(region.y) // 2, len(region.y) - 1):
        middle = bottom - (number + 0.5) * _CELL
        canvas.text(left - 4, middle + 4, f"{region.y[number]:.2g}", anchor="end", size=_SIZE)
    canvas.text(left, bottom + 28, f"across: {x[0]}, up: {y[0]} (µs)", size=_SIZE)
    low, default, high = (left + (_place(region.x, price) + 0.5) * _CELL for price in x[1])
    under, usual, over = (bottom - (_place(region.y, price) + 0.5) * _CELL for price in y[1])
    canvas.rect(low, over, high - low, under - over, "none", "#ffffff")
    canvas.rect(low - 1, over - 1, high - low + 2, under - over + 2, "none", INK)
    for arms in (((-6, 0), (6, 0)), ((0, -6), (0, 6))):
        cross = [(default + dx, usual + dy) for dx, dy in arms]
        canvas.line(cross, "#ffffff", 5)
        canvas.line(cross, COLORS[5], 2)


def _place(prices: Sequence[float], price: float) -> float:
    """Return where a price lies among others, in steps from the first."""
    for number, (low, high) in enumerate(pairwise(prices)):
        if price <= high:
            return number + max(price - low, 0) / (high - low)
    return len(prices) - 1
