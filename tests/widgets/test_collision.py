"""Words above each other: a column a field, what differs marked, what is missing named."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.report.page import remote_references
from mmulab.widgets.bitfield import Lane, lanes
from mmulab.widgets.collision import collision_picture, fields_that_differ
from mmulab.widgets.words import role_cells

NS = "{http://www.w3.org/2000/svg}"
PRE_FIX, PASSTHROUGH, GLEVELS = (DESIGNS[name] for name in ("pre_fix", "passthrough", "glevels"))


def texts(svg: object) -> list[tuple[str, float, float]]:
    return [
        (item.text or "", float(item.get("x", 0)), float(item.get("y", 0)))
        for item in ET.fromstring(str(svg)).iter(NS + "text")
    ]


def test_the_missing_field_stands_under_its_name() -> None:
    svg = collision_picture(PRE_FIX, 0x21705, PASSTHROUGH, (0x61705, 0x21705), title="one word")
    found = texts(svg)
    assert remote_references(str(svg)) == []
    (name,) = [(x, y) for text, x, y in found if text == "passthrough"]
    (missing,) = [(x, y) for text, x, y in found if text == "missing"]
    (was,) = [(x, y) for text, x, y in found if text == "≠0"]
    assert abs(name[0] - missing[0]) < 3
    assert missing[0] == was[0]
    assert name[1] < missing[1] < was[1]
    labels = [text for text, _, _ in found if "0x" in text]
    assert labels == [
        "D0 pre_fix, both pages 0x21705",
        "D4 passthrough, the page found 0x61705",
        "D4 passthrough, the page wanted 0x21705",
    ]


def test_a_field_has_one_column() -> None:
    words = [Lane(d.id, role_cells(d.layout, 0)) for d in (GLEVELS, PASSTHROUGH)]
    names = {name for d in (GLEVELS, PASSTHROUGH) for name in d.layout.shift}
    found = [text for text, _, _ in texts(lanes(words, title="t"))]
    assert [found.count(name) for name in sorted(names)] == [1] * len(names)
    assert "missing" not in found, "a field that is elsewhere is not missing by itself"


@given(st.sampled_from(list(DESIGNS.values())), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_fields_that_differ(design: RoleDesign, one: int, other: int) -> None:
    named = sum(design.layout.mask.values())
    differ = sum(design.layout.mask[name] for name in fields_that_differ(design, one, other))
    assert (one ^ other) & named & ~differ == 0
    assert all((one ^ other) & design.layout.mask[name] for name in fields_that_differ(design, one, other))
