"""Charts as SVG: the shapes lie where the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.report.page import remote_references
from mmulab.widgets import scene
from mmulab.widgets.scene_svg import COLORS, Axis, Canvas, Svg, coordinate

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
NS = "{http://www.w3.org/2000/svg}"


def shapes(svg: Svg, kind: str, **wanted: str) -> list[ET.Element]:
    """Return the elements of `kind` with these attributes, in the order of drawing."""
    found = ET.fromstring(str(svg)).iter(NS + kind)
    return [item for item in found if all(item.get(key) == value for key, value in wanted.items())]


def texts(svg: Svg) -> list[str]:
    return [item.text or "" for item in shapes(svg, "text")]


def points(item: ET.Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in (item.get("points") or "").split()]
    return [(float(x), float(y)) for x, y in pairs]


ALL = {
    "bars": lambda: scene.bar_chart(["a", "b"], [1, 2], title="Bars"),
    "lines": lambda: scene.line_chart([0, 1], {"a": [1, 2], "b": [2, 1]}, title="Lines"),
    "areas": lambda: scene.stacked_area([0, 1], {"a": [1, 2], "b": [2, 1]}, title="Areas"),
    "heat": lambda: scene.heat_map([[1, 2], [3, None]], title="Heat"),
    "kinds": lambda: scene.heat_map([[0, 1]], names=["free", "used"], title="Kinds"),
    "table": lambda: scene.table(["a"], [[1]], title="Table"),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_picture_stands_alone(make: object) -> None:
    svg = make()  # type: ignore[operator]
    root = ET.fromstring(str(svg))
    assert root.get("role") == "img"
    assert root.get("aria-label") == svg.title
    assert remote_references(str(svg)) == []
    assert str(make()) == str(svg)  # type: ignore[operator]
    assert svg._repr_mimebundle_()["image/svg+xml"] == svg._repr_svg_() == str(svg)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_everything_is_inside_the_frame(make: object) -> None:
    svg = make()  # type: ignore[operator]
    for item in shapes(svg, "rect")[1:]:
        if item.get("x") is None:  # inside a pattern
            continue
        assert (
            0
            <= float(item.get("x", ""))
            <= float(item.get("x", "")) + float(item.get("width", ""))
            <= svg.width
        )
        assert (
            0
            <= float(item.get("y", ""))
            <= float(item.get("y", "")) + float(item.get("height", ""))
            <= svg.height
        )
    for item in [*shapes(svg, "polyline"), *shapes(svg, "polygon")]:
        assert all(0 <= x <= svg.width and 0 <= y <= svg.height for x, y in points(item))


def test_patterns_of_two_pictures_differ_in_name() -> None:
    one = scene.stacked_area([0, 1], {"a": [1, 2]}, title="One")
    two = scene.stacked_area([0, 1], {"a": [1, 2]}, title="Two", y_label="n")
    names = [re.findall(r'id="(\S+?)"', str(svg)) for svg in (one, two)]
    assert names[0]
    assert not set(names[0]) & set(names[1])
    assert f"url(#{names[0][0]})" in str(one)


def test_text_is_escaped() -> None:
    svg = scene.bar_chart(["<&>"], [1], title='"<t>"', value_label="a < b")
    assert {"<&>", '"<t>"', "a < b"} <= set(texts(svg))


def test_bars_are_as_long_as_their_values() -> None:
    svg = scene.bar_chart(["a", "bb", "c"], [10, 20, 0], title="t")
    lengths = [float(bar.get("width", "")) for bar in shapes(svg, "rect", fill=COLORS[0])]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.02)
    assert lengths[2] == 0
    assert lengths[0] > 100


def test_bar_chart_writes_labels_and_values() -> None:
    svg = scene.bar_chart(["direct", "shadow"], [1234567, np.uint64(5)], title="t")
    assert [text for text in texts(svg) if text in ("direct", "1,234,567")] == ["direct", "1,234,567"]
    assert "shadow" in texts(svg)


@pytest.mark.parametrize(("labels", "values"), [(["a"], []), (["a"], [-1])])
def test_bar_chart_refuses(labels: list[str], values: list[float]) -> None:
    with pytest.raises(ValueError, match="one each, none negative"):
        scene.bar_chart(labels, values, title="t")


def test_empty_charts_still_draw() -> None:
    for svg in (
        scene.bar_chart([], [], title="t"),
        scene.line_chart([], {}, title="t"),
        scene.heat_map([], title="t"),
    ):
        assert "t" in texts(svg)


def test_line_goes_through_its_points() -> None:
    svg = scene.line_chart([0, 1, 4], {"a": [0, 10, 5]}, title="t")
    (line,) = [points(item) for item in shapes(svg, "polyline", stroke=COLORS[0]) if len(points(item)) == 3]
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=1e-3)
    assert y1 < y2 < y0


def test_line_has_a_gap_where_a_value_is_missing() -> None:
    svg = scene.line_chart(range(5), {"a": [1, 2, float("nan"), 4, 5]}, title="t")
    runs = [points(item) for item in shapes(svg, "polyline", stroke=COLORS[0])]
    assert [len(run) for run in runs[-2:]] == [2, 2]


def test_series_differ_without_colour() -> None:
    names = [f"s{n}" for n in range(8)]
    svg = scene.line_chart([0, 1], {name: [n, n] for n, name in enumerate(names)}, title="t")
    lines = [shapes(svg, "polyline", stroke=color) for color in COLORS]
    legend, drawn = ([line[at].get("stroke-dasharray") for line in lines] for at in (0, -1))
    assert len(set(drawn)) == 8
    assert legend == drawn
    assert [text for text in texts(svg) if text in names] == names


def test_series_must_have_the_length_of_x() -> None:
    for chart in (scene.line_chart, scene.stacked_area):
        with pytest.raises(ValueError, match="series 'a' has 1 values for 2 of x"):
            chart([0, 1], {"a": [1]}, title="t")


def test_areas_lie_on_each_other() -> None:
    svg = scene.stacked_area([0, 1], {"a": [1, 3], "b": [1, 1]}, title="t")
    lower, upper = (points(item) for item in shapes(svg, "polygon"))
    assert upper[:1:-1] == lower[:2]
    heights = [lower[3][1] - lower[0][1], lower[2][1] - lower[1][1]]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.05)


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_areas_refuse(value: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        scene.stacked_area([0], {"a": [value]}, title="t")


def test_heat_map_gets_darker() -> None:
    svg = scene.heat_map([[0, 1, 2], [3, 4, None]], title="t")
    cells = shapes(svg, "rect", width="20", height="20")[:6]
    tips = [cell[0].text for cell in cells]
    assert tips == ["0: 0", "1: 1", "2: 2", "3: 3", "4: 4", "5: empty"]
    light = [sum(int(cell.get("fill", "")[at : at + 2], 16) for at in (1, 3, 5)) for cell in cells]
    assert light[0] > light[1] > light[2] > light[3] > light[4]
    assert cells[5].get("fill") == "#ffffff"


def test_heat_map_of_kinds_has_a_glyph_in_every_cell() -> None:
    svg = scene.heat_map([[0, 1], [1, None]], names=["free", "used"], title="t")
    glyphs = [text for text in texts(svg) if text in ("0", "1")]
    # Three cells, two rows of the legend, and the number of the first row's first cell.
    assert sorted(glyphs) == ["0", "0", "0", "1", "1", "1"]
    assert {"free", "used"} <= set(texts(svg))


def test_heat_map_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match="must have one length"):
        scene.heat_map([[1, 2], [3]], title="t")


def test_table_marks_rows() -> None:
    svg = scene.table(["gfn", "role"], [["0x1", None], ["0x2", "q1"]], title="t", marked={1})
    bold = [item.text for item in shapes(svg, "text") if item.get("font-weight") == "bold"]
    assert bold == ["t", "gfn", "role", "0x2", "q1"]
    assert len(shapes(svg, "rect", fill="#fff3bf")) == 1


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
def test_axis_holds_its_values_and_ticks(values: list[float], zero: bool) -> None:
    axis = Axis.over(values, 100, 500, zero=zero)
    for value in [*values, *axis.ticks(), *([0.0] if zero else [])]:
        assert 99.99 <= axis.at(value) <= 500.01
    assert len(axis.ticks()) <= 8


def test_ticks_are_round() -> None:
    assert Axis(0, 9, 0, 1).ticks() == [0, 2, 4, 6, 8]
    assert Axis(0, 0.5, 0, 1).ticks() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert Axis(-10, 10, 0, 1).ticks(5) == [-10, -5, 0, 5, 10]


def test_coordinates_are_short() -> None:
    assert [coordinate(value) for value in (1, 1.5, 1.006, -0.001, 100, 0.125)] == [
        "1",
        "1.5",
        "1.01",
        "0",
        "100",
        "0.12",
    ]


def test_canvas_describes_itself() -> None:
    svg = Canvas(30, 20, "nothing", heading=False).svg()
    assert repr(svg) == "<Svg 'nothing', 30 x 20>"
    assert texts(svg) == []


def test_colours_that_return_have_another_hatching() -> None:
    series = {f"series {number}": [1.0, 2.0] for number in range(2 * len(COLORS))}
    patterns = shapes(scene.stacked_area([0, 1], series, title="Areas"), "pattern")
    looks = [b"".join(ET.tostring(part) for part in pattern) for pattern in patterns]
    assert len(looks) == len(set(looks)) == len(series)
