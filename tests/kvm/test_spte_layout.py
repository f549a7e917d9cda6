"""The declared bits of an entry: no two fields share one, and the engine's masks are they."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.spte import (
    MMIO_SPTE_GEN_MASK,
    SpteFormat,
    ept_format,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    make_mmio_spte,
    shadow_format,
)
from mmulab.kvm.spte_layout import (
    ACC_TRACK_SAVED,
    EPT,
    GENERATION,
    SHADOW,
    EntryLayout,
    SpteField,
    SpteKind,
    entry_layouts,
)

FORMATS: dict[str, SpteFormat] = {
    "shadow40": shadow_format(40),
    "shadow52": shadow_format(52),
    "shadow46-l1tf": shadow_format(46, cache_bits=46),
    "shadow40-l1tf44-6.12": shadow_format(40, cache_bits=44, nonpresent=True),
    "ept": ept_format(40, has_ad=True),
    "ept-noad": ept_format(40, has_ad=False),
    "ept52-6.12": ept_format(52, has_ad=True, nonpresent=True, suppress_ve=True),
    "ept-l1tf-6.12": ept_format(40, has_ad=False, cache_bits=44, nonpresent=True, suppress_ve=True),
}
MASKS = {
    SpteKind.LEAF: ("user", "accessed", "dirty", "nx", "x", "host_writable", "mmu_writable", "memtype"),
    SpteKind.ACC_TRACK: ("acc_track",),
    SpteKind.NONLEAF: ("present", "user", "accessed", "x"),
    SpteKind.MMIO: ("mmio_mask", "mmio_value", "mmio_access", "nonpresent_or_rsvd"),
    SpteKind.EMPTY: ("nonpresent",),
    SpteKind.FROZEN: ("nonpresent",),
}
"""Masks of a format that put bits into a kind of entry."""


@pytest.mark.parametrize("name", FORMATS)
def test_fields_never_share_a_bit(name: str) -> None:
    for layout in FORMATS[name].entries.values():
        masks = [field.mask for field in layout.fields]
        assert sum(masks) == sum(1 << bit for bit in range(64) if any(mask >> bit & 1 for mask in masks))
        assert list(layout.mask.values()) == masks


@pytest.mark.parametrize("name", FORMATS)
def test_every_mask_of_the_engine_is_declared(name: str) -> None:
    fmt = FORMATS[name]
    for kind, attributes in MASKS.items():
        for attribute in attributes if kind in fmt.entries else ():
            mask = getattr(fmt, attribute)
            assert not fmt.entries[kind].unknown(mask, 2), attribute


def test_a_wrong_declaration_is_refused() -> None:
    one = SpteField("ONE", 3)
    for other, why in (
        (SpteField("TWO", 2), "'TWO' has bits 0x2, which another field has|'ONE' has bits 0x2"),
        (SpteField("ONE", 4), "'ONE' is there twice"),
        (SpteField("TWO", 0), "'TWO' has no bit"),
    ):
        with pytest.raises(ValueError, match=why):
            EntryLayout((one, other))


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_field_gathers_its_bits(mask: int, spte: int) -> None:
    """As PEXT does: the bits of `spte` under the mask, side by side."""
    field = SpteField("F", mask)
    wanted = [spte >> bit & 1 for bit in range(64) if mask >> bit & 1]
    assert field.get(spte) == sum(bit << at for at, bit in enumerate(wanted))
    assert sum(((1 << high + 1) - 1) >> low << low for high, low in field.runs()) == mask
    assert field.is_flag == (len(wanted) == 1)


def test_bits_are_named_from_the_highest() -> None:
    assert GENERATION.bits == "62-52,10-3"
    assert ACC_TRACK_SAVED.bits == "56,54"
    assert EPT[SpteKind.FROZEN][1].bits == "10,8-7,5"


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "shadow52"])
@given(st.data())
def test_gathered_bits_of_an_mmio_entry_are_what_the_engine_reads(name: str, data: st.DataObject) -> None:
    fmt = FORMATS[name]
    gfn, generation = data.draw(st.integers(0, (1 << 28) - 1)), data.draw(st.integers(0, 1 << 20))
    spte = make_mmio_spte(fmt, gfn, 7, generation)
    fields = {field.name: field.get(spte) for field in fmt.entries[SpteKind.MMIO].fields}
    assert fields["gfn"] == get_mmio_spte_gfn(fmt, spte)
    assert fields["MMIO_SPTE_GEN_MASK"] == get_mmio_spte_generation(spte)
    assert GENERATION.get(2**64 - 1) == MMIO_SPTE_GEN_MASK


def test_what_a_host_lacks_is_no_field() -> None:
    plain = entry_layouts(EPT, set(), phys_bits=40, cache_bits=0)
    full = entry_layouts(EPT, {"A and D", "bit 63", "suppress #VE"}, phys_bits=40, cache_bits=44)
    assert set(full[SpteKind.LEAF].mask) - set(plain[SpteKind.LEAF].mask) == {
        "VMX_EPT_ACCESS_BIT",
        "VMX_EPT_DIRTY_BIT",
        "VMX_EPT_SUPPRESS_VE_BIT",
    }
    assert set(full[SpteKind.MMIO].mask) - set(plain[SpteKind.MMIO].mask) == {
        "VMX_EPT_SUPPRESS_VE_BIT",
        "shadow_nonpresent_or_rsvd_mask",
    }
    assert plain[SpteKind.EMPTY].fields == ()
    assert full[SpteKind.EMPTY].mask == {"SHADOW_NONPRESENT_VALUE": 1 << 63}


def test_no_room_above_47_bits_for_a_moved_gfn() -> None:
    """Linux warns and does without (``kvm_mmu_reset_all_pte_masks``, 6.1 and 6.12 ``spte.c``)."""
    assert shadow_format(46, cache_bits=46).nonpresent_or_rsvd == 0x1F << 41
    for cache_bits in (47, 52):
        fmt = shadow_format(46, cache_bits=cache_bits)
        assert (fmt.nonpresent_or_rsvd, fmt.nonpresent_or_rsvd_lower_gfn) == (0, (1 << 46) - (1 << 12))


def test_a_page_size_bit_is_no_field_at_level_1() -> None:
    leaf = FORMATS["shadow40"].entries[SpteKind.LEAF]
    assert (leaf.unknown(0x80, 1), leaf.unknown(0x80, 2)) == (0x80, 0)
    assert len(leaf.at(2)) == len(leaf.at(1)) + 1


@pytest.mark.parametrize("declared", [SHADOW, EPT])
def test_a_meaning_for_every_flag(declared: dict[SpteKind, tuple[SpteField, ...]]) -> None:
    for field in (field for fields in declared.values() for field in fields):
        assert field.meaning(1), field.name
        assert field.meaning(1 << 50) == (field.meanings[0] if len(field.meanings) == 1 else "")
