"""Entries decoded: what was put into one comes out of it, and no recorded one has a bit without a name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.conform.recording import read_recording
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12, find_kernel
from mmulab.kvm.set_spte import make_spte
from mmulab.kvm.spte import (
    REMOVED_SPTE,
    SpteFormat,
    ept_format,
    make_mmio_spte,
    make_nonleaf_spte,
    make_pdpte,
    mark_spte_for_access_track,
    restore_acc_track_spte,
    shadow_format,
)
from mmulab.kvm.spte_decode import DecodedSpte, decode_spte
from mmulab.kvm.spte_layout import SpteKind
from mmulab.scenario.adapter import host_config
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from tests.kvm.guest import DATA, Guest

DATA_FOLDER = Path(__file__).parents[2] / "data/conformance"
FORMATS: dict[str, SpteFormat] = {
    f"{kernel.name} {name}": kernel.spte_format(**host)
    for kernel in (LINUX_6_1, LINUX_6_12)
    for name, host in {
        "shadow": {"ept": False, "phys_bits": 40},
        "shadow-l1tf": {"ept": False, "phys_bits": 40, "cache_bits": 44},
        "ept": {"ept": True, "phys_bits": 40},
        "ept-noad-l1tf": {"ept": True, "phys_bits": 40, "has_ad": False, "cache_bits": 44},
    }.items()
}
EPT_ACCESS = [ACC_USER_MASK | more for more in (0, 1, 2, 3)] + [ACC_EXEC_MASK]
"""What a guest's EPT entry may allow: W without R is a misconfiguration."""
formats = st.sampled_from(list(FORMATS.values()))
frames = st.integers(0, (1 << 28) - 1)


@cache
def _guest() -> Guest:
    """A guest nobody's tables lie at DATA of, in no dirty log."""
    return Guest("64")


def _make(fmt: SpteFormat, how: SimpleNamespace) -> int:
    guest = _guest()
    guest.kvm.fmt = fmt
    sp = SimpleNamespace(level=how.level, ad_disabled=how.ad_disabled, guest_mode=False)
    spte, _ = make_spte(
        guest.vcpu,
        sp,
        guest.slot,
        how.access,
        DATA >> 12,
        how.pfn,
        0,
        prefetch=how.prefetch,
        can_unsync=True,
        host_writable=how.host_writable,
    )
    return spte


def _told(found: DecodedSpte) -> SimpleNamespace:
    """Return the arguments of make_spte that an entry tells."""
    flags = set(found.flags)
    numbers = found.numbers
    saved = numbers.get("saved_rx", 0)
    readable = "U" in flags or "R" in flags or bool(saved & 1)
    ept = any(field.name == "VMX_EPT_READABLE_MASK" for field, _ in found.fields)
    executable = "X" in flags or bool(saved & 2) if ept else "NX" not in flags
    access = ACC_USER_MASK * readable | ACC_EXEC_MASK * executable
    access |= ACC_WRITE_MASK * ("mmu_writable" in flags)
    return SimpleNamespace(
        level=found.level,
        ad_disabled=numbers["ad_type"] == 1,
        pfn=numbers["pfn"],
        prefetch=("A" not in flags) if numbers["ad_type"] == 0 else found.kind is SpteKind.ACC_TRACK,
        host_writable="host_writable" in flags,
        access=access,
    )


@given(st.sampled_from(list(FORMATS)), st.data())
def test_decoding_undoes_make_spte(name: str, data: st.DataObject) -> None:
    fmt = FORMATS[name]
    ept = "ept" in name
    how = SimpleNamespace(
        level=data.draw(st.integers(1, 3)),
        ad_disabled=ept and (not fmt.ad_enabled or data.draw(st.booleans())),
        pfn=data.draw(frames),
        prefetch=data.draw(st.booleans()),
        host_writable=data.draw(st.booleans()),
        access=data.draw(st.sampled_from(EPT_ACCESS) if ept else st.integers(0, ACC_ALL)),
    )
    found = decode_spte(fmt, _make(fmt, how), how.level)
    if not how.host_writable:
        how.access &= ~ACC_WRITE_MASK
    assert found.kind is (SpteKind.ACC_TRACK if how.ad_disabled and how.prefetch else SpteKind.LEAF)
    assert found.unknown == 0
    assert ("PS" in found.flags) == (how.level > 1)
    assert _told(found) == how


@given(formats, frames, st.integers(0, ACC_ALL), st.integers(0, (1 << 19) - 1))
def test_decoding_undoes_make_mmio_spte(fmt: SpteFormat, gfn: int, access: int, generation: int) -> None:
    found = decode_spte(fmt, make_mmio_spte(fmt, gfn, access, generation))
    assert (found.kind, found.unknown) == (SpteKind.MMIO, 0)
    assert (found.numbers["gfn"], found.numbers["generation"]) == (gfn, generation)
    assert found.numbers.get("access", 0) == (access & fmt.mmio_access) >> 1


@given(formats, frames, st.booleans(), st.integers(2, 5))
def test_decoding_undoes_make_nonleaf_spte(fmt: SpteFormat, frame: int, ad: bool, level: int) -> None:
    found = decode_spte(fmt, make_nonleaf_spte(fmt, frame, ad_disabled=not ad), level)
    assert (found.kind, found.unknown) == (SpteKind.NONLEAF, 0)
    assert (found.numbers["pfn"], found.numbers["ad_type"]) == (frame, int(not ad))
    assert ("A" in found.flags) == (ad and fmt.ad_enabled)


@given(frames, st.sampled_from([1, 0x27]), st.integers(3, 5))
def test_entries_of_special_roots(frame: int, rights: int, level: int) -> None:
    """``mmu_alloc_shadow_roots``: P alone in a PAE root, P W U A where 4-level tables shadow it."""
    fmt = shadow_format(40)
    found = decode_spte(fmt, frame << 12 | rights, level)
    assert found.kind is (SpteKind.PDPTE if (rights, level) == (1, 3) else SpteKind.SPECIAL_ROOT)
    assert (found.numbers["pfn"], found.unknown) == (frame, 0)
    linked = decode_spte(fmt, make_pdpte(frame), 3)
    assert (linked.kind, linked.numbers["pfn"], linked.unknown) == (SpteKind.PDPTE, frame, 0)
    assert decode_spte(fmt, frame << 12 | rights, 2).kind is SpteKind.UNKNOWN


@pytest.mark.parametrize(
    ("spte", "old", "new"),
    [
        (0, SpteKind.EMPTY, SpteKind.ZERO),
        (1 << 63, SpteKind.UNKNOWN, SpteKind.EMPTY),
        (REMOVED_SPTE, SpteKind.FROZEN, SpteKind.UNKNOWN),
        (1 << 63 | REMOVED_SPTE, SpteKind.UNKNOWN, SpteKind.FROZEN),
    ],
)
@pytest.mark.parametrize("ept", [False, True])
def test_empty_and_frozen_entries_of_both_kernels(spte: int, old: SpteKind, new: SpteKind, ept: bool) -> None:
    for kernel, wanted in ((LINUX_6_1, old), (LINUX_6_12, new)):
        found = decode_spte(kernel.spte_format(ept=ept, phys_bits=40), spte)
        assert found.kind is wanted
        assert found.unknown == (spte if wanted is SpteKind.UNKNOWN else 0)


def test_a_32_bit_kernel_leaves_entries_0() -> None:
    """``SHADOW_NONPRESENT_VALUE`` without CONFIG_X86_64 (6.12 ``spte.h``)."""
    fmt = LINUX_6_12.spte_format(ept=False, phys_bits=40, x86_64=False)
    assert decode_spte(fmt, 0).kind is SpteKind.EMPTY


def test_bit_63_belongs_to_the_mark_of_mmio_where_it_suppresses_ve() -> None:
    """``kvm_mmu_set_ept_masks``: the mask of 6.12 has it, the value has not."""
    spte = make_mmio_spte(ept_format(40, has_ad=True), 5, 0, 1)
    assert decode_spte(FORMATS["6.1.192 ept"], 1 << 63 | spte).unknown == 1 << 63
    assert decode_spte(FORMATS["6.12.117 ept"], spte).kind is SpteKind.MMIO
    assert decode_spte(FORMATS["6.12.117 ept"], 1 << 63 | spte).kind is SpteKind.UNKNOWN


@given(st.integers(0, 2**64 - 1), formats, st.integers(1, 5))
def test_no_bit_is_lost(spte: int, fmt: SpteFormat, level: int) -> None:
    found = decode_spte(fmt, spte, level)
    known = sum(field.mask for field, _ in found.fields)
    assert known & found.unknown == 0
    assert (spte & known) | found.unknown == spte
    assert [field.get(spte) for field, _ in found.fields] == [value for _, value in found.fields]


def test_a_tracked_entry_says_what_comes_back() -> None:
    fmt = FORMATS["6.1.192 ept-noad-l1tf"]
    tracked = mark_spte_for_access_track(fmt, 0x0610000000000877)
    assert decode_spte(fmt, tracked).numbers["saved_rx"] == 3
    assert decode_spte(fmt, restore_acc_track_spte(fmt, tracked)).kind is SpteKind.LEAF
    assert decode_spte(fmt, 1 << 54 | 0x0610000000000877).unknown == 1 << 54


def test_an_entry_shows_itself() -> None:
    found = decode_spte(ept_format(40, has_ad=True), 0x0600000008300B77)
    assert str(found) == (
        "0x600000008300b77: leaf, level 1, pfn 0x8300, memtype 0x6, R W X IPAT A D mmu_present "
        "host_writable mmu_writable"
    )
    html = found._repr_html_()
    assert f"<caption>{found}</caption>" in html
    assert "<td>5-3</td><td>VMX_EPT_MT_MASK</td><td>0x6</td><td>WB</td>" in html
    assert str(decode_spte(shadow_format(40), 1 << 62)).endswith("level 1, unknown bits 0x4000000000000000")


# Recordings -----------------------------------------------------------------------

RECORDED = [
    f"{kernel}/{name}"
    for kernel in ("6.1.192", "6.12.117")
    for name in (
        "sh/accessed-dirty-32",
        "sh/mmio-64",
        "intel-sh/mmio-64",
        "tdp1/accessed-dirty-64",
        "ept0-host-noad/large-thp-32",
        "ept1/mmio-64",
        "nested-ept/ept-accessed-dirty-ad",
        "nested-ept-host-noad/ept-*",
    )
]
ENTRIES = {
    ev.kvm_mmu_set_spte: ("spte",),
    ev.kvm_tdp_mmu_spte_changed: ("old_spte", "new_spte"),
    ev.kvm_mmu_split_huge_page: ("spte",),
    ev.check_mmio_spte: ("spte",),
}
"""Fields of events that hold an entry."""


def _recorded(name: str) -> Iterator[DecodedSpte]:
    """Decode the entries of the first recording of this name."""
    recording = read_recording(min(DATA_FOLDER.glob(f"{name}.jsonl.xz")))
    header = recording.scenario.header
    fmt = host_config(header).spte_format(find_kernel(header.kernel))
    for op in recording.ops:
        for event in op.events:
            for field in ENTRIES.get(type(event), ()):
                yield decode_spte(fmt, getattr(event, field), getattr(event, "level", 1))


@pytest.mark.parametrize("name", RECORDED)
def test_every_bit_of_a_recorded_entry_is_accounted_for(name: str) -> None:
    found = list(_recorded(name))
    assert len(found) > 5
    assert not [str(entry) for entry in found if entry.unknown or entry.kind is SpteKind.UNKNOWN]


def test_the_recordings_have_every_kind_that_events_show() -> None:
    shown = {entry.kind for name in RECORDED for entry in _recorded(name)}
    assert shown == set(SpteKind) - {
        SpteKind.ZERO,
        SpteKind.PDPTE,
        SpteKind.SPECIAL_ROOT,
        SpteKind.UNKNOWN,
    }
