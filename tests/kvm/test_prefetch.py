"""Prefetch in direct maps: runs of entries that are not there."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.prefetch import direct_pte_prefetch
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from tests.kvm.guest import DATA, MIB, A, Guest

BASE = 0x10000
"""The first page of an aligned group of eight."""


def mapped(guest: Guest, base: int = BASE) -> list[int]:
    """Return which pages of the group are mapped."""
    return [i for i in range(-1, 9) if guest.spte(base + i * 0x1000)]


def test_the_aligned_group_of_eight_is_mapped() -> None:
    guest = Guest("np")
    with guest.watch() as seen:
        guest.read(BASE + 0x3000)
    assert mapped(guest) == list(range(8))
    gfns = [e.gfn - (BASE >> 12) for e in seen if isinstance(e, ev.kvm_mmu_set_spte)]
    assert gfns == [3, 0, 1, 2, 4, 5, 6, 7]
    assert [bool(guest.spte(BASE + i * 0x1000) & A) for i in range(8)] == [i == 3 for i in range(8)]


def test_runs_between_present_entries_are_filled() -> None:
    guest = Guest("np")
    guest.read(BASE)
    for i in (1, 2, 5):
        guest.machine.execute(ops.InvalidateHva(BASE + i * 0x1000, 0x1000))
    assert mapped(guest) == []
    guest.read(BASE)
    assert mapped(guest) == list(range(8))


@pytest.mark.parametrize("case", ["log", "rom", "edge"])
def test_what_prefetch_may_not_map_ends_it(case: str) -> None:
    """Logged pages would become writable unseen, a run must lie in one slot, and be writable."""
    guest = Guest("np")
    gpa = 0x2000000 if case != "edge" else 0x2005000
    size = 0x8000 if case != "edge" else 0x3000
    flags = {"log": KVM_MEM_LOG_DIRTY_PAGES, "rom": KVM_MEM_READONLY, "edge": 0}[case]
    guest.machine.execute(ops.SetMemslot(1, gpa, size, flags, DATA))
    guest.read(gpa)
    assert mapped(guest, gpa) == [0]


def test_without_accessed_bits_there_is_no_prefetch() -> None:
    """It could not be told from use (``direct_pte_prefetch``)."""
    guest = Guest("np", host=HostConfig(vendor="intel", tdp=True, eptad=False))
    guest.read(BASE)
    assert mapped(guest) == [0]
    assert guest.page(BASE).ad_disabled


def test_huge_pages_have_no_prefetch() -> None:
    guest = Guest("np", thp=True)
    guest.read(4 * MIB)
    assert not guest.spte(6 * MIB, 2)


def test_nor_is_there_any_while_the_host_unmaps() -> None:
    guest = Guest("np")
    guest.read(BASE)
    sptep = guest.sptep(BASE)
    for i in range(1, 8):
        guest.machine.memory.store64(sptep + 8 * i, 0)
    guest.kvm.mmu_invalidate_in_progress = True
    direct_pte_prefetch(guest.vcpu, sptep)
    assert mapped(guest) == [0]
