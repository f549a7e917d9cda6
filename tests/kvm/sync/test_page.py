"""Bringing unsync pages up to date: what each kind of change of a guest entry does to its spte."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.spte import is_mmio_spte, is_shadow_present_pte
from mmulab.kvm.state import spte_index
from mmulab.kvm.sync.page import kvm_sync_page, kvm_vcpu_write_protect_gfn, sync_page
from mmulab.kvm.sync.unsync_children import mmu_sync_children
from mmulab.machine import op as ops
from mmulab.x86.regs import X86_CR0_WP
from tests.kvm.guest import DATA, GVA, HOLE, NX, PAGE, A, D, Guest, P, U, W

WINDOW = GVA + 0x100000
SECOND = GVA + 0x1000


def unsync_guest(mode: str = "64") -> Guest:
    """A guest with two pages in use, whose leaf table is unsync and writable through a window."""
    guest = Guest(mode).map(GVA, DATA).map(SECOND, DATA + 0x1000)
    guest.map(WINDOW, guest.table(GVA))
    guest.write(GVA)
    guest.write(SECOND)
    guest.write(WINDOW + 0xFF0, 0)
    assert guest.page(GVA).unsync
    return guest


def edit(guest: Guest, entry: int, gva: int = GVA) -> None:
    """Let the guest write its entry for `gva` through the window."""
    at = WINDOW + (guest.entry(gva) & 0xFFF)
    width = guest.mode.entry_bytes
    guest.write(at, entry & 0xFFFFFFFF if width == 4 else entry, size=width)


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_a_changed_entry_waits_for_the_flush(mode: str) -> None:
    guest = unsync_guest(mode)
    edit(guest, DATA + 0x2000 | PAGE)
    assert guest.maps(GVA, DATA)
    with guest.watch() as seen:
        guest.cr3()
    assert any(isinstance(e, ev.kvm_mmu_sync_page) for e in seen)
    assert not guest.spte(GVA)
    assert guest.maps(SECOND, DATA + 0x1000)
    assert not guest.page(SECOND).unsync
    guest.read(GVA)
    assert guest.maps(GVA, DATA + 0x2000)


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        (DATA | PAGE, "same"),
        (0, "dropped"),
        (DATA | PAGE & ~P, "dropped"),
        (DATA | PAGE & ~A, "dropped"),
        (DATA | PAGE | 1 << 45, "dropped"),
        (DATA + 0x2000 | PAGE, "dropped"),
        (HOLE | PAGE, "dropped"),
        (DATA | PAGE & ~W, "read-only"),
        (DATA | PAGE & ~D, "read-only"),
        (DATA | PAGE & ~U, "supervisor"),
        (DATA | PAGE | NX, "no execute"),
    ],
)
def test_what_a_changed_entry_does(entry: int, left: str) -> None:
    """``FNAME(sync_page)``: drop where it is unusable or elsewhere, else change the rights."""
    guest = unsync_guest()
    before = guest.spte(GVA)
    edit(guest, entry)
    with guest.watch() as seen:
        guest.cr3()
    after = guest.spte(GVA)
    assert any(isinstance(e, ev.drop_spte) for e in seen) == (left == "dropped")
    if left == "dropped":
        assert after == 0
    else:
        assert is_shadow_present_pte(after)
        assert after & W == (0 if left == "read-only" else W)
        assert after & U == (0 if left == "supervisor" else U)
        assert after & NX == (NX if left == "no execute" else 0)
        assert after & ~(W | U | NX | D | A | 1 << 10) == before & ~(W | U | NX | D | A | 1 << 10)
    # One flush for write-protecting the table, one because every entry is made anew as by prefetch
    # and so loses A.
    assert sum(isinstance(e, ev.kvm_flush_remote_tlbs) for e in seen) == 2
    assert not guest.spte(SECOND) & A
    assert violations(guest.kvm) == []


def test_the_table_is_protected_before_it_is_read() -> None:
    guest = unsync_guest()
    assert guest.spte(WINDOW) & W
    guest.cr3()
    assert not guest.spte(WINDOW) & W
    edit(guest, DATA | PAGE)
    assert guest.page(GVA).unsync


def test_protecting_what_nobody_writes_owes_no_flush() -> None:
    guest = unsync_guest()
    assert kvm_vcpu_write_protect_gfn(guest.vcpu, guest.page(GVA).gfn)
    assert not kvm_vcpu_write_protect_gfn(guest.vcpu, guest.page(GVA).gfn)


def test_the_recorded_rights_follow() -> None:
    guest = unsync_guest()
    sp, index = guest.page(GVA), spte_index(guest.sptep(GVA))
    assert sp.shadowed_translation[index] == DATA | 7
    edit(guest, DATA | PAGE & ~W)
    guest.cr3()
    assert sp.shadowed_translation[index] == DATA | 5


def test_a_device_entry_is_kept_current_or_cleared() -> None:
    guest = Guest("64").map(GVA, HOLE).map(SECOND, HOLE + 0x1000)
    guest.map(WINDOW, guest.table(GVA))
    guest.read(GVA)
    guest.read(SECOND)
    edit(guest, HOLE + 0x2000 | PAGE)
    guest.machine.execute(ops.SetMemslot(1, 0x3000000, 0x1000, 0, 0))
    with guest.watch() as seen:
        guest.cr3()
    assert guest.spte(GVA) == 0
    assert is_mmio_spte(guest.kvm.fmt, guest.spte(SECOND))
    marks = [e for e in seen if isinstance(e, ev.mark_mmio_spte)]
    assert [(m.gfn, m.gen) for m in marks] == [((HOLE >> 12) + 1, guest.kvm.slots[0].generation)]


def test_a_page_of_another_role_cannot_be_synced() -> None:
    """``sync_role_ign``: all but level, access, quadrant and passthrough must agree with the context."""
    guest = unsync_guest()
    page = guest.page(GVA)
    assert sync_page(guest.vcpu, page) >= 0
    guest.regs = (guest.vcpu.cr0 & ~X86_CR0_WP, *guest.regs[1:])
    guest.reset()
    assert sync_page(guest.vcpu, page) < 0
    invalid: list[int] = []
    assert kvm_sync_page(guest.vcpu, page, invalid) < 0
    assert invalid == [page.frame]


def test_direct_pages_and_unreadable_tables_cannot_be_synced() -> None:
    flat = Guest("np")
    flat.read(DATA)
    assert sync_page(flat.vcpu, flat.page(DATA)) < 0
    guest = unsync_guest()
    page = guest.page(GVA)
    page.gfn = HOLE >> 12
    assert sync_page(guest.vcpu, page) < 0


def test_a_found_unsync_page_is_refreshed_and_stays_unsync() -> None:
    """A second directory entry leads to the unsync table: its content must be right, the flag stays."""
    guest = unsync_guest()
    edit(guest, 0, SECOND)
    twin = GVA + (1 << 21)
    guest.poke(guest.entry(twin, 2), guest.load(guest.entry(GVA, 2)))
    with guest.watch() as seen:
        guest.read(twin)
    found = [e for e in seen if isinstance(e, ev.kvm_mmu_get_page)]
    assert [(e.created, e.unsync) for e in found] == [(False, True)]
    assert not any(isinstance(e, ev.kvm_mmu_sync_page) for e in seen)
    assert guest.spte(SECOND) == 0
    assert guest.page(twin).unsync
    assert violations(guest.kvm) == []


def test_children_are_protected_together_and_synced_one_by_one() -> None:
    guest = Guest("64")
    span = 1 << 21
    for i in range(3):
        guest.map(GVA + i * span, DATA)
        guest.map(WINDOW + i * 0x1000, guest.table(GVA + i * span))
    for i in range(3):
        guest.read(GVA + i * span)
        guest.write(WINDOW + i * 0x1000 + 0xFF0)
    with guest.watch() as seen:
        mmu_sync_children(guest.vcpu, guest.page(GVA, 4))
    assert [type(e).__name__ for e in seen] == ["kvm_flush_remote_tlbs"] + ["kvm_mmu_sync_page"] * 3 + [
        "kvm_flush_remote_tlbs"
    ]
    with guest.watch() as seen:
        mmu_sync_children(guest.vcpu, guest.page(GVA, 4))
    assert seen == []
