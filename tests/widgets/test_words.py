"""Words cut into bit strips: every bit lies in one cell and says what it is."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.roles.design import DESIGNS, LAYOUT_6_1
from mmulab.kvm.spte import SpteFormat, ept_format, shadow_format
from mmulab.widgets.bitfield import Cell, strip
from mmulab.widgets.words import gpte_cells, role_cells, span, spte_cells

FORMATS = [shadow_format(40), ept_format(40, has_ad=True), ept_format(40, has_ad=False)]


def value(cells: list[Cell]) -> int:
    """Put a word together again from its cells."""
    word = 0
    for cell in cells:
        low = int(cell.bits.split("-")[-1])
        word |= int(cell.text, 16) << low
    return word


@pytest.mark.parametrize("name", DESIGNS)
@given(role=st.integers(0, 2**32 - 1))
def test_role_cells_follow_the_layout(name: str, role: int) -> None:
    layout = DESIGNS[name].layout
    cells = role_cells(layout, role)
    shown = {cell.name: cell.text for cell in cells if cell.name}
    known = layout.unpack(role)
    assert list(shown) == list(known)[::-1]
    assert {k: int(v, 16) for k, v in shown.items() if k != "access"} == {
        k: v for k, v in known.items() if k != "access"
    }
    assert len(shown["access"]) == 3


def test_access_is_worded_as_the_trace() -> None:
    cells = {c.name: c.text for c in role_cells(LAYOUT_6_1, LAYOUT_6_1.pack(access=5))}
    assert cells["access"] == "-ux"


@given(st.integers(0, 2**64 - 1), st.sampled_from(FORMATS))
def test_spte_cells_hold_the_word(spte: int, fmt: SpteFormat) -> None:
    assert value(spte_cells(fmt, spte)) == spte


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_gpte_cells_hold_the_word(short: int, full: int) -> None:
    assert value(gpte_cells(short, 4)) == short
    assert value(gpte_cells(full, 8)) == full


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from(FORMATS))
def test_what_differs_is_marked(spte: int, other: int, fmt: SpteFormat) -> None:
    cells = spte_cells(fmt, spte, other)
    was = [cell._replace(text=cell.was or cell.text) for cell in cells]
    assert value(was) == other
    assert [cell for cell in spte_cells(fmt, spte, spte) if cell.was is not None] == []


def test_kernel_names_of_bits() -> None:
    shadow = {cell.name for cell in spte_cells(FORMATS[0], 0) if cell.name}
    ept = {cell.name for cell in spte_cells(FORMATS[1], 0) if cell.name}
    assert {"NX", "U", "P", "mmu_present", "host_writable", "mmu_writable"} < shadow
    assert {"R", "W", "X", "A", "D", "IPAT", "mmu_present"} < ept
    assert not {"NX", "U", "P"} & ept


def test_span() -> None:
    assert (span(4, 1), span(5, 2)) == ("4", "6-5")


def test_strip_marks_without_colour() -> None:
    svg = strip([Cell("quadrant", "1", "6-5", True, "0"), Cell("level", "2", "3-0", True)], title="t")
    texts = [item.text for item in ET.fromstring(str(svg)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"quadrant", "1", "6-5", "≠0", "level", "2", "3-0"} <= set(texts)
    assert svg._repr_svg_() == str(svg)
