"""EPT: rights, misconfigurations and reserved bits against SDM 3, 29.3."""

from __future__ import annotations

from itertools import product

import pytest

from mmulab.x86.ept import bad_mt_xwr, ept_permission_bitmask, make_ept_paging, raw_rwx
from mmulab.x86.paging import PROCESSOR
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import CpuModel
from mmulab.x86.walk import EPT_ACCESS, walk
from tests.x86.tables import path_tables

CPU = CpuModel(vendor="intel", maxphyaddr=46)
READ, WRITE, FETCH = PFERR_USER_MASK, PFERR_WRITE_MASK, PFERR_FETCH_MASK
KINDS = {READ: 1, WRITE: 2, FETCH: 4}
"""The bit of an entry that each kind of access needs."""
GPA = 0x12_3456_7890
WRITE_BACK = 6 << 3


def span(high: int, low: int) -> int:
    return sum(1 << bit for bit in range(low, high + 1))


def test_rights_convert_both_ways() -> None:
    for rwx in range(8):
        assert raw_rwx(EPT_ACCESS[rwx]) == rwx


@pytest.mark.parametrize(("kind", "rwx"), list(product(KINDS, range(8))))
def test_an_access_needs_its_own_right(kind: int, rwx: int) -> None:
    denied = ept_permission_bitmask()[kind >> 1] >> EPT_ACCESS[rwx] & 1
    assert denied == (not rwx & KINDS[kind])


@pytest.mark.parametrize("execonly", [False, True])
def test_misconfigured_rights_and_memory_types(execonly: bool) -> None:
    bad = bad_mt_xwr(execonly=execonly)
    for memory_type, rwx in product(range(8), range(8)):
        writes_unread = rwx & 2 and not rwx & 1
        wanted = writes_unread or (rwx == 4 and not execonly) or memory_type not in (0, 1, 4, 5, 6)
        assert bad >> (memory_type << 3 | rwx) & 1 == bool(wanted), (memory_type, rwx)


@pytest.mark.parametrize(
    ("level", "bit7", "reserved"),
    [
        (5, 0, span(7, 3)),
        (4, 0, span(7, 3)),
        (4, 1, span(7, 3)),
        (3, 0, span(6, 3)),
        (3, 1, span(29, 12)),
        (2, 0, span(6, 3)),
        (2, 1, span(20, 12)),
        (1, 0, 0),
        (1, 1, 0),
    ],
)
def test_reserved_bits(level: int, bit7: int, reserved: int) -> None:
    paging = make_ept_paging(5, ad=True, cpu=CPU, walker=PROCESSOR)
    possible = span(63, 0) if bit7 else ~(1 << 7)
    assert paging.rsvd[bit7][level] & possible == (reserved | span(51, 46)) & possible


@pytest.mark.parametrize(("level", "ad"), list(product((4, 5), (False, True))))
def test_a_walk_sets_bits_8_and_9_only_where_they_are_on(level: int, ad: bool) -> None:
    paging = make_ept_paging(level, ad=ad, cpu=CPU, walker=PROCESSOR)
    entries = dict.fromkeys(range(2, level + 1), 7) | {1: 0x5000 | WRITE_BACK | 7}
    root, memory = path_tables(paging.mode, GPA, entries)
    before = dict(memory)
    w = walk(paging, root, GPA, READ | WRITE, lambda at, level: memory.get(at), memory.__setitem__)
    assert (w.error, w.pa) == (None, 0x5890)
    for address, entry in before.items():
        leaf = address == w.entry_addr[1]
        assert memory[address] == entry | ((1 << 8 | (1 << 9 if leaf else 0)) if ad else 0)


@pytest.mark.parametrize(
    ("upper", "leaf", "kind", "error"),
    [
        (7, WRITE_BACK | 0, READ, READ),
        (0, WRITE_BACK | 7, READ, READ),
        (7, WRITE_BACK | 1, WRITE, WRITE | 1),
        (5, WRITE_BACK | 3, WRITE, WRITE | 1),
        (7, WRITE_BACK | 3, FETCH, FETCH | 1),
        (7, WRITE_BACK | 4, FETCH, None),
        (7, WRITE_BACK | 4, READ, READ | 1),
        (7, WRITE_BACK | 2, READ, READ | 9),
        (7, 7 << 3 | 7, READ, READ | 9),
        (7 | 1 << 3, WRITE_BACK | 7, READ, READ | 9),
    ],
)
def test_violations_and_misconfigurations(upper: int, leaf: int, kind: int, error: int | None) -> None:
    paging = make_ept_paging(4, ad=False, cpu=CPU, walker=PROCESSOR)
    entries = {4: 7, 3: 7, 2: upper, 1: 0x5000 | leaf}
    root, memory = path_tables(paging.mode, GPA, entries)
    w = walk(paging, root, GPA, kind, lambda at, level: memory.get(at), memory.__setitem__)
    assert w.error == error
