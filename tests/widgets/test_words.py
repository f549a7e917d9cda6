"""Words cut into bit strips: every bit lies in one cell and says what it is."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.roles.design import DESIGNS, LAYOUT_6_1
from mmulab.kvm.spte import SpteFormat, ept_format, make_mmio_spte, make_nonleaf_spte, shadow_format
from mmulab.widgets.bitfield import Cell, strip
from mmulab.widgets.words import gpte_cells, role_cells, span, spte_cells, spte_flags

FORMATS = [
    shadow_format(40),
    ept_format(40, has_ad=True),
    ept_format(40, has_ad=False),
    shadow_format(40, cache_bits=44, nonpresent=True),
    ept_format(40, has_ad=True, nonpresent=True, suppress_ve=True),
]


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


def test_bits_are_named_after_the_kind_of_the_entry() -> None:
    """Bit 9 is of the generation in an MMIO entry, and bit 63 is no NX in an empty one."""
    shadow = FORMATS[3]
    mmio = make_mmio_spte(shadow, 0xFEE00, 6, 0x7F)
    assert spte_flags(shadow, mmio, 1) == ""
    names = {cell.name: cell.text for cell in spte_cells(shadow, mmio) if cell.set}
    assert (names["gfn"], names["access"]) == ("fee00", "3")
    assert ("generation", "10-3", "7f") in {(c.name, c.bits, c.text) for c in spte_cells(shadow, mmio)}
    assert not {"P", "W", "host_writable"} & set(names)
    assert spte_flags(shadow, 1 << 63, 1) == "nonpresent"
    assert spte_flags(FORMATS[0], 1 << 63 | 0x8300801, 1) == "P NX"


def test_a_link_has_no_bits_of_a_page() -> None:
    link = make_nonleaf_spte(FORMATS[0], 5, ad_disabled=False)
    assert spte_flags(FORMATS[0], link, 2) == "P W U A"
    names = {cell.name for cell in spte_cells(FORMATS[0], link, level=2)}
    assert names == {"ad_type", "pfn", "mmu_present", "A", "U", "W", "P"}


def test_a_cleared_entry_is_cut_as_what_it_was() -> None:
    cells = spte_cells(FORMATS[3], 1 << 63, 0x8300E67)
    was = {cell.name: cell.was for cell in cells}
    assert (was["pfn"], was["host_writable"], was["D"]) == ("8300", "1", "1")


def test_span() -> None:
    assert (span(4, 1), span(5, 2)) == ("4", "6-5")


def test_strip_marks_without_colour() -> None:
    svg = strip([Cell("quadrant", "1", "6-5", True, "0"), Cell("level", "2", "3-0", True)], title="t")
    texts = [item.text for item in ET.fromstring(str(svg)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"quadrant", "1", "6-5", "≠0", "level", "2", "3-0"} <= set(texts)
    assert svg._repr_svg_() == str(svg)
