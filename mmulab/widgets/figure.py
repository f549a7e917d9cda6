"""Figures with two bodies: an interactive one for JupyterLab, a picture for everywhere else.

A :class:`Twin` shows itself as one output that holds both. JupyterLab takes the
bqplot figure; an exported page, which has neither kernel nor network, takes the
SVG. The chart functions below make both from the same numbers.

bqplot sends int64 as int32 and loses the upper bits without a word, so every
number goes to it as float64, and one that float64 cannot hold is refused.
Addresses belong into labels, as strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import bqplot
import ipywidgets
import numpy as np
import numpy.typing as npt

from mmulab.widgets import scene
from mmulab.widgets.scene_svg import COLORS, GRID, Svg

__all__ = ["Twin", "bar_chart", "floats", "heat_map", "line_chart", "stacked_area", "twin"]

Numbers = Sequence[float]

_STYLES = ("solid", "dashed", "dotted", "dash_dotted")
_SHAPES = ("square", "triangle-up", "diamond", "triangle-down", "rectangle", "circle", "cross", "ellipse")

_SHADES = 32
"""Steps between the lightest and the darkest cell of a heat map."""


class Twin:
    """A picture and an interactive widget of the same content.

    Attributes
    ----------
    svg : Svg
    widget : ipywidgets.DOMWidget
    """

    def __init__(self, svg: Svg, widget: Any) -> None:
        self.svg = svg
        self.widget = widget

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {**self.widget._repr_mimebundle_(), **self.svg._repr_mimebundle_()}


def twin(svg: Svg, make_bqplot: Callable[[], Any]) -> Twin:
    """Return `svg` together with the widget that `make_bqplot` makes."""
    return Twin(svg, make_bqplot())


def floats(values: Iterable[float | None]) -> npt.NDArray[np.float64]:
    """Return `values` as float64, None as NaN.

    Raises
    ------
    ValueError
        If an integer is above 2**53, where float64 has holes.
    """
    known = [float("nan") if value is None else value for value in values]
    for value in known:
        if abs(value) > 2**53:
            raise ValueError(f"{value} is too large for a figure; show it as a string")
    return np.array(known, dtype=np.float64)


def bar_chart(
    labels: Sequence[str], values: Numbers, *, title: str, value_label: str = "", width: float = 760
) -> Twin:
    """Return :func:`mmulab.widgets.scene.bar_chart` with its interactive twin."""
    svg = scene.bar_chart(labels, values, title=title, value_label=value_label, width=width)

    def make() -> Any:
        scales = {"x": bqplot.OrdinalScale(), "y": bqplot.LinearScale(min=0.0)}
        # bqplot draws the first bar at the bottom, the picture at the top.
        bars = bqplot.Bars(
            x=list(labels)[::-1],
            y=floats(values)[::-1],
            scales=scales,
            orientation="horizontal",
            colors=[COLORS[0]],
            tooltip=bqplot.Tooltip(fields=["x", "y"], labels=["", value_label]),
        )
        axes = [
            bqplot.Axis(scale=scales["x"], side="left"),
            bqplot.Axis(scale=scales["y"], label=value_label),
        ]
        left = max((len(label) for label in labels), default=0) * 8 + 20
        return _figure([bars], axes, title, svg, left=left)

    return twin(svg, make)


def line_chart(
    x: Numbers, series: Mapping[str, Numbers], *, title: str, x_label: str = "", y_label: str = ""
) -> Twin:
    """Return :func:`mmulab.widgets.scene.line_chart` with its interactive twin, which can be zoomed."""
    svg = scene.line_chart(x, series, title=title, x_label=x_label, y_label=y_label)

    def make() -> Any:
        scales = {"x": bqplot.LinearScale(), "y": bqplot.LinearScale()}
        marks = [
            bqplot.Lines(
                x=floats(x),
                y=floats(values),
                scales=scales,
                colors=[COLORS[index % len(COLORS)]],
                line_style=_STYLES[index % len(_STYLES)],
                marker=_SHAPES[index % len(_SHAPES)],
                marker_size=24,
                labels=[name],
                display_legend=True,
            )
            for index, (name, values) in enumerate(series.items())
        ]
        return _figure(marks, _axes(scales, x_label, y_label), title, svg, zoom=scales)

    return twin(svg, make)


def stacked_area(
    x: Numbers, series: Mapping[str, Numbers], *, title: str, x_label: str = "", y_label: str = ""
) -> Twin:
    """Return :func:`mmulab.widgets.scene.stacked_area` with its interactive twin, which can be zoomed."""
    svg = scene.stacked_area(x, series, title=title, x_label=x_label, y_label=y_label)

    def make() -> Any:
        scales = {"x": bqplot.LinearScale(), "y": bqplot.LinearScale(min=0.0)}
        tops = accumulate((floats(values) for values in series.values()), np.add)
        # The highest first: each area reaches to the bottom and is covered by those below it.
        marks = [
            bqplot.Lines(
                x=floats(x),
                y=top,
                scales=scales,
                fill="bottom",
                colors=[COLORS[index % len(COLORS)]],
                fill_colors=[COLORS[index % len(COLORS)]],
                fill_opacities=[1.0],
                labels=[name],
                display_legend=True,
            )
            for index, (name, top) in enumerate(zip(series, tops, strict=True))
        ][::-1]
        return _figure(marks, _axes(scales, x_label, y_label), title, svg, zoom=scales)

    return twin(svg, make)


def heat_map(
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    value_label: str = "",
    names: Sequence[str] | None = None,
) -> Twin:
    """Return :func:`mmulab.widgets.scene.heat_map` with its interactive twin."""
    svg = scene.heat_map(values, title=title, value_label=value_label, names=names)

    def make() -> Any:
        cells = np.array([floats(row) for row in values])
        known = cells[np.isfinite(cells)]
        low = float(known.min()) if len(known) else 0.0
        high = float(known.max()) if len(known) and known.max() > low else low + 1.0
        colors = [scene.shade(number / _SHADES) for number in range(_SHADES + 1)]
        if names is not None:
            low, high = 0.0, float(max(len(names) - 1, 1))
            colors = [COLORS[number % len(COLORS)] for number in range(int(high) + 1)]
        # bqplot paints NaN black, so empty cells get a number below all others, and white.
        empty = low - (high - low) / (len(colors) - 1)
        scales = {
            "row": bqplot.OrdinalScale(reverse=True),
            "column": bqplot.OrdinalScale(),
            "color": bqplot.ColorScale(colors=["#ffffff", *colors], min=empty, max=high),
        }
        grid = bqplot.GridHeatMap(
            color=np.where(np.isfinite(cells), cells, empty), scales=scales, stroke=GRID
        )
        if names is None:
            axis = bqplot.ColorAxis(scale=scales["color"], label=value_label)
            return _figure([grid], [axis], title, svg)
        return ipywidgets.VBox([_figure([grid], [], title, svg), _key(names, value_label)])

    return twin(svg, make)


def _key(names: Sequence[str], value_label: str) -> Any:
    """Return the names of the kinds of cells beside their colours; bqplot has no such legend."""
    shown = "".join(
        f'<span style="margin-left: 1.5em; white-space: nowrap">'
        f'<span style="color: {COLORS[index % len(COLORS)]}">&#9632;</span> {escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return ipywidgets.HTML(f'<div style="margin-left: 80px">{escape(value_label)}{shown}</div>')


def _axes(scales: Mapping[str, Any], x_label: str, y_label: str) -> list[Any]:
    return [
        bqplot.Axis(scale=scales["x"], label=x_label),
        bqplot.Axis(scale=scales["y"], label=y_label, side="left", label_offset="4em"),
    ]


def _figure(
    marks: Sequence[Any],
    axes: Sequence[Any],
    title: str,
    svg: Svg,
    *,
    left: float = 80,
    zoom: Mapping[str, Any] | None = None,
) -> Any:
    """Return a bqplot figure of the picture's size."""
    figure = bqplot.Figure(
        marks=list(marks),
        axes=list(axes),
        title=title,
        legend_location="top-left",
        fig_margin={"top": 48, "bottom": 56, "left": left, "right": 32},
        layout={"width": f"{svg.width:.0f}px", "height": f"{max(svg.height, 240):.0f}px"},
    )
    if zoom is not None:
        figure.interaction = bqplot.PanZoom(scales={"x": [zoom["x"]]})
    return figure
