"""Figures with an interactive twin: both bodies show the same numbers."""

from __future__ import annotations

import bqplot
import numpy as np
import pytest

from mmulab.widgets import figure, scene
from mmulab.widgets.scene_svg import COLORS

WIDGET = "application/vnd.jupyter.widget-view+json"


def test_twin_has_both_bodies() -> None:
    svg = scene.bar_chart(["a"], [1], title="t")
    widget = bqplot.Figure()
    bundle = figure.twin(svg, lambda: widget)._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] == widget.model_id
    assert bundle["image/svg+xml"] == str(svg)
    assert bundle["text/plain"] == repr(svg)


def test_bars() -> None:
    made = figure.bar_chart(["a", "b"], [1, 2], title="t", value_label="n")
    (bars,) = made.widget.marks
    assert list(bars.x) == ["b", "a"]
    assert bars.y.tolist() == [2.0, 1.0]
    assert str(made.svg) == str(scene.bar_chart(["a", "b"], [1, 2], title="t", value_label="n"))


def test_lines() -> None:
    made = figure.line_chart([0, 1], {"a": [1, 2], "b": [3, 4]}, title="t")
    assert [(mark.labels, mark.y.tolist()) for mark in made.widget.marks] == [
        (["a"], [1, 2]),
        (["b"], [3, 4]),
    ]
    assert len({mark.line_style for mark in made.widget.marks}) == 2


def test_areas_are_summed_and_the_highest_is_drawn_first() -> None:
    made = figure.stacked_area([0, 1], {"a": [1, 2], "b": [3, 4]}, title="t")
    assert [(mark.labels, mark.y.tolist()) for mark in made.widget.marks] == [
        (["b"], [4, 6]),
        (["a"], [1, 2]),
    ]


def test_heat_map_keeps_rows_and_gaps() -> None:
    (grid,) = figure.heat_map([[1, None], [3, 4]], title="t").widget.marks
    scale = grid.scales["color"]
    assert grid.color[[0, 1, 1], [0, 0, 1]].tolist() == [1, 3, 4]
    assert grid.color[0, 1] == scale.min < 1, "the gap stands below all values"
    assert (scale.colors[0], scale.max) == ("#ffffff", 4)


def test_heat_map_of_kinds_names_them() -> None:
    svg_and_widget = figure.heat_map([[0, 1], [None, 1]], title="t", names=["left", "a < b"])
    plot, key = svg_and_widget.widget.children
    (grid,) = plot.marks
    scale = grid.scales["color"]
    assert grid.color.tolist() == [[0, 1], [-1, 1]]
    assert (scale.min, scale.max) == (-1, 1)
    assert scale.colors == ["#ffffff", *COLORS[:2]]
    assert "left" in key.value
    assert "a &lt; b" in key.value


@pytest.mark.parametrize("values", [[[None, None]], [[3, 3]]], ids=["empty", "one-value"])
def test_heat_map_of_nothing_to_tell_apart(values: list[list[float | None]]) -> None:
    (grid,) = figure.heat_map(values, title="t").widget.marks
    assert grid.scales["color"].min < grid.scales["color"].max


def test_every_number_goes_as_float64() -> None:
    (line,) = figure.line_chart([0, 2**40], {"a": [2**40, 2**53]}, title="t").widget.marks
    (bars,) = figure.bar_chart(["a"], [np.uint64(2**40)], title="t").widget.marks
    assert [values.dtype for values in (line.x, line.y, bars.y)] == [np.float64] * 3
    assert line.y.tolist() == [2**40, 2**53]


def test_number_that_float64_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="show it as a string"):
        figure.floats([1, 2**53 + 1])
