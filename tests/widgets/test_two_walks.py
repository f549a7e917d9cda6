"""The picture of a two-dimensional walk has every entry of both walks in it."""

from __future__ import annotations

import re
from itertools import pairwise

from mmulab.widgets.two_walks import entries, two_walks_picture
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG, X86_CR4_PAE, CpuModel
from mmulab.x86.walk import Walk, walk

CPU = CpuModel(vendor="amd", maxphyaddr=40)
FOUR = make_paging(X86_CR0_PG, X86_CR4_PAE, EFER_LMA, CPU, KVM_WALK)
PAE = make_paging(X86_CR0_PG, X86_CR4_PAE, 0, CPU, KVM_WALK)
NONPAGING = make_paging(0, 0, 0, CPU, KVM_WALK)
TABLE = 0x67


def chain(*tables: int) -> dict[int, int]:
    """Entries at index 0, each leading to the next table."""
    return {table: below | TABLE for table, below in pairwise(tables)}


def long_walk(root: int, memory: dict[int, int]) -> Walk:
    return walk(FOUR, root, 0, 0, lambda address, level: memory.get(address, 0))


def test_entries_from_the_root_down() -> None:
    memory = chain(0x1000, 0x2000, 0x3000, 0x4000, 0x5000)
    assert entries(long_walk(0x1000, memory)) == [(4, 0x2067), (3, 0x3067), (2, 0x4067), (1, 0x5067)]
    del memory[0x3000]
    assert entries(long_walk(0x1000, memory)) == [(4, 0x2067), (3, 0x3067), (2, 0)]


def test_entries_of_pae_begin_with_the_pdpte() -> None:
    memory = {0x1000: 0x2001, **chain(0x2000, 0x3000, 0x4000)}
    found = walk(PAE, 0x1000, 0, 0, lambda address, level: memory.get(address, 0))
    assert entries(found) == [(3, 0x2001), (2, 0x3067), (1, 0x4067)]
    assert entries(walk(PAE, 0x1000, 0, 0, lambda address, level: 0)) == [(3, 0)]


def test_no_paging_has_no_entries() -> None:
    assert entries(walk(NONPAGING, 0, 0x1234, 0, lambda address, level: 0)) == []


def texts(markup: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", markup)


def test_picture_has_one_row_a_step() -> None:
    outer = long_walk(0x1000, chain(0x1000, 0x2000, 0x3000, 0x4000, 0x5000))
    inner = [
        long_walk(0x11000, chain(0x11000, 0x12000, 0x13000, 0x14000, at))
        for at in range(0x6000, 0xB000, 0x1000)
    ]
    shown = texts(two_walks_picture(outer, inner, title="both").markup)
    assert [text for text in shown if text in ("level 4", "gpa")] == ["level 4", "gpa"] * 5
    for word in ("0x2067", "0x3067", "0x4067", "0x5067", "arrives at", "0x5000"):
        assert word in shown
    assert [text for text in shown if text in ("0x6000", "0x7000", "0x8000", "0x9000", "0xa000")] == [
        "0x6000",
        "0x7000",
        "0x8000",
        "0x9000",
        "0xa000",
    ]


def test_faults_of_either_walk_are_named() -> None:
    broken = long_walk(0x1000, {})
    whole = long_walk(0x1000, chain(0x1000, 0x2000, 0x3000, 0x4000, 0x5000))
    assert "page fault" in texts(two_walks_picture(broken, [whole], title="outer").markup)
    inner = texts(two_walks_picture(broken, [broken], title="inner").markup)
    assert "fault" in inner
    assert "gpa" not in inner


def test_without_nested_tables_there_is_one_column() -> None:
    outer = long_walk(0x1000, chain(0x1000, 0x2000, 0x3000, 0x4000, 0x5000))
    shown = texts(two_walks_picture(outer, (), title="one").markup)
    assert "gpa" not in shown
    assert "nested tables, root to leaf, and where they lead" not in shown
