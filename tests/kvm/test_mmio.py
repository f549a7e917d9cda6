"""Device memory: MMIO entries, the vCPU's cache, and two ways in which Linux 6.1 gets them wrong."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import Invariant, status
from mmulab.kvm.mmio import (
    check_mmio_spte,
    mark_mmio_spte,
    sync_mmio_spte,
    vcpu_cache_mmio_info,
    vcpu_clear_mmio_info,
    vcpu_match_mmio_gpa,
    vcpu_match_mmio_gva,
)
from mmulab.kvm.spte import get_mmio_spte_gfn, is_mmio_spte
from mmulab.kvm.state import MMIO_GVA_ANY
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Mmio
from tests.kvm.guest import DATA, GVA, HOLE, PAGE, A, D, Guest, P, U, W

OTHER = GVA + 0x40000


def with_device(**config: object) -> Guest:
    """A guest with two device pages, far enough from each other that no prefetch reaches both."""
    return Guest("64", **config).map(GVA, HOLE).map(OTHER, HOLE + 0x1000)


def names(events: list[ev.Event]) -> list[str]:
    mmio = (ev.mark_mmio_spte, ev.check_mmio_spte, ev.handle_mmio_page_fault, ev.kvm_mmu_pagetable_walk)
    return [type(e).__name__ for e in events if isinstance(e, mmio)]


def test_the_first_access_leaves_an_mmio_entry(paged: Guest) -> None:
    paged.map(OTHER, HOLE)
    outcome = paged.write(OTHER + 8, 0x1234)
    assert outcome.mmio == [Mmio(True, HOLE + 8, 4, 0x1234)]
    assert is_mmio_spte(paged.kvm.fmt, paged.spte(OTHER))
    assert get_mmio_spte_gfn(paged.kvm.fmt, paged.spte(OTHER)) == HOLE >> 12
    assert paged.vcpu.stat["pf_mmio_spte_created"] == 1
    assert paged.read(OTHER).rax == 0xD0D0D0D0


def test_the_second_access_needs_no_table_at_all() -> None:
    """``mmio_info_in_cache``: straight to the emulator, which knows the gfn too."""
    guest = with_device()
    guest.read(GVA)
    with guest.watch() as seen:
        assert guest.read(GVA + 4).mmio == [Mmio(False, HOLE + 4, 4, 0xD0D0D0D0)]
    assert names(seen) == []


def test_after_another_device_the_entry_is_checked() -> None:
    guest = with_device()
    guest.read(GVA)
    guest.read(OTHER)
    with guest.watch() as seen:
        guest.read(GVA)
    assert names(seen) == ["check_mmio_spte", "handle_mmio_page_fault"]
    (handled,) = [e for e in seen if isinstance(e, ev.handle_mmio_page_fault)]
    assert (handled.addr, handled.gfn) == (GVA, HOLE >> 12)
    with guest.watch() as seen:
        guest.read(GVA)
    assert names(seen) == []


def test_an_entry_older_than_the_memslots_is_not_believed() -> None:
    guest = with_device()
    guest.read(GVA)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, DATA))
    guest.poke(DATA, 0x77)
    with guest.watch() as seen:
        outcome = guest.read(GVA)
    assert outcome.mmio is None
    assert outcome.rax == 0x77
    (check,) = [e for e in seen if isinstance(e, ev.check_mmio_spte)]
    assert check.kvm_gen == check.spte_gen + 2
    assert guest.maps(GVA, DATA)


def test_the_cache_holds_one_page_of_one_generation(guest: Guest) -> None:
    vcpu = guest.vcpu
    vcpu_cache_mmio_info(vcpu, GVA | 0x123, 0x40000, 6)
    assert vcpu_match_mmio_gva(vcpu, GVA | 0xFFF)
    assert not vcpu_match_mmio_gva(vcpu, GVA + 0x1000)
    assert vcpu_match_mmio_gpa(vcpu, 0x40000FFF)
    assert not vcpu_match_mmio_gpa(vcpu, 0x40001000)
    vcpu_clear_mmio_info(vcpu, GVA + 0x1000)
    assert vcpu_match_mmio_gva(vcpu, GVA)
    vcpu_clear_mmio_info(vcpu, GVA + 0x800)
    assert not vcpu_match_mmio_gva(vcpu, GVA)
    vcpu_cache_mmio_info(vcpu, GVA, 0x40000, 6)
    vcpu_clear_mmio_info(vcpu, MMIO_GVA_ANY)
    assert not vcpu_match_mmio_gva(vcpu, GVA)
    vcpu_cache_mmio_info(vcpu, GVA, 0x40000, 6)
    guest.kvm.slots[0].generation += 2
    assert not vcpu_match_mmio_gva(vcpu, GVA)
    assert not vcpu_match_mmio_gpa(vcpu, 0x40000FFF)


@pytest.mark.parametrize("forget", ["cr3", "invlpg"])
def test_what_flushes_the_guest_clears_the_cache(forget: str) -> None:
    guest = with_device()
    guest.read(GVA)
    guest.cr3() if forget == "cr3" else guest.invlpg(GVA)
    assert not vcpu_match_mmio_gva(guest.vcpu, GVA)


def test_a_synced_entry_follows_its_guest_entry(guest: Guest) -> None:
    guest.read(GVA)
    sptep = guest.sptep(GVA)
    assert not sync_mmio_spte(guest.vcpu, sptep, DATA >> 12, 7)
    mark_mmio_spte(guest.vcpu, sptep, 0x40000, 7)
    guest.kvm.slots[0].generation += 2
    assert not check_mmio_spte(guest.vcpu, guest.spte(GVA))
    assert sync_mmio_spte(guest.vcpu, sptep, 0x40000, 7)
    assert check_mmio_spte(guest.vcpu, guest.spte(GVA))
    assert sync_mmio_spte(guest.vcpu, sptep, 0x40001, 7)
    assert guest.spte(GVA) == 0


def test_a_page_that_became_a_device_is_dropped_first() -> None:
    """Over a present entry nothing may be written but by dropping it (CVE-2026-23401)."""
    guest = Guest("64").map(GVA, DATA, PAGE & ~D)
    guest.read(GVA)
    guest.poke(guest.entry(GVA), HOLE | PAGE)
    with guest.watch() as seen:
        assert guest.write(GVA).mmio
    dropped = next(i for i, e in enumerate(seen) if isinstance(e, ev.drop_spte))
    assert isinstance(seen[dropped + 1], ev.mark_mmio_spte)
    assert ev.kvm_flush_remote_tlbs() in seen
    assert guest.rmap(DATA >> 12) == []
    assert status(guest.kvm) is Invariant.VALID


def test_without_mmio_caching_there_is_no_entry() -> None:
    guest = with_device(host=HostConfig(mmio_caching=False))
    for _ in range(2):
        assert guest.read(GVA).mmio
        assert guest.spte(GVA) == 0
    assert not guest.of(ev.mark_mmio_spte)


# What Linux 6.1 gets wrong ---------------------------------------------------------------


def test_a_sync_makes_a_stale_entry_current_although_there_is_memory_now() -> None:
    """``sync_mmio_spte`` renews the generation and asks only whether the guest's gfn changed.

    The guest's access to the new memory goes to the VMM as if to a device.
    """
    window = GVA + 0x80000
    guest = with_device()
    guest.map(window, guest.table(GVA))
    guest.read(GVA)
    guest.write(window + 0xFF0)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, DATA))
    assert status(guest.kvm) is Invariant.VALID
    guest.cr3()
    assert status(guest.kvm) is Invariant.MMIO
    assert guest.read(GVA).mmio == [Mmio(False, HOLE, 4, 0xD0D0D0D0)]


def test_a_page_mapped_over_a_writable_mmio_entry_is_not_write_protected() -> None:
    """``make_spte`` takes W of the old entry for a proof that the gfn is unsync already.

    Here the gfn of the hole gets memory, and the guest makes a table of it. The old
    entry is stale, so the first address maps the table writable, and what the guest
    writes there is never synced.
    """
    guest = with_device()
    guest.write(GVA)
    assert guest.spte(GVA) & W
    table, user = HOLE, GVA + (1 << 30)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, DATA))
    guest.machine.memory.fill(guest.hpa(DATA), 0x1000, 0)
    guest.map(user, DATA + 0x1000)
    guest.poke(guest.entry(user, 2), table | P | W | U | A)
    guest.poke(DATA, DATA + 0x1000 | PAGE)
    guest.read(user)
    assert guest.page(user).gfn == table >> 12
    guest.write(GVA, 0)
    assert guest.spte(GVA) & W
    assert not guest.page(user).unsync
    assert status(guest.kvm) is Invariant.WRITE_PROTECTION
    guest.cr3()
    assert guest.maps(user, DATA + 0x1000)
    assert guest.load(DATA, 4) == 0
