"""INVLPG: one translation refreshed in every root that is kept."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.invlpg import kvm_mmu_invalidate_gva, kvm_mmu_invlpg
from mmulab.kvm.mmu import INVALID_PAGE
from tests.kvm.guest import DATA, GVA, HOLE, MIB, PAGE, Guest

WINDOW = GVA + 0x100000
SECOND = GVA + 0x1000


def unsync_guest(mode: str = "64") -> Guest:
    """A guest with two pages in use, below a table that it has changed: both go elsewhere."""
    guest = Guest(mode).map(GVA, DATA).map(SECOND, DATA + 0x1000)
    guest.map(WINDOW, guest.table(GVA))
    guest.write(GVA)
    guest.write(SECOND)
    width = guest.mode.entry_bytes
    for gva, gpa in ((GVA, DATA + 0x2000), (SECOND, DATA + 0x3000)):
        guest.write(WINDOW + (guest.entry(gva) & 0xFFF), gpa | PAGE, size=width)
    return guest


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_the_entry_is_dropped_and_mapped_anew_its_neighbours_stay(mode: str) -> None:
    guest = unsync_guest(mode)
    old = guest.spte(GVA)
    with guest.watch() as seen:
        kvm_mmu_invlpg(guest.vcpu, GVA)
    assert seen[:3] == [
        ev.kvm_mmu_invlpg(GVA),
        ev.drop_spte(guest.sptep(GVA), old),
        ev.kvm_flush_remote_tlbs(),
    ]
    assert [e.gfn for e in seen if isinstance(e, ev.kvm_mmu_set_spte)] == [(DATA >> 12) + 2]
    assert guest.maps(GVA, DATA + 0x2000)
    assert guest.maps(SECOND, DATA + 0x1000)
    assert guest.page(GVA).unsync
    assert guest.vcpu.stat["invlpg"] == 1
    assert violations(guest.kvm) == []


def test_a_table_in_sync_needs_nothing(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        kvm_mmu_invlpg(guest.vcpu, GVA)
    assert seen == [ev.kvm_mmu_invlpg(GVA)]
    assert guest.maps(GVA, DATA)


def test_an_entry_that_became_unusable_is_only_dropped() -> None:
    guest = unsync_guest()
    guest.write(WINDOW + (guest.entry(GVA) & 0xFFF), 0, size=8)
    with guest.watch() as seen:
        kvm_mmu_invlpg(guest.vcpu, GVA)
    assert not any(isinstance(e, ev.kvm_mmu_set_spte) for e in seen)
    assert guest.spte(GVA) == 0


def test_a_device_entry_is_cleared_without_a_flush() -> None:
    guest = Guest("64").map(GVA, HOLE)
    guest.map(WINDOW, guest.table(GVA))
    guest.read(GVA)
    guest.write(WINDOW + 0xFF0)
    with guest.watch() as seen:
        kvm_mmu_invlpg(guest.vcpu, GVA)
    assert seen == [ev.kvm_mmu_invlpg(GVA)]
    assert guest.spte(GVA) == 0


def test_every_root_that_is_kept_is_refreshed() -> None:
    guest = unsync_guest()
    other = guest.new_table()
    guest.map(GVA, DATA + 0x4000, root=other)
    guest.map(WINDOW, guest.table(GVA, root=other), root=other)
    root = guest.root
    guest.cr3(other)
    guest.read(GVA)
    guest.write(WINDOW + 0xFF0)
    with guest.watch() as seen:
        guest.invlpg(GVA)
    dropped = [e.sptep >> 12 for e in seen if isinstance(e, ev.drop_spte)]
    pages = [guest.kvm.pages[frame] for frame in dropped]
    # The root in use comes first, then the previous one, whose table is unsync still.
    assert [sp.gfn for sp in pages] == [guest.table(GVA, root=other) >> 12, guest.table(GVA, root=root) >> 12]


def test_one_root_alone_can_be_meant() -> None:
    guest = unsync_guest()
    other = guest.new_table()
    guest.map(GVA, DATA + 0x4000, root=other)
    hpa = guest.vcpu.mmu.root_hpa
    guest.cr3(other)
    with guest.watch() as seen:
        kvm_mmu_invalidate_gva(guest.vcpu, guest.vcpu.mmu, GVA, hpa)
    assert sum(isinstance(e, ev.drop_spte) for e in seen) == 1
    with guest.watch() as seen:
        kvm_mmu_invalidate_gva(guest.vcpu, guest.vcpu.mmu, SECOND, guest.vcpu.mmu.root_hpa)
    assert seen == []


def test_no_address_of_the_guest_no_effect() -> None:
    """SDM 2, INVLPG: not canonical means nothing is done; nor is there anything without paging."""
    guest = unsync_guest()
    with guest.watch() as seen:
        kvm_mmu_invalidate_gva(guest.vcpu, guest.vcpu.mmu, GVA | 1 << 48, INVALID_PAGE)
    assert seen == []
    flat = Guest("np")
    flat.read(DATA)
    with flat.watch() as seen:
        kvm_mmu_invalidate_gva(flat.vcpu, flat.vcpu.mmu, DATA, INVALID_PAGE)
    assert seen == []
    assert flat.spte(DATA)


def test_a_large_page_stays_because_its_table_is_never_unsync() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    guest.poke(guest.entry(GVA, 2), 0)
    with guest.watch() as seen:
        kvm_mmu_invlpg(guest.vcpu, GVA)
    assert seen == [ev.kvm_mmu_invlpg(GVA)]
    assert guest.spte(GVA, 2)
