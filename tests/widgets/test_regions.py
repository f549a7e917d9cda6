"""Who wins where: a cell for each pair of prices, under the prices that it is for."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from mmulab.report.page import remote_references
from mmulab.widgets.regions import Region, regions_picture

NS = "{http://www.w3.org/2000/svg}"
X, Y = [1.0, 2.0, 4.0], [10.0, 20.0]
REGION = Region("work", X, Y, [["a", "a", "b"], ["a", "b", "b"]], "a")
ENDS = {"x": ("exit", (1.0, 2.0, 4.0)), "y": ("entry", (10.0, 15.0, 20.0))}


def cells(markup: str) -> dict[str, tuple[float, float, str]]:
    """Return place and fill of each cell by what it says."""
    return {
        rect.find(NS + "title").text: (float(rect.get("x")), float(rect.get("y")), rect.get("fill"))  # type: ignore[arg-type,union-attr,misc]
        for rect in ET.fromstring(markup).iter(NS + "rect")
        if rect.find(NS + "title") is not None
    }


def test_a_cell_says_its_prices_and_its_winner_and_lies_there() -> None:
    svg = regions_picture([REGION], title="t", **ENDS)
    assert remote_references(str(svg)) == []
    found = cells(str(svg))
    assert set(found) == {
        f"exit {x:g}, entry {y:g}: {REGION.winners[row][column]}"
        for row, y in enumerate(Y)
        for column, x in enumerate(X)
    }
    low, high = found["exit 1, entry 10: a"], found["exit 4, entry 20: b"]
    assert low[0] < high[0]
    assert low[1] > high[1], "prices rise upwards"
    assert low[2] != high[2]
    assert found["exit 2, entry 20: b"][2] == high[2]


def test_regions_share_a_key_and_stand_apart() -> None:
    many = regions_picture([REGION._replace(title=f"work {n}") for n in range(5)], title="t", **ENDS)
    texts = [item.text for item in ET.fromstring(str(many)).iter(NS + "text")]
    assert texts.count("a") == texts.count("b") == 1
    assert [text for text in texts if text and text.startswith("work")] == [f"work {n}" for n in range(5)]
    assert many.height > regions_picture([REGION] * 3, title="t", **ENDS).height


@pytest.mark.parametrize("found", [[], [Region("one", [1.0], [1.0], [["a"]], "a")]])
def test_little_is_a_picture_too(found: list[Region]) -> None:
    ET.fromstring(str(regions_picture(found, title="t", **ENDS)))
