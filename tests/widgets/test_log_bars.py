"""Bars on a logarithmic scale: a tenfold value is one decade longer, and an open end is told."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import bqplot
import pytest

from mmulab.widgets.log_bars import log_bars

NS = "{http://www.w3.org/2000/svg}"


def bars(markup: str) -> dict[str, ET.Element]:
    found = {}
    for item in ET.fromstring(markup).iter(NS + "rect"):
        title = item.find(NS + "title")
        if title is not None:
            found[title.text or ""] = item
    return found


def test_a_decade_is_a_decade_everywhere() -> None:
    figure = log_bars(["a", "b", "c"], [0.2, 2, 20], title="t", value_label="s")
    widths = [float(bar.get("width", 0)) for bar in bars(str(figure.svg)).values()]
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1], abs=0.02)
    assert widths[0] > 0
    ticks = {item.text for item in ET.fromstring(str(figure.svg)).iter(NS + "text")}
    assert {"0.1", "1", "10", "100", "s"} <= ticks


def test_an_open_end_is_hatched_and_said() -> None:
    drawn = bars(str(log_bars(["a", "b"], [3, 30], title="t", open_ended=[1]).svg))
    assert "url(" not in drawn["a: 3"].get("fill", "")
    assert "url(" in drawn["b: > 30"].get("fill", "")


def test_the_smallest_bar_can_be_seen_where_it_is_a_power_of_ten() -> None:
    drawn = bars(str(log_bars(["a"], [1], title="t").svg))
    assert float(drawn["a: 1"].get("width", 0)) > 10


def test_interactive_twin_has_the_numbers() -> None:
    figure = log_bars(["a", "b"], [3, 30], title="t", open_ended=[1])
    (mark,) = figure.widget.marks
    assert isinstance(mark, bqplot.Bars)
    assert (list(mark.x), list(mark.y)) == (["b", "a"], [30, 3])
    assert isinstance(figure.widget.axes[1].scale, bqplot.LogScale)


def test_nothing_at_all_can_be_drawn() -> None:
    assert "t" in str(log_bars([], [], title="t").svg)


@pytest.mark.parametrize("values", [[1.0], [1.0, 0.0], [1.0, -2.0]])
def test_wrong_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="t: 2 labels"):
        log_bars(["a", "b"], values, title="t")
