"""SVG pictures from plain Python: the canvas that :mod:`mmulab.widgets.scene` draws on.

A picture is one string with no script, no outside font and nothing that depends
on the run: the same drawing is the same bytes. Series differ by colour *and* by
dash, marker or hatching, so a picture can be read without colour.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = [
    "COLORS",
    "DASHES",
    "FONT_SIZE",
    "GRID",
    "INK",
    "MONO",
    "Axis",
    "Canvas",
    "Svg",
    "shown",
    "text_width",
]

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5a5a5a")
"""Okabe and Ito's palette, told apart with any kind of colour vision."""
DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 3", "4 4 1 4", "1 3", "10 2 2 2 2 2")
INK = "#1a1a1a"
GRID = "#d9d9d9"
SANS = "DejaVu Sans, Verdana, sans-serif"
MONO = "DejaVu Sans Mono, monospace"
FONT_SIZE = 12
_ID = "\0id\0"


@dataclass(frozen=True)
class Svg:
    """A finished picture; as the last value of a cell it shows itself.

    Attributes
    ----------
    markup : str
        The ``<svg>`` element.
    title : str
        What it shows, for readers who cannot see it.
    width, height : float
        In pixels.
    """

    markup: str
    title: str
    width: float
    height: float

    def __str__(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return f"<Svg {self.title!r}, {coordinate(self.width)} x {coordinate(self.height)}>"

    def _repr_svg_(self) -> str:
        return self.markup

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {"image/svg+xml": self.markup, "text/plain": repr(self)}


def coordinate(value: float) -> str:
    """Return `value` with at most two decimals and no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def shown(value: float) -> str:
    """Return a number as a label: thousands grouped, fractions to four digits."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def text_width(text: str, size: float = FONT_SIZE, *, mono: bool = False) -> float:
    """Return the width of `text` in pixels; for the proportional font an estimate from above."""
    return len(text) * size * (0.603 if mono else 0.64)


class Canvas:
    """Collects shapes and gives them back as an :class:`Svg`.

    Parameters
    ----------
    width, height : float
        In pixels.
    title : str
        Drawn at the top left if `heading`, and read out by screen readers.
    """

    def __init__(self, width: float, height: float, title: str, *, heading: bool = True) -> None:
        self.width = width
        self.height = height
        self.title = title
        self._shapes: list[str] = []
        self._hatchings: dict[int, str] = {}
        if heading:
            self.text(8, 20, title, size=14, weight="bold")

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str = "none",
        stroke: str = "none",
        tip: str = "",
    ) -> None:
        """Draw a rectangle; `tip` appears under the pointer."""
        inside = f"<title>{escape(tip)}</title></rect>" if tip else ""
        self._add(
            f'<rect x="{coordinate(x)}" y="{coordinate(y)}" width="{coordinate(width)}" '
            f'height="{coordinate(height)}" fill="{fill}" stroke="{stroke}"' + (f">{inside}" if tip else "/>")
        )

    def line(
        self,
        points: Iterable[tuple[float, float]],
        stroke: str = INK,
        width: float = 1,
        dash: str = "",
    ) -> None:
        """Draw straight lines through `points`."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(
            f'<polyline points="{_points(points)}" fill="none" stroke="{stroke}" '
            f'stroke-width="{coordinate(width)}"{dashed}/>'
        )

    def polygon(
        self, points: Iterable[tuple[float, float]], fill: str, stroke: str = "none", tip: str = ""
    ) -> None:
        """Fill the area that `points` enclose."""
        inside = f"><title>{escape(tip)}</title></polygon>" if tip else "/>"
        self._add(f'<polygon points="{_points(points)}" fill="{fill}" stroke="{stroke}"' + inside)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        size: float = FONT_SIZE,
        fill: str = INK,
        font: str = SANS,
        weight: str = "normal",
        turn: float = 0,
    ) -> None:
        """Write `text` with its base line at (`x`, `y`), turned by `turn` degrees clockwise."""
        at = f'x="{coordinate(x)}" y="{coordinate(y)}"'
        turned = f' transform="rotate({coordinate(turn)} {coordinate(x)} {coordinate(y)})"' if turn else ""
        bold = f' font-weight="{weight}"' if weight != "normal" else ""
        self._add(
            f'<text {at} text-anchor="{anchor}" font-family="{font}" font-size="{coordinate(size)}" '
            f'fill="{fill}" xml:space="preserve"{bold}{turned}>{escape(text)}</text>'
        )

    def marker(self, x: float, y: float, index: int) -> None:
        """Draw the marker of series `index` around (`x`, `y`)."""
        color = COLORS[index % len(COLORS)]
        corners = _MARKERS[index % len(_MARKERS)]
        self.polygon([(x + dx, y + dy) for dx, dy in corners], color, INK)

    def hatching(self, index: int) -> str:
        """Return the ``fill`` of series `index`: its colour under lines of its own."""
        name = f"{_ID}{index}"
        if index not in self._hatchings:
            color = COLORS[index % len(COLORS)]
            # Colours return after eight series, then with the next hatching.
            strokes = _HATCHES[(index + index // len(COLORS)) % len(_HATCHES)]
            self._hatchings[index] = (
                f'<pattern id="{name}" width="8" height="8" patternUnits="userSpaceOnUse">'
                f'<rect width="8" height="8" fill="{color}" fill-opacity="0.7"/>'
                f'<path d="{strokes}" stroke="{INK}" stroke-opacity="0.55" fill="none"/></pattern>'
            )
        return f"url(#{name})"

    def legend(self, x: float, y: float, names: Sequence[str], *, lines: bool) -> None:
        """Write `names` down from (`x`, `y`), each beside its line or its hatching."""
        for index, name in enumerate(names):
            middle = y + index * 18
            if lines:
                color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
                self.line([(x, middle), (x + 28, middle)], color, 2, dash)
                self.marker(x + 14, middle, index)
            else:
                self.rect(x, middle - 7, 28, 14, self.hatching(index), INK)
            self.text(x + 34, middle + 4, name)

    def svg(self) -> Svg:
        """Return the picture."""
        defs = "".join(self._hatchings.values())
        body = (f"<defs>{defs}</defs>" if defs else "") + "".join(self._shapes)
        # One page holds many pictures, so what they refer to is named after the picture's content.
        body = body.replace(_ID, "m" + hashlib.sha256(body.encode()).hexdigest()[:12] + "-")
        size = f'width="{coordinate(self.width)}" height="{coordinate(self.height)}"'
        box = f'viewBox="0 0 {coordinate(self.width)} {coordinate(self.height)}"'
        title = escape(self.title)
        markup = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img" aria-label="{title}">'
            f'<title>{title}</title><rect width="100%" height="100%" fill="#ffffff"/>{body}</svg>'
        )
        return Svg(markup, self.title, self.width, self.height)

    def _add(self, shape: str) -> None:
        self._shapes.append(shape)


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)


_MARKERS = (
    ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    ((0, -5), (5, 4), (-5, 4)),
    ((0, -5), (5, 0), (0, 5), (-5, 0)),
    ((0, 5), (5, -4), (-5, -4)),
    ((-4, -2), (4, -2), (4, 2), (-4, 2)),
    ((-2, -4), (2, -4), (2, 4), (-2, 4)),
    ((-5, 0), (4, -5), (4, 5)),
    ((5, 0), (-4, -5), (-4, 5)),
)
_HATCHES = (
    "",
    "M0 8L8 0",
    "M0 0L8 8",
    "M0 4H8",
    "M4 0V8",
    "M0 8L8 0M0 0L8 8",
    "M0 4H8M4 0V8",
    "M2 2h1M6 6h1",
)


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis: values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Axis:
        """Return the axis that holds all finite `values`, with 0 on it if `zero`, and is never empty."""
        known = [float(value) for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        return cls(low, high if high > low else low + 1.0, start, end)

    def at(self, value: float) -> float:
        """Return the pixel of `value`."""
        return self.start + (float(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Return at most about `count` round values on the axis."""
        raw = (self.high - self.low) / max(count - 1, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * number, 12) for number in range(first, last + 1)]
