"""The picture of the quadrants."""

from __future__ import annotations

import re

from mmulab.widgets.quadrants import quadrants_picture


def test_each_quadrant_has_its_count() -> None:
    pages = {(2, 0): 5, (2, 1): 1, (2, 2): 1234, (1, 0): 43, (1, 1): 31}
    svg = quadrants_picture(pages, title="Quadrants")
    found = re.findall(r"quadrant (\d): ([\d,]+) shadow pages?<", str(svg))
    assert found == [("0", "5"), ("1", "1"), ("2", "1,234"), ("3", "0"), ("0", "43"), ("1", "31")]
    assert "1 shadow page<" in str(svg)


def test_parts_of_a_table_cover_it() -> None:
    svg = str(quadrants_picture({}, title="Quadrants"))
    ranges = [(int(a), int(b)) for a, b in re.findall(r"entries (\d+) to (\d+):", svg)]
    assert ranges == [(0, 255), (256, 511), (512, 767), (768, 1023), (0, 511), (512, 1023)]
