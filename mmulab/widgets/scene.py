"""Charts as SVG pictures: they show in JupyterLab, in an exported page and with no script at all.

Every function takes plain Python or numpy numbers and returns an :class:`Svg`.
:mod:`mmulab.widgets.figure` has the same charts with an interactive twin.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mmulab.widgets.scene_svg import COLORS, DASHES, GRID, INK, MONO, Axis, Canvas, Svg, shown, text_width

__all__ = ["Svg", "bar_chart", "heat_map", "line_chart", "shade", "stacked_area", "table"]

Numbers = Sequence[float]

_TOP = 36
_MARKERS_UP_TO = 60
"""A line of more points has no room for markers on them."""


def bar_chart(
    labels: Sequence[str], values: Numbers, *, title: str, value_label: str = "", width: float = 760
) -> Svg:
    """Draw one horizontal bar for each of `labels`, with its value written at its end.

    Parameters
    ----------
    labels : sequence of str
    values : sequence of float
        One for each label, none negative.
    title, value_label : str
        The heading, and what is counted.
    width : float
        In pixels; the height follows from the number of bars.

    Raises
    ------
    ValueError
        If the lengths differ or a value is negative.
    """
    if len(labels) != len(values) or any(value < 0 for value in values):
        raise ValueError(f"{title}: {len(labels)} labels, {len(values)} values; one each, none negative")
    step, left = 24, 16 + max((text_width(label) for label in labels), default=0)
    right = width - 24 - max((text_width(shown(value)) for value in values), default=0)
    bottom = _TOP + step * len(labels)
    canvas = Canvas(width, bottom + 44, title)
    axis = Axis.over(values, left, right, zero=True)
    _vertical_grid(canvas, axis, _TOP, bottom)
    for row, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = _TOP + step * row
        canvas.text(left - 8, y + 16, label, anchor="end")
        canvas.rect(left, y + 4, axis.at(value) - left, step - 8, COLORS[0], tip=f"{label}: {shown(value)}")
        canvas.text(axis.at(value) + 6, y + 16, shown(value))
    canvas.line([(left, _TOP), (left, bottom)])
    canvas.text((left + right) / 2, bottom + 36, value_label, anchor="middle")
    return canvas.svg()


def line_chart(
    x: Numbers,
    series: Mapping[str, Numbers],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    width: float = 760,
    height: float = 340,
) -> Svg:
    """Draw each of `series` as a line over the common `x`, told apart by colour, dash and marker.

    Parameters
    ----------
    x : sequence of float
        In rising order.
    series : mapping of str to sequence of float
        One value for each of `x`; a value that is not finite leaves a gap.
    title, x_label, y_label : str
    width, height : float
        In pixels.

    Raises
    ------
    ValueError
        If a series has another length than `x`.
    """
    canvas, axis_x, axis_y = _plot(x, series, series, title, x_label, y_label, width, height, lines=True)
    for index, values in enumerate(series.values()):
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        for run in _finite_runs(x, values):
            points = [(axis_x.at(a), axis_y.at(b)) for a, b in run]
            canvas.line(points, color, 2, dash)
            if len(x) <= _MARKERS_UP_TO or len(run) == 1:
                for px, py in points:
                    canvas.marker(px, py, index)
    return canvas.svg()


def stacked_area(
    x: Numbers,
    series: Mapping[str, Numbers],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    width: float = 760,
    height: float = 340,
) -> Svg:
    """Draw `series` on top of each other over the common `x`, the first at the bottom.

    Parameters
    ----------
    x : sequence of float
        In rising order.
    series : mapping of str to sequence of float
        One value for each of `x`, finite and not negative.
    title, x_label, y_label : str
    width, height : float
        In pixels.

    Raises
    ------
    ValueError
        If a series has another length than `x`, or a value that is negative or not finite.
    """
    if any(not (math.isfinite(value) and value >= 0) for values in series.values() for value in values):
        raise ValueError(f"{title}: stacked values must be finite and not negative")
    _check_lengths(x, series, title)
    tops = [[0.0] * len(x)]
    for values in series.values():
        tops.append([below + float(value) for below, value in zip(tops[-1], values, strict=True)])
    canvas, axis_x, axis_y = _plot(
        x, series, {"": tops[-1]}, title, x_label, y_label, width, height, lines=False
    )
    for index, (name, (lower, upper)) in enumerate(zip(series, pairwise(tops), strict=True)):
        edge = [(axis_x.at(a), axis_y.at(b)) for a, b in zip(x, upper, strict=True)]
        base = [(axis_x.at(a), axis_y.at(b)) for a, b in zip(x, lower, strict=True)]
        canvas.polygon(edge + base[::-1], canvas.hatching(index), tip=name)
        canvas.line(edge, INK)
    return canvas.svg()


def heat_map(
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    value_label: str = "",
    names: Sequence[str] | None = None,
    cell: float = 20,
) -> Svg:
    """Draw a grid of cells, darker where the value is greater; the 512 entries of a table as 16 by 32, say.

    Parameters
    ----------
    values : sequence of rows
        Rows of one length. None leaves a cell empty.
    title, value_label : str
    names : sequence of str, optional
        Then values are indices into it: the cells are of kinds, each with a colour and a letter or digit.
    cell : float
        Edge of a cell in pixels.

    Raises
    ------
    ValueError
        If rows differ in length.
    """
    columns = len(values[0]) if values else 0
    if any(len(row) != columns for row in values):
        raise ValueError(f"{title}: the rows of a heat map must have one length")
    left, legend = 48, 40 + max((text_width(name) for name in names or ["0" * 12]), default=0)
    canvas = Canvas(left + columns * cell + 24 + legend, max(_TOP + len(values) * cell + 28, 150), title)
    known = [float(value) for row in values for value in row if value is not None]
    scale = Axis.over(known, 0, 1, zero=names is None)
    for row, line in enumerate(values):
        y = _TOP + row * cell
        canvas.text(left - 6, y + cell / 2 + 4, str(row * columns), anchor="end", size=10)
        for column, value in enumerate(line):
            tip = f"{row * columns + column}: "
            if value is None:
                canvas.rect(left + column * cell, y, cell, cell, "#ffffff", GRID, tip + "empty")
            elif names is None:
                fill, tip = shade(scale.at(value)), tip + shown(value)
                canvas.rect(left + column * cell, y, cell, cell, fill, GRID, tip)
            else:
                fill, tip = COLORS[int(value) % len(COLORS)], tip + names[int(value)]
                canvas.rect(left + column * cell, y, cell, cell, fill, GRID, tip)
                _glyph(canvas, left + column * cell, y, cell, int(value))
    _heat_legend(canvas, left + columns * cell + 24, scale, names, cell)
    canvas.text(left, _TOP + len(values) * cell + 20, value_label)
    return canvas.svg()


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str,
    marked: Collection[int] = (),
) -> Svg:
    """Draw a table as a picture, with the rows whose numbers are in `marked` framed and in bold."""
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    widths = [
        max(text_width(line[index], mono=True) for line in [list(columns), *texts]) + 20
        for index in range(len(columns))
    ]
    width = max(sum(widths) + 16, text_width(title, 14) + 24)
    canvas = Canvas(width, _TOP + 22 * (len(rows) + 1) + 8, title)
    for number, line in enumerate([list(columns), *texts]):
        y, x = _TOP + 22 * number, 8.0
        bold = number == 0 or number - 1 in marked
        if number - 1 in marked:
            canvas.rect(8, y, sum(widths), 22, "#fff3bf", INK)
        for text, step in zip(line, widths, strict=True):
            canvas.text(x + 10, y + 15, text, font=MONO, weight="bold" if bold else "normal")
            x += step
        canvas.line([(8, y + 22), (8 + sum(widths), y + 22)], INK if number == 0 else GRID)
    return canvas.svg()


def _check_lengths(x: Numbers, series: Mapping[str, Numbers], title: str) -> None:
    for name, values in series.items():
        if len(values) != len(x):
            raise ValueError(f"{title}: series '{name}' has {len(values)} values for {len(x)} of x")


def _plot(
    x: Numbers,
    series: Mapping[str, Numbers],
    extent: Mapping[str, Numbers],
    title: str,
    x_label: str,
    y_label: str,
    width: float,
    height: float,
    *,
    lines: bool,
) -> tuple[Canvas, Axis, Axis]:
    """Draw frame, grid, labels and legend; the y axis holds 0 and all of `extent`."""
    _check_lengths(x, series, title)
    height = max(height, _TOP + 18 * len(series) + 60)
    canvas = Canvas(width, height, title)
    every = [float(value) for values in extent.values() for value in values]
    bottom = height - 48
    axis_y = Axis.over(every, bottom, _TOP, zero=True)
    left = 34 + max(text_width(shown(tick)) for tick in axis_y.ticks())
    right = width - 56 - max((text_width(name) for name in series), default=0)
    axis_x = Axis.over(x, left, right)
    _vertical_grid(canvas, axis_x, _TOP, bottom)
    for tick in axis_y.ticks():
        canvas.line([(left, axis_y.at(tick)), (right, axis_y.at(tick))], GRID)
        canvas.text(left - 6, axis_y.at(tick) + 4, shown(tick), anchor="end")
    canvas.line([(left, _TOP), (left, bottom), (right, bottom)])
    canvas.text((left + right) / 2, height - 10, x_label, anchor="middle")
    canvas.text(16, (_TOP + bottom) / 2, y_label, anchor="middle", turn=-90)
    canvas.legend(right + 16, _TOP + 10, list(series), lines=lines)
    return canvas, axis_x, axis_y


def _vertical_grid(canvas: Canvas, axis: Axis, top: float, bottom: float) -> None:
    for tick in axis.ticks():
        canvas.line([(axis.at(tick), top), (axis.at(tick), bottom)], GRID)
        canvas.text(axis.at(tick), bottom + 16, shown(tick), anchor="middle")


def _finite_runs(x: Numbers, values: Numbers) -> list[list[tuple[float, float]]]:
    """Return the stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, values, strict=True):
        if math.isfinite(b):
            runs[-1].append((float(a), float(b)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def shade(share: float) -> str:
    """Return a grey-blue that gets darker as `share` goes from 0 to 1."""
    light, dark = (240, 245, 250), (8, 48, 107)
    mixed = (round(a + (b - a) * share) for a, b in zip(light, dark, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


_GLYPHS = "0123456789abcdefghijklmnopqrstuvwxyz"


def _glyph(canvas: Canvas, x: float, y: float, cell: float, kind: int) -> None:
    canvas.text(x + cell / 2, y + cell / 2 + 4, _GLYPHS[kind % len(_GLYPHS)], anchor="middle", size=10)


def _heat_legend(canvas: Canvas, x: float, scale: Axis, names: Sequence[str] | None, cell: float) -> None:
    if names is None:
        for index in range(5):
            share = 1 - index / 4
            y = _TOP + index * 20
            canvas.rect(x, y, 20, 20, shade(share), GRID)
            canvas.text(x + 26, y + 14, shown(scale.low + share * (scale.high - scale.low)))
        return
    for kind, name in enumerate(names):
        top = _TOP + kind * (cell + 4)
        canvas.rect(x, top, cell, cell, COLORS[kind % len(COLORS)], GRID)
        _glyph(canvas, x, top, cell, kind)
        canvas.text(x + cell + 6, top + cell / 2 + 4, name)
