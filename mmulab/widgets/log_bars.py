"""Bars on a logarithmic scale, some of which only say "more than this"."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import bqplot

from mmulab.widgets.figure import Numbers, Twin, floats, twin
from mmulab.widgets.scene_svg import COLORS, GRID, Canvas, Svg, shown, text_width

__all__ = ["log_bars"]

_TOP, _STEP = 36, 24


def log_bars(
    labels: Sequence[str],
    values: Numbers,
    *,
    title: str,
    value_label: str = "",
    open_ended: Collection[int] = (),
    width: float = 760,
) -> Twin:
    """Draw one horizontal bar for each of `labels` on a scale of powers of ten.

    Parameters
    ----------
    labels : sequence of str
    values : sequence of float
        One for each label, all positive.
    title, value_label : str
    open_ended : collection of int
        Numbers of bars whose value is a lower bound; they are hatched, and ``>`` stands before the number.
    width : float
        In pixels.

    Raises
    ------
    ValueError
        The lengths differ, or a value is not positive.
    """
    if len(labels) != len(values) or any(not value > 0 for value in values):
        raise ValueError(f"{title}: {len(labels)} labels, {len(values)} values; one each, all positive")
    low, high = _ends(values)
    svg = _picture(labels, values, title, value_label, open_ended, width)

    def make() -> Any:
        scales = {"x": bqplot.OrdinalScale(), "y": bqplot.LogScale(min=low, max=high)}
        # bqplot draws the first bar at the bottom, the picture at the top.
        colors = [COLORS[5 if row in open_ended else 0] for row in range(len(labels))][::-1]
        bars = bqplot.Bars(
            x=list(labels)[::-1],
            y=floats(values)[::-1],
            base=low,
            scales=scales,
            orientation="horizontal",
            colors=colors,
            tooltip=bqplot.Tooltip(fields=["x", "y"], labels=["", value_label]),
        )
        axes = [
            bqplot.Axis(scale=scales["x"], side="left"),
            bqplot.Axis(scale=scales["y"], label=value_label),
        ]
        left = 20 + 8 * max((len(label) for label in labels), default=0)
        return bqplot.Figure(
            marks=[bars],
            axes=axes,
            title=title,
            fig_margin={"top": 48, "bottom": 56, "left": left, "right": 32},
            layout={"width": f"{svg.width:.0f}px", "height": f"{max(svg.height, 240):.0f}px"},
        )

    return twin(svg, make)


def _ends(values: Numbers) -> tuple[float, float]:
    """Return the powers of ten around all values, with room to the left of the smallest."""
    if not len(values):
        return 0.1, 1.0
    low, high = math.floor(math.log10(min(values)) - 0.05), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _picture(
    labels: Sequence[str],
    values: Numbers,
    title: str,
    value_label: str,
    open_ended: Collection[int],
    width: float,
) -> Svg:
    low, high = _ends(values)
    decades = round(math.log10(high / low))
    texts = [f"> {shown(value)}" if n in open_ended else shown(value) for n, value in enumerate(values)]
    left = 16 + max((text_width(label) for label in labels), default=0)
    right = width - 24 - max(map(text_width, texts), default=0)
    bottom = _TOP + _STEP * len(labels)
    canvas = Canvas(width, bottom + 44, title)
    for decade in range(decades + 1):
        x = left + (right - left) * decade / decades
        canvas.line([(x, _TOP), (x, bottom)], GRID)
        canvas.text(x, bottom + 16, shown(low * 10**decade), anchor="middle")
    for row, (label, value, text) in enumerate(zip(labels, values, texts, strict=True)):
        y = _TOP + _STEP * row
        end = left + (right - left) * math.log10(value / low) / decades
        fill = canvas.hatching(5) if row in open_ended else COLORS[0]
        canvas.text(left - 8, y + 16, label, anchor="end")
        canvas.rect(left, y + 4, end - left, _STEP - 8, fill, tip=f"{label}: {text}")
        canvas.text(end + 6, y + 16, text)
    canvas.line([(left, _TOP), (left, bottom)])
    canvas.text((left + right) / 2, bottom + 36, value_label, anchor="middle")
    return canvas.svg()
