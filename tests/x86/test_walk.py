"""The walk's rules one by one, and properties that hold for every path of tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.x86.mode import (
    MODES,
    NONPAGING,
    PAGING_4LEVEL,
    PAGING_5LEVEL,
    PAGING_32,
    PAGING_PAE,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PagingMode,
)
from mmulab.x86.paging import KVM_WALK, PROCESSOR, Paging, Walker, make_paging
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from mmulab.x86.walk import Walk, walk
from tests.x86.tables import path_tables, sign_extend

CPU = CpuModel(vendor="amd", maxphyaddr=40, pku=True)
CPU36 = CpuModel(vendor="amd", maxphyaddr=36, pku=True)
"""36 bits of physical address, for which KVM's width of PSE36 is the architecture's."""
MODE_BITS = {
    NONPAGING: (0, 0, 0),
    PAGING_32: (X86_CR0_PG, X86_CR4_PSE, 0),
    PAGING_PAE: (X86_CR0_PG, X86_CR4_PAE, 0),
    PAGING_4LEVEL: (X86_CR0_PG, X86_CR4_PAE, EFER_LMA),
    PAGING_5LEVEL: (X86_CR0_PG, X86_CR4_PAE | X86_CR4_LA57, EFER_LMA),
}
P, W, U, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX = 1 << 63
READ, WRITE, USER, FETCH = 0, 2, 4, 16
PAGE = 0x1234_5000


def paging_of(
    mode: PagingMode, *, wp: bool = True, cr4: int = 0, walker: Walker = PROCESSOR, cpu: CpuModel = CPU
) -> Paging:
    """Return the paging of `mode` with EFER.NX, CR0.WP and further bits of CR4."""
    cr0, mode_cr4, efer = MODE_BITS[mode]
    return make_paging(cr0 | (X86_CR0_WP if wp else 0), mode_cr4 | cr4, efer | EFER_NX, cpu, walker)


def entries_of(
    mode: PagingMode, flags: int = P | W | U | A, leaf: int = PAGE | P | W | U | A | D
) -> dict[int, int]:
    """Return well-formed entries of a path to one 4 KiB page."""
    entries = dict.fromkeys(range(2, mode.root_level + 1), flags) | {1: leaf}
    if mode.has_pdptes:
        entries[3] = P
    return entries


@dataclass
class Tables:
    """A path of tables in memory, with the addresses that were stored to."""

    root: int
    memory: dict[int, int]
    stored: list[int]

    def load(self, address: int, level: int) -> int | None:
        return self.memory.get(address)

    def store(self, address: int, entry: int) -> None:
        self.stored.append(address)
        self.memory[address] = entry


def tables_of(mode: PagingMode, va: int, entries: dict[int, int]) -> Tables:
    """Put a path for `va` into memory."""
    root, memory = path_tables(mode, va, entries)
    return Tables(root, memory, [])


def run(
    paging: Paging,
    tables: Tables,
    va: int,
    pfec: int,
    *,
    pdptes: list[int] | None = None,
    not_smap: bool = False,
    pkru: int = 0,
) -> Walk:
    """Walk `tables`."""
    return walk(
        paging, tables.root, va, pfec, tables.load, tables.store, pdptes=pdptes, not_smap=not_smap, pkru=pkru
    )


# Where a walk arrives --------------------------------------------------------


def test_without_paging_the_address_is_physical() -> None:
    paging = paging_of(NONPAGING)
    w = walk(paging, 0, 0x8000_1234, WRITE | USER, lambda address, level: None)
    assert (w.pa, w.error, w.ad_done) == (0x8000_1234, None, True)


@pytest.mark.parametrize("mode", [PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL], ids=lambda m: m.name)
def test_walk_records_its_path(mode: PagingMode) -> None:
    va = sign_extend(0xB7_1234_5678_9ABC & (1 << mode.va_bits) - 1, mode)
    tables = tables_of(mode, va, entries_of(mode))
    w = run(paging_of(mode), tables, va, WRITE | USER)
    assert w.error is None
    assert w.pa == PAGE | va & 0xFFF
    assert w.level == 1
    top = mode.root_level - (1 if mode.has_pdptes else 0)
    assert w.max_level == top
    for level in range(1, top + 1):
        assert w.table[level] == 0x100 + level << 12
        assert w.entry_addr[level] == w.table[level] + mode.index(va, level) * mode.entry_bytes
        assert w.ptes[level] == tables.memory[w.entry_addr[level]]
    assert w.pte_access == w.pt_access[1] == ACC_ALL
    assert not tables.stored


@pytest.mark.parametrize(
    ("mode", "level", "leaf", "pa"),
    [
        (PAGING_32, 2, 0xC040_0000, 0xC040_0000 | 0x14_5678),
        (PAGING_32, 2, 0xC040_0000 | 0xA5 << 13, 0xA5_C040_0000 | 0x14_5678),
        (PAGING_PAE, 2, 0x12_C040_0000, 0x12_C040_0000 | 0x14_5678),
        (PAGING_4LEVEL, 2, 0x12_C060_0000 | 1 << 12, 0x12_C060_0000 | 0x14_5678),
        (PAGING_4LEVEL, 3, 0x12_C000_0000, 0x12_C000_0000 | 0x1234_5678 & (1 << 30) - 1),
        (PAGING_5LEVEL, 3, 0x12_C000_0000 | 1 << 12, 0x12_C000_0000 | 0x1234_5678),
    ],
)
def test_large_pages(mode: PagingMode, level: int, leaf: int, pa: int) -> None:
    va = 0x1234_5678 if level == 3 else 0x1214_5678
    entries = {n: e for n, e in entries_of(mode).items() if n > level} | {level: leaf | P | W | U | A | PS}
    tables = tables_of(mode, va, entries)
    w = run(paging_of(mode), tables, va, READ)
    assert (w.error, w.level, hex(w.pa)) == (None, level, hex(pa))


def test_without_pse_bit_7_of_a_pde_is_ignored() -> None:
    cr0, _, efer = MODE_BITS[PAGING_32]
    tables = tables_of(PAGING_32, 0x1214_5678, entries_of(PAGING_32, flags=P | W | U | A | PS))
    assert run(make_paging(cr0, 0, efer, CPU), tables, 0x1214_5678, READ).pa == PAGE | 0x678
    assert run(make_paging(cr0, X86_CR4_PSE, efer, CPU), tables, 0x1214_5678, READ).level == 2


@pytest.mark.parametrize(
    ("mode", "noise"),
    [
        pytest.param(PAGING_32, 0xFFFF_FFFF_0000_0FFF, id="32"),
        pytest.param(PAGING_PAE, 0xFFFF_FFFF_0000_001F, id="pae"),
        pytest.param(PAGING_4LEVEL, 1 << 63 | 0xFFF, id="4level"),
    ],
)
def test_bits_of_cr3_that_locate_nothing_are_ignored(mode: PagingMode, noise: int) -> None:
    tables = tables_of(mode, 0x1234_5678, entries_of(mode))
    tables.root |= noise
    assert run(paging_of(mode), tables, 0x1234_5678, READ).pa == PAGE | 0x678


# PDPTEs ----------------------------------------------------------------------


def test_pdpte_registers_hide_the_table_in_memory() -> None:
    va = 0xC000_0000 | 0x1234
    tables = tables_of(PAGING_PAE, va, entries_of(PAGING_PAE))
    (address,) = (a for a in tables.memory if a >> 12 == 0x103)
    pdpte = tables.memory[address]
    tables.memory[address] = 0
    paging = paging_of(PAGING_PAE)
    assert run(paging, tables, va, READ, pdptes=[0, 0, 0, pdpte]).pa == PAGE | 0x234
    w = run(paging, tables, va, READ, pdptes=[pdpte, pdpte, pdpte, 0])
    assert (w.error, w.pdpte, w.level) == (0, 0, 3)
    assert run(paging, tables, va, WRITE | USER).error == WRITE | USER


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63])
def test_reserved_bits_of_a_pdpte_count_where_it_comes_from_memory(bit: int) -> None:
    tables = tables_of(PAGING_PAE, 0x1234, entries_of(PAGING_PAE) | {3: P | 1 << bit | 0x102 << 12})
    assert run(paging_of(PAGING_PAE), tables, 0x1234, READ).error == 9


def test_pdpte_registers_were_checked_when_they_were_loaded() -> None:
    tables = tables_of(PAGING_PAE, 0x1234, entries_of(PAGING_PAE))
    pdptes = [P | 1 << 5 | 0x102 << 12] * 4
    assert run(paging_of(PAGING_PAE), tables, 0x1234, READ, pdptes=pdptes).error is None


def test_the_walk_sets_no_bit_in_a_pdpte_and_takes_no_rights_from_it() -> None:
    tables = tables_of(PAGING_PAE, 0x1234, entries_of(PAGING_PAE, leaf=PAGE | P | W | U))
    before = dict(tables.memory)
    w = run(paging_of(PAGING_PAE), tables, 0x1234, WRITE | USER)
    assert w.error is None
    assert {a >> 12 for a in tables.memory if tables.memory[a] != before[a]} == {0x101}


# Faults ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL], ids=lambda m: m.name)
@pytest.mark.parametrize("missing", ["entry", "table"])
def test_not_present_at_each_level(mode: PagingMode, missing: str) -> None:
    for level in range(1, mode.root_level + 1):
        for pfec, code in ((READ, 0), (WRITE | USER, 6), (FETCH | USER, 20), (FETCH, 16)):
            tables = tables_of(mode, 0x1234_5678, entries_of(mode))
            for address in [a for a in tables.memory if a >> 12 == 0x100 + level]:
                if missing == "entry":
                    tables.memory[address] &= ~P
                else:
                    del tables.memory[address]
            w = run(paging_of(mode, cr4=X86_CR4_SMEP), tables, 0x1234_5678, pfec)
            assert (w.error, w.level, w.pa) == (code, level, -1)


def test_reserved_bits_come_before_rights_and_after_present() -> None:
    va = 0x1234_5678
    reserved = 1 << 45
    paging = paging_of(PAGING_4LEVEL)
    tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | P | reserved))
    assert run(paging, tables, va, WRITE | USER).error == 0xF
    tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | reserved))
    assert run(paging, tables, va, WRITE | USER).error == 0x6


def test_a_reserved_bit_stops_the_walk_at_its_level() -> None:
    va = 0x1234_5678
    entries = entries_of(PAGING_4LEVEL, flags=P | W | U) | {3: P | W | U | 1 << 45 | 0x102 << 12, 1: 0}
    tables = tables_of(PAGING_4LEVEL, va, entries)
    w = run(paging_of(PAGING_4LEVEL), tables, va, READ)
    assert (w.error, w.level) == (9, 3)
    assert [a >> 12 for a in tables.stored] == [0x104]


def test_a_walker_may_leave_p_out_of_reserved_faults() -> None:
    va = 0x1234_5678
    without_p = replace(PROCESSOR, rsvd_sets_p=False)
    for walker, code in ((PROCESSOR, 9), (KVM_WALK, 9), (without_p, 8)):
        tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | P | 1 << 45))
        assert run(paging_of(PAGING_4LEVEL, walker=walker), tables, va, READ).error == code


@pytest.mark.parametrize("bit", range(13, 21))
def test_kvm_takes_four_bits_of_pse36_where_the_processor_takes_eight(bit: int) -> None:
    va = 0x1214_5678
    tables = tables_of(PAGING_32, va, {2: 0xC040_0000 | P | W | U | A | PS | 1 << bit})
    pa = 0xC040_0000 | va & 0x3F_FFFF | 1 << 32 + bit - 13
    w = run(paging_of(PAGING_32), tables, va, READ)
    assert (w.error, w.pa) == (None, pa)
    w = run(paging_of(PAGING_32, walker=KVM_WALK), tables, va, READ)
    assert (w.error, w.pa) == ((None, pa) if bit < 17 else (9, -1))


@pytest.mark.parametrize(("vendor", "error"), [("amd", 9), ("intel", None)])
def test_bit_8_of_a_pml4e_is_reserved_by_vendor(vendor: str, error: int | None) -> None:
    va = 0x1234_5678
    entries = entries_of(PAGING_4LEVEL)
    entries[4] |= 1 << 8
    paging = paging_of(PAGING_4LEVEL, cpu=replace(CPU, vendor=vendor))
    assert run(paging, tables_of(PAGING_4LEVEL, va, entries), va, READ).error == error


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("bit", "pfec", "error"),
    [(U, READ | USER, 5), (W, WRITE, 3), (W, WRITE | USER, 7), (NX, FETCH, 17), (NX, FETCH | USER, 21)],
)
def test_each_level_can_take_a_right_away(level: int, bit: int, pfec: int, error: int) -> None:
    va = 0x1234_5678
    entries = entries_of(PAGING_4LEVEL, leaf=PAGE | P | W | U)
    entries[level] ^= bit
    tables = tables_of(PAGING_4LEVEL, va, entries)
    w = run(paging_of(PAGING_4LEVEL), tables, va, pfec)
    assert (w.error, w.level) == (error, 1)
    assert not tables.stored
    w = run(paging_of(PAGING_4LEVEL), tables, va, READ)
    lost = {U: ACC_USER_MASK, W: ACC_WRITE_MASK, NX: ACC_EXEC_MASK}[bit]
    assert w.pte_access == ACC_ALL & ~lost
    assert w.pt_access[1] == (ACC_ALL if level == 1 else ACC_ALL & ~lost)


@pytest.mark.parametrize(
    ("pkru", "pfec", "wp", "error"),
    [
        (0b01, READ, True, 0x21),
        (0b01, READ | USER, True, 0x25),
        (0b10, READ | USER, True, None),
        (0b10, WRITE | USER, False, 0x27),
        (0b10, WRITE, True, 0x23),
        (0b10, WRITE, False, None),
        (0b01, FETCH | USER, True, None),
        (0b11, WRITE, False, 0x23),
    ],
)
def test_protection_keys(pkru: int, pfec: int, wp: bool, error: int | None) -> None:
    va, key = 0x1234_5678, 11
    entries = entries_of(PAGING_4LEVEL, leaf=PAGE | P | W | U | A | D | key << 59)
    tables = tables_of(PAGING_4LEVEL, va, entries)
    paging = paging_of(PAGING_4LEVEL, wp=wp, cr4=X86_CR4_PKE)
    assert run(paging, tables, va, pfec, pkru=pkru << 2 * key).error == error
    assert run(paging, tables, va, pfec, pkru=0xFFFF_FFFF & ~(3 << 2 * key)).error is None


def test_protection_keys_leave_supervisor_pages_alone_and_join_other_violations() -> None:
    va = 0x1234_5678
    paging = paging_of(PAGING_4LEVEL, cr4=X86_CR4_PKE | X86_CR4_SMAP)
    supervisor = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | P | W))
    assert run(paging, supervisor, va, READ, pkru=0xFFFF_FFFF).error is None
    assert run(paging, supervisor, va, READ | USER, pkru=0xFFFF_FFFF).error == 5
    user = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | P | U))
    assert run(paging, user, va, READ, pkru=0).error == 1
    assert run(paging, user, va, READ, pkru=1).error == 0x21
    assert run(paging, user, va, WRITE | USER, pkru=1).error == 0x27


# A and D ---------------------------------------------------------------------


def test_accessed_is_set_on_the_way_even_if_a_lower_level_faults() -> None:
    va = 0x1234_5678
    tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, flags=P | W | U) | {1: 0})
    assert run(paging_of(PAGING_4LEVEL), tables, va, WRITE).error == 2
    assert [a >> 12 for a in tables.stored] == [0x104, 0x103, 0x102]
    tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, flags=P | W | U) | {1: 0})
    assert run(paging_of(PAGING_4LEVEL, walker=KVM_WALK), tables, va, WRITE).error == 2
    assert not tables.stored


@pytest.mark.parametrize(
    ("leaf", "pfec", "after"),
    [
        (0, READ, A),
        (0, WRITE, A | D),
        (A, READ, A),
        (A, WRITE, A | D),
        (D, READ, A | D),
        (A | D, WRITE, A | D),
    ],
)
def test_dirty_is_set_in_the_leaf_by_a_write(leaf: int, pfec: int, after: int) -> None:
    va = 0x1234_5678
    tables = tables_of(PAGING_4LEVEL, va, entries_of(PAGING_4LEVEL, leaf=PAGE | P | W | U | leaf))
    w = run(paging_of(PAGING_4LEVEL), tables, va, pfec)
    assert w.ptes[1] & (A | D) == after
    assert tables.memory[w.entry_addr[1]] == PAGE | P | W | U | after
    assert len(tables.stored) == (after != leaf)
    assert w.ptes[2] & (A | D) == A


# Properties ------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One path and one access to it."""

    mode: PagingMode
    cr0: int
    cr4: int
    efer: int
    entries: tuple[tuple[int, int], ...]
    va: int
    pfec: int
    not_smap: bool
    pkru: int

    def tables(self) -> Tables:
        return tables_of(self.mode, self.va, dict(self.entries))

    def run(self, tables: Tables, walker: Walker) -> Walk:
        paging = make_paging(self.cr0, self.cr4, self.efer, CPU36, walker)
        return run(paging, tables, self.va, self.pfec, not_smap=self.not_smap, pkru=self.pkru)


ODDITIES = (P, W, U, PS, NX, 1 << 8, 1 << 13, 1 << 16, 1 << 21, 1 << 45, 5 << 59)
"""Bits that turn a well-formed entry into another kind of entry."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a path in any mode, to a page of any size, with up to three odd bits in its entries."""
    mode = draw(st.sampled_from([m for m in MODES.values() if m.root_level]))
    cr0, cr4, efer = MODE_BITS[mode]
    for bits in (X86_CR4_SMEP, X86_CR4_SMAP, X86_CR4_PKE):
        cr4 |= draw(st.sampled_from((0, bits)))
    leaf = draw(st.integers(1, min(3, mode.root_level - (1 if mode.has_pdptes else 0))))
    entries = {}
    for level in range(1, mode.root_level + 1):
        entries[level] = P | W | U | draw(st.sampled_from((0, A, D, A | D)))
    entries[leaf] |= draw(st.integers(1, 3)) << 30 | (PS if leaf > 1 else 0)
    odd = st.tuples(st.integers(1, mode.root_level), st.sampled_from(ODDITIES))
    for level, bit in draw(st.lists(odd, max_size=3)):
        entries[level] ^= bit
    for level, entry in entries.items():
        if mode.has_pdptes and level == 3:
            entries[level] = entry & P
        elif mode.entry_bytes == 4:
            entries[level] = entry & 0xFFFF_FFFF
    return Case(
        mode,
        cr0 | draw(st.sampled_from((0, X86_CR0_WP))),
        cr4,
        efer | draw(st.sampled_from((0, EFER_NX))),
        tuple(entries.items()),
        sign_extend(draw(st.integers(0, (1 << mode.va_bits) - 1)), mode),
        draw(st.sampled_from((READ, WRITE, FETCH))) | draw(st.sampled_from((0, USER))),
        draw(st.booleans()),
        draw(st.sampled_from((0, 1, 2, 1 << 10, 2 << 10))),
    )


@given(case=cases())
def test_a_second_walk_ends_the_same_and_sets_nothing_more(case: Case) -> None:
    tables = case.tables()
    first = case.run(tables, PROCESSOR)
    tables.stored.clear()
    second = case.run(tables, PROCESSOR)
    assert (second.pa, second.error) == (first.pa, first.error)
    assert not tables.stored


@given(case=cases())
def test_a_walk_sets_only_accessed_and_the_leaf_s_dirty(case: Case) -> None:
    tables = case.tables()
    before = dict(tables.memory)
    w = case.run(tables, PROCESSOR)
    for address, entry in tables.memory.items():
        leaf = w.error is None and address == w.entry_addr[w.level]
        may = PT_ACCESSED_MASK | (PT_DIRTY_MASK if leaf and case.pfec & WRITE else 0)
        assert entry | may == before[address] | may
        assert entry & before[address] == before[address]
    if w.error is None:
        for level in range(w.level, w.max_level + 1):
            assert tables.memory[w.entry_addr[level]] & PT_ACCESSED_MASK


@given(case=cases())
def test_kvm_s_walk_ends_like_the_processor_s_and_stores_nothing(case: Case) -> None:
    processor, kvm = case.tables(), case.tables()
    expected, w = case.run(processor, PROCESSOR), case.run(kvm, KVM_WALK)
    error = w.error
    nx_without_pae = case.mode is PAGING_32 and case.efer & EFER_NX and not case.cr4 & X86_CR4_SMEP
    if error is not None and nx_without_pae:
        assert error & FETCH == case.pfec & FETCH
        error &= ~FETCH
    assert (w.pa, error) == (expected.pa, expected.error)
    assert not kvm.stored
    if error is None:
        assert w.ad_done == (not processor.stored)


def test_the_draw_of_cases_meets_success_and_faults_in_all_modes() -> None:
    met = set()

    @settings(max_examples=500)
    @given(case=cases())
    def collect(case: Case) -> None:
        w = case.run(case.tables(), PROCESSOR)
        met.add((case.mode.name, None if w.error is None else w.error & 9))

    collect()
    for mode, kind in product(("32", "pae", "4level", "5level"), (None, 0, 1, 9)):
        assert (mode, kind) in met
