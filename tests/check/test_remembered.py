"""What a processor may remember, and what makes it forget."""

from __future__ import annotations

from mmulab.check.remembered import NEVER, Forgotten, TableHistory, may_be_remembered
from mmulab.memory.host import HostMemory
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG, X86_CR4_PAE, X86_CR4_PSE, CpuModel

PAGING = make_paging(X86_CR0_PG, X86_CR4_PAE, EFER_LMA, CpuModel(), KVM_WALK)
GVA = 0x40000000


def test_each_value_of_a_word_is_kept_with_the_op_that_ended_it() -> None:
    memory = HostMemory(1 << 21, table_frames=8)
    at = memory.backing << 12
    history = TableHistory(memory)
    for now, value in ((1, 0x1_0000_0067), (2, 0x2_0000_0027), (3, 0x2_0000_0027)):
        memory.write(at, 8, value)
        assert history.read(at, 8) != value or now == 3
        history.note(now)
    assert history.past(at, 8) == ((0, 1), (0x1_0000_0067, 2))
    assert history.past(at + 4, 4) == ((0, 1), (1, 2))
    assert history.read(at, 4) == 0x27


def test_what_the_vmm_overwrites_lasts_until_the_guest_writes_there() -> None:
    memory = HostMemory(1 << 21, table_frames=8)
    at = memory.backing << 12
    history = TableHistory(memory)
    memory.write(at, 8, 1)
    history.note(1, behind=True)
    assert history.past(at, 8)[0][1] > 1 << 60
    memory.write(at, 8, 2)
    history.note(7)
    assert history.past(at, 8) == ((0, 7), (1, 7))


def test_a_write_beside_it_leaves_what_the_vmm_overwrote() -> None:
    """Two entries of 32 bits share a word."""
    memory = HostMemory(1 << 21, table_frames=8)
    at = memory.backing << 12
    memory.write(at, 8, 0x167_0000_0267)
    history = TableHistory(memory)
    memory.write(at, 4, 0)
    history.note(1, behind=True)
    memory.write(at + 4, 4, 0x1367)
    history.note(2)
    assert (0x267, NEVER) in history.past(at, 4)
    assert [until for value, until in history.past(at + 4, 4) if value == 0x167] == [2, 2]
    memory.write(at, 4, 0x467)
    history.note(3)
    assert all(until <= 3 for _, until in history.past(at, 4))


def test_a_tag_that_is_new_has_nothing_to_remember() -> None:
    forgotten = Forgotten()
    form = make_paging(X86_CR0_PG, X86_CR4_PSE, 0, CpuModel(), KVM_WALK)
    forgotten.use("L1", 0, 1)
    forgotten.use(("asid", 2), 0, 7)
    forgotten.use_tables((("asid", 2), 0x14), form, 7)
    assert forgotten.tables_since((("asid", 2), 0x14)) == 7
    assert forgotten.upper_since(("asid", 2), 0) == 7
    forgotten.use(("asid", 2), 0, 9)
    forgotten.use_tables((("asid", 2), 0x14), form, 9)
    assert forgotten.tables_since((("asid", 2), 0x14)) == 7
    assert forgotten.upper_since("L1", 0) == 1


def test_nested_tables_may_be_remembered_in_the_form_they_had_before() -> None:
    """L1 clears CR4.PSE: a large nested page that the processor knows may stay until L1 flushes."""
    forgotten, tag = Forgotten(), (("asid", 1), 0x14)
    large, small = (make_paging(X86_CR0_PG, cr4, 0, CpuModel(), KVM_WALK) for cr4 in (X86_CR4_PSE, 0))
    forgotten.use_tables(tag, large, 1)
    assert forgotten.tables_forms(tag, large) == [large]
    forgotten.use_tables(tag, small, 5)
    assert [form.page_size_mask for form in forgotten.tables_forms(tag, small)] == [
        small.page_size_mask,
        large.page_size_mask,
    ]
    forgotten.tables(None, 5)
    assert forgotten.tables_forms(tag, small) == [small]


def test_a_copy_is_told_of_on_its_own() -> None:
    forgotten = Forgotten()
    forgotten.page("L1", 0, GVA, 3)
    other = forgotten.copy()
    other.page("L1", 0, GVA, 8)
    other.tables(None, 8)
    assert forgotten.leaf_since("L1", 0, GVA, 12, is_global=False) == 3
    assert other.leaf_since("L1", 0, GVA, 12, is_global=False) == 8
    assert forgotten.tables_since("tag") == 0


def test_a_history_goes_back_with_memory() -> None:
    memory = HostMemory(1 << 21, table_frames=8)
    at = memory.backing << 12
    history = TableHistory(memory)
    memory.write(at, 8, 1)
    history.note(1)
    saved = history.save()
    memory.write(at, 8, 2)
    history.note(2)
    memory.write(at, 8, 1)
    history.restore(saved)
    assert (history.read(at, 8), history.past(at, 8)) == (1, ((0, 1),))
    memory.write(at, 8, 5)
    history.note(2)
    assert history.past(at, 8) == ((0, 1), (1, 2))


def test_cr3_spares_global_leaves_and_invlpg_does_not() -> None:
    forgotten = Forgotten()
    forgotten.pcid("L1", 0, 5)
    assert forgotten.leaf_since("L1", 0, GVA, 12, is_global=False) == 5
    assert forgotten.leaf_since("L1", 0, GVA, 12, is_global=True) == 0
    assert forgotten.leaf_since("L1", 1, GVA, 12, is_global=False) == 0
    forgotten.page("L1", 0, GVA, 6)
    assert forgotten.leaf_since("L1", 0, GVA, 12, is_global=True) == 6
    assert forgotten.leaf_since("L1", 0, GVA + 0x1000, 12, is_global=True) == 0
    assert forgotten.leaf_since("L1", 0, GVA + 0x1000, 21, is_global=False) == 6
    assert forgotten.upper_since("L1", 0) == 6
    forgotten.space("L1", 8)
    assert forgotten.leaf_since("L1", 1, GVA, 12, is_global=True) == 8


def test_invpcid_of_an_address_spares_globals_and_upper_levels() -> None:
    forgotten = Forgotten()
    forgotten.page("L1", 3, GVA, 4, keep_global=True)
    assert forgotten.leaf_since("L1", 3, GVA, 12, is_global=False) == 4
    assert forgotten.leaf_since("L1", 3, GVA, 12, is_global=True) == 0
    assert forgotten.upper_since("L1", 3) == 0


def test_nested_tables_are_forgotten_by_name_or_all() -> None:
    forgotten = Forgotten()
    forgotten.tables(0x10, 2)
    assert (forgotten.tables_since(0x10), forgotten.tables_since(0x11)) == (2, 0)
    forgotten.tables(None, 3)
    assert forgotten.tables_since(0x11) == 3


def test_only_present_accessed_entries_without_reserved_bits_are_remembered() -> None:
    assert may_be_remembered(PAGING, 0x100067, 1)
    assert not may_be_remembered(PAGING, 0x100066, 1)
    assert not may_be_remembered(PAGING, 0x100047, 1)
    assert not may_be_remembered(PAGING, 0x100067 | 1 << 51, 1)


def test_marking_what_the_vmm_overwrote_is_no_write_of_the_guests() -> None:
    memory = HostMemory(1 << 21, table_frames=8)
    at = memory.backing << 12
    memory.write(at, 4, 0x1067)
    history = TableHistory(memory)
    memory.write(at, 4, 0x1005)
    history.note(1, behind=True)
    memory.write(at, 4, 0x1025)  # A
    history.note(2)
    assert (0x1067, NEVER) in history.past(at, 4)
    memory.write(at, 4, 0x1023)
    history.note(3)
    assert (0x1067, 3) in history.past(at, 4)
