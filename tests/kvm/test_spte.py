"""Shadow entries: their bits in each format, and what is packed into them and out again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_lines
from mmulab.kvm.spte import (
    MMIO_SPTE_GEN_MASK,
    SPTE_MMU_PRESENT_MASK,
    SPTE_TDP_AD_DISABLED_MASK,
    SPTE_TDP_AD_WRPROT_ONLY_MASK,
    SpteFormat,
    ept_format,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_access_track_spte,
    is_accessed_spte,
    is_dirty_spte,
    is_executable_pte,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    is_writable_pte,
    make_huge_page_split_spte,
    make_mmio_spte,
    make_nonleaf_spte,
    make_spte_executable,
    mark_spte_for_access_track,
    restore_acc_track_spte,
    shadow_format,
    spte_ad_enabled,
    spte_to_pfn,
)
from mmulab.x86.pferr import ACC_ALL

DATA = Path(__file__).parents[2] / "data/conformance/6.1.192"
FORMATS = {
    "shadow40": shadow_format(40),
    "shadow46-l1tf": shadow_format(46, cache_bits=46),
    "shadow40-l1tf44": shadow_format(40, cache_bits=44),
    "ept": ept_format(40, has_ad=True),
    "ept-l1tf": ept_format(40, has_ad=True, cache_bits=44),
    "ept-noad": ept_format(40, has_ad=False),
}
GFN_BITS = {"shadow46-l1tf": 46, "shadow40-l1tf44": 44, "ept-l1tf": 44}
"""Physical-address width that an MMIO entry has room for, where it is not 40."""
SHADOW, EPT, NOAD = FORMATS["shadow40"], FORMATS["ept"], FORMATS["ept-noad"]


@pytest.mark.parametrize("name", FORMATS)
@given(st.data(), st.integers(0, ACC_ALL), st.integers(0, (1 << 30) - 1))
def test_an_mmio_entry_keeps_gfn_access_and_generation(
    name: str, data: st.DataObject, access: int, generation: int
) -> None:
    fmt = FORMATS[name]
    gfn = data.draw(st.integers(0, (1 << GFN_BITS.get(name, 40) - 12) - 1))
    spte = make_mmio_spte(fmt, gfn, access, generation)
    assert is_mmio_spte(fmt, spte)
    assert not is_shadow_present_pte(spte)
    assert get_mmio_spte_gfn(fmt, spte) == gfn
    assert get_mmio_spte_access(fmt, spte) == access & fmt.mmio_access
    assert get_mmio_spte_generation(spte) == generation & MMIO_SPTE_GEN_MASK
    assert spte >> 63 == 0


@pytest.mark.parametrize("name", ["shadow46-l1tf", "shadow40-l1tf44", "ept-l1tf"])
@given(st.data())
def test_an_mmio_entry_points_beyond_what_the_l1_cache_can_hold(name: str, data: st.DataObject) -> None:
    """Its highest five cached address bits are set: ``shadow_nonpresent_or_rsvd_mask``."""
    fmt = FORMATS[name]
    bits = GFN_BITS[name]
    gfn = data.draw(st.integers(0, (1 << bits - 12) - 1))
    assert make_mmio_spte(fmt, gfn, 7, 3) >> bits - 5 & 31 == 31


def recorded_mmio(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each recorded (check_mmio_spte, handle_mmio_page_fault) of one op."""
    found = []
    for line in read_lines(path)[1:-1]:
        for check, handled in pairwise(json.loads(line)["ev"]):
            if check["e"] == "check_mmio_spte" and handled["e"] == "handle_mmio_page_fault":
                found.append((check, handled))
    return found


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("sh/mmio-64", SHADOW),
        ("intel-sh/mmio-64", FORMATS["shadow40-l1tf44"]),
        ("ept0/mmio-64", FORMATS["ept-l1tf"]),
    ],
)
def test_recorded_mmio_entries_decode(name: str, fmt: SpteFormat) -> None:
    (path,) = DATA.glob(f"{name}.jsonl*")
    found = recorded_mmio(path)
    assert found
    for check, handled in found:
        spte = int(check["v"], 16)
        assert is_mmio_spte(fmt, spte)
        assert get_mmio_spte_gfn(fmt, spte) == int(handled["gfn"], 16)
        assert get_mmio_spte_generation(spte) == check["spte_gen"]


def test_a_processor_with_52_bits_needs_another_mark() -> None:
    """Nothing is reserved then, so MMIO entries of shadow paging cannot exist (``shadow_mmio_value`` 0)."""
    assert not is_mmio_spte(shadow_format(52), make_mmio_spte(shadow_format(52), 5, 7, 1))


# Access tracking ------------------------------------------------------------------

RWX = st.integers(1, 7)


@given(RWX, st.integers(0, (1 << 28) - 1), st.booleans())
def test_access_tracking_can_be_undone(rwx: int, pfn: int, mmu_writable: bool) -> None:
    """R and X come back; W does not, it is MMU-writable that remembers it."""
    spte = SPTE_MMU_PRESENT_MASK | SPTE_TDP_AD_DISABLED_MASK | NOAD.memtype | pfn << 12 | rwx
    spte |= NOAD.mmu_writable if mmu_writable else 0
    tracked = mark_spte_for_access_track(NOAD, spte)
    assert is_access_track_spte(NOAD, tracked)
    assert tracked & 7 == 0
    assert not is_accessed_spte(NOAD, tracked)
    assert mark_spte_for_access_track(NOAD, tracked) == tracked
    assert restore_acc_track_spte(NOAD, tracked) == spte & ~2
    assert spte_to_pfn(tracked) == pfn


def test_with_an_a_bit_tracking_is_that_bit() -> None:
    spte = SPTE_MMU_PRESENT_MASK | EPT.accessed | EPT.dirty | 7
    assert mark_spte_for_access_track(EPT, spte) == spte & ~EPT.accessed
    assert not is_access_track_spte(EPT, spte & ~7)


def test_the_values_of_recorded_ept_entries() -> None:
    """Bits of EPT in 6.1: ..b77 written, 0x61..877 without A/D, 0x75..870 tracked."""
    written = (3 << 57) | SPTE_MMU_PRESENT_MASK | EPT.accessed | EPT.dirty | EPT.memtype | 7
    assert written & 0xFFF == 0xB77
    assert mark_spte_for_access_track(NOAD, 0x0610000000000877) == 0x0750000000000870
    assert restore_acc_track_spte(NOAD, 0x0750000000000870) == 0x0610000000000875


def test_the_values_of_recorded_shadow_entries() -> None:
    """A written page is ..e67: P W U A D and bits 9, 10 and 11."""
    assert SHADOW.host_writable | SHADOW.mmu_writable | SPTE_MMU_PRESENT_MASK == 0xE00
    assert SHADOW.present | SHADOW.user | SHADOW.accessed | SHADOW.dirty | 2 == 0x67
    assert SHADOW.mmio_value == 1 << 51 | 1
    assert FORMATS["ept"].mmio_value == 6


# Predicates -----------------------------------------------------------------------


def test_dirty_and_accessed_are_bits_or_what_stands_for_them() -> None:
    assert is_dirty_spte(SHADOW, SHADOW.dirty)
    assert not is_dirty_spte(SHADOW, 2)
    without = SPTE_TDP_AD_DISABLED_MASK
    assert is_dirty_spte(SHADOW, without | 2)
    assert not is_dirty_spte(SHADOW, without | SHADOW.dirty)
    assert is_accessed_spte(SHADOW, SHADOW.accessed)
    assert not is_accessed_spte(SHADOW, SHADOW.present)
    assert is_accessed_spte(NOAD, without | 1)
    assert spte_ad_enabled(SPTE_TDP_AD_WRPROT_ONLY_MASK)
    assert not spte_ad_enabled(without)


def test_x_is_a_right_in_ept_and_the_lack_of_nx_elsewhere() -> None:
    assert is_executable_pte(SHADOW, 1)
    assert not is_executable_pte(SHADOW, 1 | 1 << 63)
    assert is_executable_pte(EPT, 4)
    assert not is_executable_pte(EPT, 1)
    assert make_spte_executable(SHADOW, 1 << 63 | 1) == 1
    assert make_spte_executable(EPT, 1) == 5


def test_a_tracked_entry_stays_tracked_when_it_becomes_executable() -> None:
    tracked = mark_spte_for_access_track(NOAD, SPTE_MMU_PRESENT_MASK | SPTE_TDP_AD_DISABLED_MASK | 3)
    made = make_spte_executable(NOAD, tracked)
    assert is_access_track_spte(NOAD, made)
    assert restore_acc_track_spte(NOAD, made) & 7 == 5


def test_a_leaf_above_level_1_has_the_page_size_bit() -> None:
    assert is_last_spte(0, 1)
    assert is_last_spte(0x80, 2)
    assert not is_last_spte(0x7F, 2)


@pytest.mark.parametrize(("fmt", "ad_disabled"), [(SHADOW, False), (EPT, False), (EPT, True), (NOAD, True)])
def test_a_link_has_all_rights(fmt: SpteFormat, ad_disabled: bool) -> None:
    spte = make_nonleaf_spte(fmt, 0x123, ad_disabled=ad_disabled)
    assert is_shadow_present_pte(spte)
    assert is_writable_pte(spte)
    assert is_executable_pte(fmt, spte)
    assert spte & fmt.user
    assert spte_to_pfn(spte) == 0x123
    assert spte_ad_enabled(spte) != ad_disabled
    assert bool(spte & fmt.accessed) == (fmt.ad_enabled and not ad_disabled)


def test_a_huge_entry_splits_into_its_parts() -> None:
    huge = SPTE_MMU_PRESENT_MASK | 0x40000000 | 0xE0 | 1 << 63 | 7
    middle = make_huge_page_split_spte(SHADOW, huge, 2, 3, executable=True)
    assert middle == huge | 3 << 21
    small = make_huge_page_split_spte(SHADOW, huge, 1, 3, executable=False)
    assert small == (huge | 3 << 12) & ~0x80
    assert make_huge_page_split_spte(SHADOW, huge, 1, 3, executable=True) == small & ~(1 << 63)
