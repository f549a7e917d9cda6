"""Eager page splitting on hosts that lack something: the TDP MMU, memory, time."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK
from mmulab.kvm.tdp_mmu import kvm_tdp_mmu_try_split_huge_pages
from mmulab.lab.eager_split.guest import HUGE, MEMORY
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from tests.kvm.guest import MIB, PS, Guest, W
from tests.kvm.nested import Nested, started

EAGAIN, ENOMEM = -11, -12
EVERY = LINUX_6_1.with_(eager_split="shadow")
GVA = 0x40000000
FIRST = MEMORY >> 12


def splits(events: list[ev.Event]) -> list[tuple[int, int]]:
    """Return gfn and result of each split."""
    return [(e.gfn, e.errno) for e in events if isinstance(e, ev.kvm_mmu_split_huge_page)]


def nested(events: list[ev.Event]) -> list[tuple[int, int]]:
    """Return those in L2's memory."""
    return [split for split in splits(events) if split[0] >= FIRST]


def shadowed(mode: str, **config: object) -> Guest:
    """Return a guest that has written two huge pages, in shadow tables, and is logged then."""
    guest = Guest(mode, thp=True, **config)  # type: ignore[arg-type]
    for at in range(0, 2 * HUGE, 1 << guest.mode.level_shift(2)):
        guest.map(GVA + at, 4 * MIB + at, level=2)
    for at in (0, HUGE):
        guest.write(GVA + at)
    guest.events.clear()
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 1, 0))
    return guest


# Without the TDP MMU ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_6_1_splits_nothing_in_shadow_paging(mode: str) -> None:
    guest = shadowed(mode)
    assert splits(guest.events) == []
    assert guest.spte(GVA, 2) & W == 0


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_the_first_version_splits_shadow_pagings_huge_pages(mode: str) -> None:
    """``20220203010051.2813563-1``: a read does not fault, a write faults once and nothing else is dirty."""
    guest = shadowed(mode, eager_split="shadow")
    assert splits(guest.events) == [(0x400, EAGAIN), (0x400, 0), (0x600, 0)]
    assert violations(guest.kvm) == []
    assert guest.page(GVA).direct
    if mode == "32":
        assert [guest.page(GVA + at).quadrant for at in (0, HUGE)] == [0, 1]
    guest.read(GVA + 5 * 0x1000)
    assert guest.of(ev.kvm_page_fault) == []
    guest.write(GVA + HUGE + 5 * 0x1000)
    assert len(guest.of(ev.kvm_page_fault)) == 1
    assert guest.machine.execute(ops.GetDirtyLog(0)).dirty == [0x605]
    assert guest.read(GVA + HUGE + 5 * 0x1000).rax == 1


def test_the_first_version_splits_the_legacy_mmus_direct_map() -> None:
    guest = Guest("np", thp=True, host=HostConfig(tdp=True), eager_split="shadow")
    guest.write(4 * MIB)
    guest.events.clear()
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 1, 0))
    assert (0x400, 0) in splits(guest.events)
    guest.write(4 * MIB + 0x1000)
    assert [e.error_code & 3 for e in guest.of(ev.kvm_page_fault)] == [3]
    assert violations(guest.kvm) == []


def test_the_first_version_does_the_same_for_a_nested_guest() -> None:
    """With the TDP MMU off, L1's own memory is split by the same pass, level by level."""
    vm = started(1, host={"tdp_mmu": False}, kernel=EVERY)
    assert splits(vm.log())[-1] == (FIRST, 0)
    assert vm.faults(MEMORY + 0x3000, write=False) == []
    assert vm.faults(MEMORY + 0x4000, write=True) == ["write_protect"]


def test_a_clear_splits_there_too() -> None:
    guest = Guest("64", thp=True, manual_dirty=3, eager_split="shadow").map(GVA, 4 * MIB, level=2)
    guest.write(GVA)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 1, 0))
    assert splits(guest.events) == []
    guest.machine.execute(ops.ClearDirtyLog(0, 0x440, 64))
    assert splits(guest.events) == [(0x400, EAGAIN), (0x400, 0)]


def test_the_tdp_mmu_splits_a_1_gib_page_on_its_way_down() -> None:
    """In pre-order: the page, then each of what became of it, down to 4 KiB."""
    gib = 1 << 18
    guest = Guest("np", host=HostConfig(tdp=True, tdp_mmu=True))
    guest.write(0)
    kvm = guest.kvm
    (table,) = (sp for sp in kvm.pages.values() if (sp.level, sp.gfn) == (3, 0))
    kvm.memory.store64(table.frame << 12 | 8, gib << 12 | PS | SPTE_MMU_PRESENT_MASK | W | 1)
    guest.events.clear()
    kvm_tdp_mmu_try_split_huge_pages(kvm, 0, gib, 2 * gib, 1, shared=True)
    assert splits(guest.events) == [(gib, 0), *((gib + 512 * i, 0) for i in range(512))]
    leaves = {
        sp.gfn + index: spte >> 12 & 0xFFFFFFFFFF
        for sp in kvm.pages.values()
        if sp.level == 1 and sp.gfn >= gib
        for index, spte in enumerate(kvm.memory.words[sp.frame * 512 : sp.frame * 512 + 512].tolist())
    }
    assert len(leaves) == gib
    assert all(gfn == pfn for gfn, pfn in leaves.items())


# Without memory -----------------------------------------------------------------------------------


def short_of_memory(pages: int, huge_pages: int = 3) -> tuple[Nested, list[ev.Event]]:
    vm = started(huge_pages)
    vm.kvm.split_tables_left = pages
    return vm, vm.log()


def test_no_memory_for_the_caches_leaves_every_huge_page() -> None:
    """``-ENOMEM`` ends the reverse map at hand, and the next one fails so too; the VMM hears nothing."""
    vm, events = short_of_memory(0)
    l2 = [(FIRST + 512 * i, ENOMEM) for i in range(3)]
    # L1's own memory is the TDP MMU's, which gives up at its first huge page.
    assert splits(events) == [*l2, (0, ENOMEM)]
    assert vm.faults(MEMORY, write=True) == ["huge_write_protect"]
    assert vm.dirty() == [FIRST]


def test_a_cache_takes_what_there_is() -> None:
    """Two pages are less than the cache holds (40) and enough for two splits."""
    vm, events = short_of_memory(2)
    assert nested(events) == [(FIRST, EAGAIN), (FIRST, 0), (FIRST + 512, 0), (FIRST + 1024, ENOMEM)]
    assert splits(events)[-1] == (0, ENOMEM)
    assert vm.faults(MEMORY + 0x1000, write=True) == ["write_protect"]
    assert vm.faults(MEMORY + 2 * HUGE, write=True) == ["huge_write_protect"]


def test_the_tdp_mmu_stops_at_the_first_page_it_has_no_table_for() -> None:
    guest = Guest("np", mib=16, thp=True, host=HostConfig(tdp=True, tdp_mmu=True))
    for at in range(0, 16, 2):
        guest.write(at * MIB)
    guest.events.clear()
    guest.kvm.split_tables_left = 3
    guest.machine.execute(ops.SetMemslot(0, 0, 16 * MIB, 1, 0))
    assert [errno for _, errno in splits(guest.events)] == [0, 0, 0, ENOMEM]
    assert (guest.kvm.stat["pages_2m"], guest.kvm.stat["pages_4k"]) == (5, 3 * 512)


# Without time -------------------------------------------------------------------------------------


def test_a_task_that_waits_for_the_cpu_gets_it_before_a_split() -> None:
    """Shown as ``-EAGAIN``, once; the reverse map is begun again and nothing is left out."""
    vm = started(2)
    vm.log()
    vm.log(on=False)
    for address in (MEMORY, MEMORY + HUGE):
        vm.faults(address, write=True)
    vm.kvm.need_resched = True
    assert nested(vm.log()) == [(FIRST, EAGAIN), (FIRST, 0), (FIRST + 512, 0)]
    assert not vm.kvm.need_resched
