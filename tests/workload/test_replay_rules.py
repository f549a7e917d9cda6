"""The rules by which a stream is replayed, each on a stream made by hand.

Each test would fail if its rule were not followed: a translation would differ,
the guest's memory, or what KVM was told.
"""

from __future__ import annotations

import pytest

from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import X86_CR4_SMAP, X86_CR4_SMEP
from tests.workload.replays import KERNEL_PAGE, USER_PAGE, agrees, differs, two_pages
from tests.workload.streams import PAGE, PAGING_NAMES, TABLE, USER, A, D, Guest, P, U, W

ALL_MODES = pytest.mark.parametrize("paging", PAGING_NAMES)


# 1. Rights --------------------------------------------------------------------


@ALL_MODES
def test_a_users_access_to_the_supervisors_page_is_implicit(paging: str) -> None:
    guest = two_pages(paging)
    guest.read(USER_PAGE, USER_PAGE, cpl=3)
    guest.read(KERNEL_PAGE, KERNEL_PAGE, cpl=3)
    guest.write(KERNEL_PAGE + 0x1000, KERNEL_PAGE + 0x1000, cpl=3)
    run = agrees(guest)
    assert run.faults(USER_PAGE) == [PFERR_USER_MASK]
    assert run.faults(KERNEL_PAGE) == [0]
    assert {code & PFERR_USER_MASK for code in run.faults(KERNEL_PAGE + 0x1000)} <= {0}
    assert run.result.faults["read_user"] == 2


@ALL_MODES
def test_an_implicit_access_that_hits_is_no_fault_for_kvm(paging: str) -> None:
    guest = two_pages(paging)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    guest.read(KERNEL_PAGE, KERNEL_PAGE, cpl=3)
    run = agrees(guest)
    assert run.faults(KERNEL_PAGE) == [0]
    assert run.result.faults["read_user"] == 0


@ALL_MODES
def test_a_users_fetch_from_the_supervisors_page_is_not(paging: str) -> None:
    guest = two_pages(paging)
    run = differs(guest, guest.fetch(KERNEL_PAGE, KERNEL_PAGE, cpl=3))
    code = PFERR_PRESENT_MASK | PFERR_USER_MASK | (0 if paging == "32" else PFERR_FETCH_MASK)
    assert run.result.mismatch is not None
    assert run.result.mismatch.what == f"it ends in exception 14, error code {code:#x}"
    assert run.result.mismatch.reached is None


@ALL_MODES
def test_supervisor_data_accesses_have_ac_set(paging: str) -> None:
    guest = two_pages(paging, cr4=X86_CR4_SMAP | X86_CR4_SMEP)
    guest.read(USER_PAGE, USER_PAGE)
    guest.write(USER_PAGE, USER_PAGE)
    agrees(guest)
    differs(guest, guest.fetch(USER_PAGE, USER_PAGE))


@ALL_MODES
@pytest.mark.parametrize("cpl", [0, 3])
def test_rights_are_checked(paging: str, cpl: int) -> None:
    guest = two_pages(paging)
    guest.set_entry(USER_PAGE, USER_PAGE | USER & ~W)
    guest.invlpg(USER_PAGE)
    guest.read(USER_PAGE, USER_PAGE, cpl)
    run = differs(guest, guest.write(USER_PAGE, USER_PAGE, cpl))
    code = PFERR_PRESENT_MASK | PFERR_WRITE_MASK | (PFERR_USER_MASK if cpl == 3 else 0)
    assert run.result.mismatch is not None
    assert run.result.mismatch.what == f"it ends in exception 14, error code {code:#x}"


# 2. Order ---------------------------------------------------------------------


@ALL_MODES
def test_a_block_is_applied_before_its_control_register(paging: str) -> None:
    """In PAE the PDPTEs are read when CR3 is loaded, so they must be there then."""
    guest = Guest(paging)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    guest.control(3, 0x8020 if paging == "pae" else 0x8000)
    guest.block(0x8020 if paging == "pae" else 0x8000)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    run = agrees(guest)
    assert run.replay.machine.kvm.vcpus[0].cr3 & ~0xFFF == 0x8000


def linked_table(paging: str, miss: bool) -> tuple[Guest, int, list[int]]:
    """A guest that links a new table; the link's gpa, and those of the table's entries."""
    guest = Guest(paging)
    high = 1 << guest.mode.level_shift(2)
    link = guest.entry_gpa(2, high)
    if miss:
        guest.miss(link)
    guest.set_entry(high, 0x20000 | TABLE, level=2)
    guest.new_table(0x20000, 1)
    entries = [guest.entry_gpa(1, index << 12, table=0x20000) for index in (3, 7)]
    for gpa, page in zip(entries, (0x50000, 0x60000), strict=True):
        guest.entry(gpa, 1, page | PAGE)
    guest.read(high + 0x3000, 0x50000)
    guest.fetch(high + 0x7000, 0x60000)
    return guest, link, entries


@ALL_MODES
@pytest.mark.parametrize("miss", [False, True])
def test_a_block_is_applied_before_its_table_store(paging: str, miss: bool) -> None:
    guest, link, entries = linked_table(paging, miss)
    run = agrees(guest)
    assert run.table_writes()[-3:] == [*entries, link]


# 3. Announced tables ----------------------------------------------------------


@ALL_MODES
def test_a_table_that_kvm_still_shadows_changes_by_tracked_stores(paging: str) -> None:
    guest, _, entries = linked_table(paging, miss=False)
    high = 1 << guest.mode.level_shift(2)
    guest.table_end(0x20000, 1)
    guest.set_entry(0x1000, 0x1000 | PAGE)
    guest.new_table(0x20000, 1)
    guest.entry(entries[0], 1, 0x70000 | PAGE)
    guest.read(high + 0x3000, 0x70000)
    run = agrees(guest)
    # Without a flush between: only write tracking could tell KVM. The entry without an e is zero now.
    assert run.table_writes().count(entries[0]) == 2
    assert run.table_writes().count(entries[1]) == 2
    assert run.memory(entries[1], guest.width) == 0
    differs(guest, guest.fetch(high + 0x7000, 0x60000))


@ALL_MODES
def test_only_entries_that_changed_are_stored(paging: str) -> None:
    guest, _, entries = linked_table(paging, miss=False)
    guest.table_end(0x20000, 1)
    guest.set_entry(0x1000, 0x1000 | PAGE)
    guest.new_table(0x20000, 1)
    for gpa, page in zip(entries, (0x50000, 0x70000), strict=True):
        guest.entry(gpa, 1, page | PAGE)
    run = agrees(guest)
    assert run.table_writes().count(entries[0]) == 1
    assert run.table_writes().count(entries[1]) == 2


def test_a_pae_root_is_32_bytes() -> None:
    guest = Guest("pae", root=0x1040)
    guest.control(3, 0x1040)
    guest.new_table(0x1060, 3)
    guest.entry(0x1060, 3, 0x2000 | P)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    guest.control(3, 0x1060)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    run = agrees(guest)
    assert run.memory(0x1040, 8) == 0x2000 | P
    assert (0x1060, 3) in run.replay.tables
    assert run.replay.machine.kvm.vcpus[0].walk_mmu.pdptrs == [0x2000 | P, 0, 0, 0]


# 4. Writes without a value ----------------------------------------------------


@ALL_MODES
def test_a_miss_and_its_table_store_are_one_instruction(paging: str) -> None:
    guest = Guest(paging)
    high = 1 << guest.mode.level_shift(2)
    link = guest.entry_gpa(2, high)
    guest.miss(link)
    guest.set_entry(high, 0x20000 | TABLE, level=2)
    run = agrees(guest)
    assert run.table_writes().count(link) == 1
    assert run.memory(link, guest.width) == 0x20000 | TABLE
    # The entry at the page's start is where the miss would have stored.
    assert run.table_writes().count(link & ~0xFFF) <= 1
    assert run.result.accesses == 2


@ALL_MODES
def test_a_miss_that_hits_stores_nothing(paging: str) -> None:
    """After the first store the table is out of sync, so both are the processor's alone."""
    guest = Guest(paging)
    guest.set_entry(0x60000, 0x60000 | PAGE)
    before = guest.rows[-1]
    gpa = guest.entry_gpa(1, 0x61000)
    guest.miss(gpa)
    guest.set_entry(0x61000, 0x77000 | PAGE)
    run = agrees(guest)
    assert run.memory(guest.entry_gpa(1, 0), guest.width) & ~(A | D) == 0 | PAGE & ~(A | D)
    assert run.memory(before[4], guest.width) == before[5]
    assert run.memory(gpa, guest.width) == 0x77000 | PAGE


@ALL_MODES
def test_another_write_stores_what_is_there(paging: str) -> None:
    """A page that KVM still shadows is written: the emulator stores the same bytes again."""
    guest, link, entries = linked_table(paging, miss=False)
    guest.table_end(guest.tables[2], 2)
    page = link & ~0xFFF
    guest.write(page, page, size=guest.width)
    guest.read(0x70000, 0x70000)
    run = agrees(guest)
    assert run.table_writes().count(page) >= 1
    assert run.memory(page, guest.width) & ~(A | D) == guest.tables[1] | TABLE & ~(A | D)
    assert run.memory(link, guest.width) == 0x20000 | TABLE
    assert run.memory(entries[0], guest.width) == 0x50000 | PAGE


def test_a_write_before_the_store_to_another_page_is_not_its_miss() -> None:
    guest = Guest("32")
    guest.write(0x70000, 0x70000)
    guest.set_entry(0x60000, 0x60000 | PAGE)
    run = agrees(guest)
    assert run.faults(0x70000)


@pytest.mark.parametrize("at", [0, 1])
def test_a_limit_between_a_miss_and_its_store(at: int) -> None:
    guest = Guest("32")
    miss = guest.miss(guest.entry_gpa(1, 0x60000))
    guest.set_entry(0x60000, 0x90000 | PAGE)
    run = agrees(guest, limit=miss + 1 + at)
    assert run.result.accesses == 1 + at
    expected = (0x90000 if at else 0x60000) | PAGE
    assert run.memory(guest.entry_gpa(1, 0x60000), 4) == expected


# 5. Page faults ---------------------------------------------------------------


def test_page_faults_are_counted_only() -> None:
    guest = Guest("32")
    guest.page_fault(0xDEAD0000)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    last = guest.page_fault(0xBEEF0000)
    run = agrees(guest)
    assert run.result.guest_faults == 2
    assert run.result.stats["pf_guest"] == 0
    assert agrees(guest, limit=last).result.guest_faults == 1


# 6. A and D -------------------------------------------------------------------


@ALL_MODES
def test_recorded_accessed_and_dirty_bits_replace_the_models(paging: str) -> None:
    guest = Guest(paging, flags=PAGE & ~(A | D))
    guest.write(0x60000, 0x60000)
    guest.read(0x61000, 0x61000)
    agreed = agrees(guest)
    gpa = [guest.entry_gpa(1, gva) for gva in (0x60000, 0x61000, 0x62000)]
    assert [agreed.memory(at, guest.width) & (A | D) for at in gpa] == [A | D, A, 0]
    guest.set_entry(0x60000, 0x60000 | P | W)
    guest.set_entry(0x61000, 0x61000 | PAGE)
    guest.set_entry(0x62000, 0x62000 | P | W | A)
    run = agrees(guest)
    assert [run.memory(at, guest.width) & (A | D) for at in gpa] == [0, A | D, A]


def test_bit_5_of_pdptes_is_masked() -> None:
    """KVM would refuse to load CR3 with it (#GP); in other entries it is A and stays."""
    guest = Guest("pae")
    guest.control(3, 0x8020)
    guest.new_table(0x8020, 3)
    guest.entry(0x8020, 3, 0x2000 | P | A)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    guest.store(0x8028, 0x8028, 3, 0x2000 | P | A, 8)
    guest.store(0x8030, 0x8030, 3, 0x2000 | P | A, 4, narrow=True)
    guest.control(3, 0x8020)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    run = agrees(guest)
    assert run.replay.machine.kvm.vcpus[0].walk_mmu.pdptrs == [0x2000 | P] * 3 + [0]
    assert run.memory(0x2000, 8) & A


def test_other_reserved_bits_of_pdptes_are_not() -> None:
    guest = Guest("pae")
    load = guest.control(3, 0x8020)
    guest.new_table(0x8020, 3)
    guest.entry(0x8020, 3, 0x2000 | P | U)
    run = differs(guest, load)
    assert run.result.mismatch is not None
    assert run.result.mismatch.kind == "C"
    assert run.result.mismatch.what == "it ends in exception 13, error code 0x0"


@pytest.mark.parametrize("paging", ["4level", "5level"])
def test_level_3_entries_of_other_modes_keep_bit_5(paging: str) -> None:
    guest = Guest(paging)
    guest.set_entry(0, guest.tables[2] | TABLE, level=3)
    run = agrees(guest)
    assert run.memory(guest.entry_gpa(3, 0), 8) & A
