"""Several measures of the same few things: a column of bars for each measure, a row for each thing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import bqplot
import ipywidgets

from mmulab.widgets.figure import Numbers, Twin, floats, twin
from mmulab.widgets.scene_svg import COLORS, GRID, Axis, Canvas, Svg, shown, text_width

__all__ = ["multiples"]

_TOP, _ROW, _COLUMN, _GAP = 60.0, 24.0, 104.0, 20.0
_WRAP = 6
"""Measures side by side."""
_SIZE = 11.0


def multiples(
    labels: Sequence[str],
    measures: Mapping[str, Numbers],
    *,
    title: str,
    limits: Mapping[str, float] | None = None,
    marked: Collection[int] = (),
) -> Twin:
    """Draw one column of horizontal bars for each measure, each on a scale of its own.

    Parameters
    ----------
    labels : sequence of str
        What is measured, one a row.
    measures : mapping of str to sequence of float
        By the measure's name: a value a row, none negative.
    title : str
    limits : mapping of str to float, optional
        By the measure's name: a value that is drawn as a line, and that its scale reaches.
    marked : collection of int
        Numbers of rows that are hatched: wrong ones, say.

    Raises
    ------
    ValueError
        A measure does not have one value a row.
    """
    for name, values in measures.items():
        if len(values) != len(labels):
            raise ValueError(f"{title}: {name} has {len(values)} values for {len(labels)} rows")
    known = dict(limits or {})
    svg = _picture(labels, measures, title, known, marked)
    return twin(svg, lambda: _live(labels, measures, title, known, marked, svg))


def _picture(
    labels: Sequence[str],
    measures: Mapping[str, Numbers],
    title: str,
    limits: Mapping[str, float],
    marked: Collection[int],
) -> Svg:
    left = 20 + max((text_width(label) for label in labels), default=0)
    lines = [list(measures)[at : at + _WRAP] for at in range(0, len(measures), _WRAP)]
    most = max(map(len, lines), default=0)
    step = _GAP + max([_COLUMN, *(text_width(name, _SIZE) for name in measures)])
    height = _TOP + _ROW * len(labels)
    canvas = Canvas(left + most * step + 8, len(lines) * height + 10, title)
    for number, names in enumerate(lines):
        top = _TOP + number * height
        for row, label in enumerate(labels):
            canvas.text(left - 10, top + _ROW * row + 16, label, anchor="end")
        for column, name in enumerate(names):
            x = left + column * step
            _column(canvas, x, top, name, measures[name], limits.get(name), marked)
    return canvas.svg()


def _column(
    canvas: Canvas,
    x: float,
    top: float,
    name: str,
    values: Numbers,
    limit: float | None,
    marked: Collection[int],
) -> None:
    room = max(text_width(shown(value), _SIZE) for value in [*values, 0]) + 8
    reach = [*values] if limit is None else [*values, limit]
    axis = Axis.over(reach, x, x + _COLUMN - room, zero=True)
    bottom = top + _ROW * len(values)
    canvas.text(x, top - 8, name, weight="bold", size=_SIZE)
    for row, value in enumerate(values):
        y = top + _ROW * row
        fill = canvas.hatching(5) if row in marked else COLORS[0]
        canvas.rect(x, y + 4, axis.at(value) - x, _ROW - 8, fill, tip=f"{name}: {shown(value)}")
        # Behind a limit's line, not on it.
        at = axis.at(value if limit is None else max(value, limit)) + 5
        canvas.text(at, y + 16, shown(value), size=_SIZE)
    canvas.line([(x, top), (x, bottom)], GRID)
    if limit is not None:
        canvas.line([(axis.at(limit), top - 2), (axis.at(limit), bottom)], COLORS[5], 2, "5 3")


def _live(
    labels: Sequence[str],
    measures: Mapping[str, Numbers],
    title: str,
    limits: Mapping[str, float],
    marked: Collection[int],
    svg: Svg,
) -> Any:
    """Return a bqplot figure for each measure, under a heading."""
    height = f"{_ROW * len(labels) + 90:.0f}px"
    left = max((text_width(label) for label in labels), default=0) + 8
    # bqplot draws the first bar at the bottom, the picture at the top.
    colors = [COLORS[5] if row in marked else COLORS[0] for row in range(len(labels))][::-1]
    figures = []
    for name, values in measures.items():
        limit = limits.get(name)
        scales = {
            "x": bqplot.OrdinalScale(),
            "y": bqplot.LinearScale(min=0.0, max=1.02 * (max([*floats(values), limit or 0.0]) or 1.0)),
        }
        bars = bqplot.Bars(
            x=list(labels)[::-1],
            y=floats(values)[::-1],
            scales=scales,
            orientation="horizontal",
            colors=colors,
            tooltip=bqplot.Tooltip(fields=["x", "y"], labels=["", name]),
        )
        axes = [
            bqplot.Axis(scale=scales["x"], side="left"),
            bqplot.Axis(scale=scales["y"], num_ticks=4),
        ]
        figures.append(
            bqplot.Figure(
                marks=[bars],
                axes=axes,
                title=name if limit is None else f"{name}, limit {shown(limit)}",
                title_style={"font-size": "13px"},
                fig_margin={"top": 36, "bottom": 30, "left": left, "right": 16},
                layout={"width": f"{left + 170:.0f}px", "height": height, "min_width": "0"},
                min_aspect_ratio=0.01,
                max_aspect_ratio=100.0,
            )
        )
    rows = ipywidgets.HBox(figures, layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([ipywidgets.HTML(f"<b>{svg.title}</b>"), rows])
