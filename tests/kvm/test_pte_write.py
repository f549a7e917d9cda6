"""Emulated writes to guest tables: which sptes they reach, and when the whole page goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.pte_write import WRITE_FLOODING_LIMIT, emulator_write_phys, get_written_sptes
from mmulab.kvm.state import spte_index
from tests.kvm.guest import DATA, GVA, HOLE, MIB, PAGE, TABLE, Guest


def zapped(events: list[ev.Event]) -> list[int]:
    return [e.role & 15 for e in events if isinstance(e, ev.kvm_mmu_prepare_zap_page)]


def test_the_entrys_spte_is_cleared_and_a_flush_paid(paged: Guest) -> None:
    paged.read(GVA)
    at = paged.entry(GVA, 2)
    with paged.watch() as seen:
        paged.store(at, paged.load(at))
    assert seen[0] == ev.kvm_mmu_pte_write(at, paged.mode.entry_bytes)
    assert seen[-1] == ev.kvm_flush_remote_tlbs()
    assert zapped(seen) == []
    assert paged.spte(GVA, 2) == 0
    assert paged.kvm.stat["mmu_pte_write"] == 1
    assert paged.kvm.stat["mmu_pde_zapped"] == (2 if paged.mode.entry_bytes == 4 else 1)
    assert violations(paged.kvm) == []


def test_an_entry_of_zero_is_no_directory_entry_zapped(guest: Guest) -> None:
    guest.read(GVA)
    guest.store(guest.entry(GVA, 2), 0)
    assert guest.kvm.stat["mmu_pde_zapped"] == 0


def test_a_leaf_entry_is_dropped_and_not_patched(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        guest.store(guest.entry(GVA), DATA + 0x1000 | PAGE)
    assert any(isinstance(e, ev.drop_spte) for e in seen)
    assert guest.spte(GVA) == 0
    assert guest.read(GVA).hpa == guest.hpa(DATA + 0x1000)


def test_a_write_beside_the_used_entries_changes_nothing(guest: Guest) -> None:
    guest.read(GVA)
    path = guest.path(GVA)
    with guest.watch() as seen:
        guest.store(guest.entry(GVA, 2) + 8, DATA | TABLE)
    assert [type(e) for e in seen] == [ev.kvm_mmu_pte_write]
    assert guest.path(GVA) == path


def test_memory_that_nobody_shadows_is_just_written(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        assert emulator_write_phys(guest.vcpu, DATA, 4, 5)
    assert seen == [ev.kvm_mmu_pte_write(DATA, 4)]
    assert guest.load(DATA, 4) == 5
    assert not emulator_write_phys(guest.vcpu, HOLE, 4, 5)


def test_without_shadow_pages_nothing_is_counted() -> None:
    """``indirect_shadow_pages`` gates it all (checklist K6)."""
    guest = Guest("np")
    guest.read(DATA)
    guest.store(DATA, 5)
    assert guest.kvm.stat["mmu_pte_write"] == 0


# Misaligned and flooding ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size", "whole"),
    [(0, 8, False), (0, 4, False), (4, 4, False), (0, 1, False), (0, 2, True), (1, 1, True), (4, 8, True)],
)
def test_a_write_that_is_not_one_entry_ends_the_page(offset: int, size: int, whole: bool) -> None:
    """``detect_write_misaligned``: one byte at an entry's beginning passes, as ``clear_bit`` does it.

    Four bytes of an 8-byte entry are taken for the whole.
    """
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        guest.store(guest.table(GVA, 2) + 0x800 + offset, 0, size)
    assert zapped(seen) == ([2] if whole else [])
    assert guest.kvm.stat["mmu_flooded"] == int(whole)


@pytest.mark.parametrize(("size", "offset", "whole"), [(4, 0, False), (8, 0, True), (4, 2, True)])
def test_of_a_4_byte_table_an_entry_is_4_bytes(size: int, offset: int, whole: bool) -> None:
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        guest.store(guest.table(GVA) + 0x400 + offset, 0, size)
    assert zapped(seen) == ([1] if whole else [])


def test_the_third_write_without_use_ends_an_upper_page(guest: Guest) -> None:
    guest.read(GVA)
    free = guest.table(GVA, 2) + 0x800
    seen_levels = []
    for _ in range(WRITE_FLOODING_LIMIT):
        with guest.watch() as seen:
            guest.store(free, 0)
        seen_levels.append(zapped(seen))
    assert seen_levels == [[], [], [2]]
    assert guest.kvm.stat["mmu_flooded"] == 1


def test_use_in_between_forgives(guest: Guest) -> None:
    guest.map(GVA + 0x10000, DATA)
    guest.read(GVA)
    free = guest.table(GVA, 2) + 0x800
    for _ in range(WRITE_FLOODING_LIMIT - 1):
        guest.store(free, 0)
    guest.read(GVA + 0x10000)
    for _ in range(WRITE_FLOODING_LIMIT - 1):
        guest.store(free, 0)
    assert guest.kvm.stat["mmu_flooded"] == 0
    assert guest.page(GVA, 2).write_flooding_count == WRITE_FLOODING_LIMIT - 1


def test_leaf_pages_are_never_flooded(guest: Guest) -> None:
    guest.read(GVA)
    for _ in range(5):
        guest.store(guest.entry(GVA + 0x80000), 0)
    assert guest.kvm.stat["mmu_flooded"] == 0
    assert guest.page(GVA).write_flooding_count == 0


# Quadrants ---------------------------------------------------------------------------------


def written(guest: Guest, sp_gva: int, level: int, gpa: int) -> list[int] | None:
    """Return the indexes of the sptes that a write at `gpa` reaches in the page on the way to `sp_gva`."""
    found = get_written_sptes(guest.page(sp_gva, level), gpa)
    return None if found is None else [spte_index(sptep) for sptep in found]


@given(st.integers(0, 1023), st.integers(0, 3))
def test_a_directory_entry_of_4_bytes_is_two_sptes_of_its_quadrant(index: int, quadrant: int) -> None:
    guest = Guest("32")
    guest.enter()
    gva = quadrant << 30
    found = written(guest, gva, 2, guest.root + 4 * index)
    assert found == ([2 * index & 511, 2 * index + 1 & 511] if index >> 8 == quadrant else None)


@pytest.mark.parametrize("index", [0, 5, 511, 512, 1023])
def test_a_table_entry_of_4_bytes_is_one_spte_of_its_half(index: int) -> None:
    guest = Guest("32").map(GVA, DATA).map(GVA + 2 * MIB, DATA)
    guest.read(GVA)
    guest.read(GVA + 2 * MIB)
    gpa = guest.table(GVA) + 4 * index
    low, high = written(guest, GVA, 1, gpa), written(guest, GVA + 2 * MIB, 1, gpa)
    assert (low, high) == (([index], None) if index < 512 else (None, [index - 512]))


def test_an_entry_of_8_bytes_is_one_spte(guest: Guest) -> None:
    guest.read(GVA)
    assert written(guest, GVA, 2, guest.table(GVA, 2) + 8 * 77) == [77]
    assert written(guest, GVA, 1, guest.table(GVA) + 8 * 77 + 4) == [77]
