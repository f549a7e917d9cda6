"""Bars of several measures: every number is written, and limits are on the scale."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import bqplot
import pytest

from mmulab.widgets.multiples import multiples

NS = "{http://www.w3.org/2000/svg}"
MEASURES = {"pages": [1234, 2], "bits": [26.5, 27], "zaps": [0, 0]}


def test_every_number_is_written_and_as_long_as_it_says() -> None:
    figure = multiples(["one", "two"], MEASURES, title="t", marked=[1])
    root = ET.fromstring(str(figure.svg))
    texts = [item.text for item in root.iter(NS + "text")]
    assert {"one", "two", "pages", "1,234", "2", "bits", "26.5", "27", "zaps"} <= set(texts)
    bars = {
        item.find(NS + "title").text: item
        for item in root.iter(NS + "rect")
        if item.find(NS + "title") is not None
    }  # type: ignore[union-attr]
    long, short = float(bars["pages: 1,234"].get("width", 0)), float(bars["pages: 2"].get("width", 0))
    assert short == pytest.approx(long * 2 / 1234, abs=0.02)
    assert "url(" in bars["pages: 2"].get("fill", ""), "a marked row is hatched"
    assert "url(" not in bars["pages: 1,234"].get("fill", "")


def test_values_stand_behind_the_limit() -> None:
    figure = multiples(["one", "two"], {"bits": [3, 20]}, title="t", limits={"bits": 16})
    root = ET.fromstring(str(figure.svg))
    (dashed,) = (item for item in root.iter(NS + "polyline") if item.get("stroke-dasharray"))
    line = float(re.split("[ ,]", dashed.get("points", ""))[0])
    places = {item.text: float(item.get("x", 0)) for item in root.iter(NS + "text")}
    assert places["20"] > places["3"] > line
    assert max(places.values()) < figure.svg.width


def test_interactive_twin_has_the_numbers() -> None:
    figure = multiples(["one", "two"], MEASURES, title="t", limits={"bits": 32})
    heading, row = figure.widget.children
    assert "t" in heading.value
    assert [list(shape.marks[0].y[::-1]) for shape in row.children] == [list(v) for v in MEASURES.values()]
    assert all(isinstance(shape.marks[0], bqplot.Bars) for shape in row.children)
    assert row.children[1].title == "bits, limit 32"
    assert [shape.marks[0].scales["y"].max for shape in row.children] == [
        1.02 * most for most in (1234, 32, 1)
    ]


def test_interactive_bars_reach_beyond_the_limit() -> None:
    figure = multiples(["one", "two"], {"bits": [3, 20]}, title="t", limits={"bits": 16})
    (shape,) = figure.widget.children[1].children
    assert shape.marks[0].scales["y"].max > 20


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="t: pages has 1 values for 2 rows"):
        multiples(["one", "two"], {"pages": [1]}, title="t")
