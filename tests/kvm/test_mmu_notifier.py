"""Tests of :mod:`mmulab.kvm.mmu_notifier`: the host unmaps memory, and asks whether it was accessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.mmu_notifier import kvm_age_hva, kvm_unmap_hva_range
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Outcome, OutcomeKind
from tests.kvm.guest import DATA, GVA, HOLE, MIB, NX, A, Guest, W

EPT = HostConfig(vendor="intel", tdp=True)
HOSTS = {
    "shadow": HostConfig(),
    "npt": HostConfig(tdp=True),
    "ept": EPT,
    "tdp_mmu": replace(EPT, tdp_mmu=True),
    "noad": replace(EPT, eptad=False),
    "noad-tdp_mmu": replace(EPT, eptad=False, tdp_mmu=True),
}
FLUSH = ev.kvm_flush_remote_tlbs()


# The host unmaps ------------------------------------------------------------------


def test_what_maps_the_frames_is_zapped_in_every_slot() -> None:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x40000, HOLE)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, DATA))
    guest.read(GVA)
    guest.read(GVA + 0x40000)
    frame = guest.hpa(DATA) >> 12
    with guest.watch() as seen:
        kvm_unmap_hva_range(guest.kvm, frame, frame)
    assert seen == [ev.kvm_unmap_hva_range(), ev.kvm_flush_remote_tlbs()]
    assert guest.spte(GVA) == guest.spte(GVA + 0x40000) == 0
    assert violations(guest.kvm) == []
    with guest.watch() as seen:
        kvm_unmap_hva_range(guest.kvm, frame, frame)
    assert seen == [ev.kvm_unmap_hva_range()]


def test_a_huge_entry_goes_with_any_page_of_it() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    frame = (guest.hpa(4 * MIB) >> 12) + 77
    kvm_unmap_hva_range(guest.kvm, frame, frame)
    assert guest.spte(GVA, 2) == 0
    assert guest.kvm.stat["pages_2m"] == 0


def test_changing_the_protection_splits_huge_host_pages_at_the_ends() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    with guest.watch() as seen:
        done: Outcome = guest.machine.execute(ops.InvalidateHva(4 * MIB + 0x10000, 0x1000))
    assert done.kind is OutcomeKind.HOST
    # Both ends lie in one huge page, so it is split once; then twice the range itself.
    assert seen.count(ev.kvm_unmap_hva_range()) == 4
    guest.read(GVA)
    assert guest.page(GVA).direct
    assert guest.spte(GVA) & (A | NX) == A


# The host asks for accesses -----------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_page_is_young_once(host: HostConfig) -> None:
    guest = Guest("np", host=host)
    guest.read(DATA)
    frame = guest.hpa(DATA) >> 12
    before = guest.spte(DATA)
    with guest.watch() as seen:
        kvm_age_hva(guest.kvm, frame, frame)
    changed = [ev.kvm_tdp_mmu_spte_changed(0, DATA >> 12, 1, before, guest.spte(DATA))]
    assert seen == [ev.kvm_age_hva(), *(changed if host.tdp_mmu else []), FLUSH]
    assert guest.spte(DATA) != before
    with guest.watch() as seen:
        kvm_age_hva(guest.kvm, frame, frame)
    assert seen == [ev.kvm_age_hva()]
    guest.read(DATA)  # by the processor, or by a fast fault
    with guest.watch() as seen:
        kvm_age_hva(guest.kvm, frame, frame)
    assert seen[-1] == FLUSH


@pytest.mark.parametrize("host", ["shadow", "npt", "ept", "tdp_mmu"])
def test_where_a_counts_nothing_else_changes(host: str) -> None:
    guest = Guest("np", host=HOSTS[host])
    guest.write(DATA)
    frame, before = guest.hpa(DATA) >> 12, guest.spte(DATA)
    kvm_age_hva(guest.kvm, frame, frame)
    assert guest.spte(DATA) == before & ~guest.kvm.fmt.accessed
    with guest.watch() as seen:
        guest.write(DATA)
    assert seen == []
    assert guest.spte(DATA) == before


@pytest.mark.parametrize("host", ["noad", "noad-tdp_mmu"])
def test_without_a_the_rights_come_back_one_by_one(host: str) -> None:
    guest = Guest("np", host=HOSTS[host])
    guest.write(DATA)
    frame, before = guest.hpa(DATA) >> 12, guest.spte(DATA)
    kvm_age_hva(guest.kvm, frame, frame)
    assert not guest.spte(DATA) & 7
    guest.read(DATA)
    assert guest.spte(DATA) == before & ~W
    guest.write(DATA)
    assert guest.spte(DATA) == before
    assert [e.ret for e in guest.of(ev.fast_page_fault)[-2:]] == [RetPf.FIXED, RetPf.FIXED]


def test_every_slot_and_every_spte_of_the_frame_is_aged() -> None:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x40000, HOLE).map(GVA + 0x80000, DATA)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, DATA))
    addresses = (GVA, GVA + 0x40000, GVA + 0x80000)
    for address in addresses:
        guest.read(address)
    assert all(guest.spte(address) & A for address in addresses)
    guest.machine.execute(ops.Age(DATA, 0x1000))
    assert not any(guest.spte(address) & A for address in addresses)


def test_a_huge_spte_is_young_for_each_of_its_pages() -> None:
    guest = Guest("np", thp=True)
    guest.read(4 * MIB)
    frame = (guest.hpa(4 * MIB) >> 12) + 77
    kvm_age_hva(guest.kvm, frame, frame)
    assert not guest.spte(4 * MIB, 2) & A
