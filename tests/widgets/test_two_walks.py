"""The picture of a two-dimensional walk has every entry of both walks in it."""

from __future__ import annotations

import re
from itertools import pairwise

from mmulab.widgets.two_walks import entries, two_walks_picture
from mmulab.x86.ept import make_ept_paging
from mmulab.x86.mode import VMX_EPT_RWX_MASK
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG, X86_CR4_PAE, CpuModel
from mmulab.x86.walk import Walk, walk

CPU = CpuModel(vendor="amd", maxphyaddr=40)
FOUR = make_paging(X86_CR0_PG, X86_CR4_PAE, EFER_LMA, CPU, KVM_WALK)
PAE = make_paging(X86_CR0_PG, X86_CR4_PAE, 0, CPU, KVM_WALK)
NONPAGING = make_paging(0, 0, 0, CPU, KVM_WALK)
EPT = make_ept_paging(4, ad=False, cpu=CPU, walker=KVM_WALK)
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


def ept_chain(*tables: int) -> dict[int, int]:
    return {table: below | VMX_EPT_RWX_MASK for table, below in pairwise(tables)}


def ept_walk(root: int, memory: dict[int, int], kind: int = PFERR_USER_MASK) -> Walk:
    return walk(EPT, root, 0, kind, lambda address, level: memory.get(address, 0))


def test_a_pdpte_in_a_register_has_no_nested_walk() -> None:
    """Under EPT the first row is the register's; the walks belong to the rows below it."""
    memory = chain(0x2000, 0x3000, 0x4000)
    outer = walk(PAE, 0x1000, 0, 0, lambda address, level: memory.get(address, 0), pdptes=[0x2001, 0, 0, 0])
    tables = (0x11000, 0x12000, 0x13000, 0x14000)
    inner = [ept_walk(0x11000, ept_chain(*tables, at)) for at in (0x6000, 0x7000, 0x8000)]
    shown = texts(two_walks_picture(outer, inner, title="pae", ept=True).markup)
    rows = [shown.index(word) for word in ("level 3, PDPTE", "level 2, at 0x2000", "level 1, at 0x3000")]
    ends = [shown.index(word) for word in ("0x6000", "0x7000", "0x8000")]
    assert rows[0] < rows[1] < ends[0] < rows[2] < ends[1] < shown.index("arrives at") < ends[2]
    from_memory = [ept_walk(0x11000, ept_chain(*tables, 0x5000)), *inner]
    shown = texts(two_walks_picture(outer, from_memory, title="npt").markup)
    assert shown.index("level 3, PDPTE") < shown.index("0x5000") < shown.index("level 2, at 0x2000")


def test_what_ept_refuses_is_named_as_ept_does() -> None:
    outer = walk(NONPAGING, 0, 0, 0, lambda address, level: 0)
    path = ept_chain(0x11000, 0x12000, 0x13000, 0x14000)
    for leaf, kind, words in (
        (0x5001, PFERR_WRITE_MASK, "no W"),
        (0x5002, PFERR_USER_MASK, "misconfig"),
        (0x5004, PFERR_USER_MASK | PFERR_WRITE_MASK, "no R|W"),
        (0x5003, PFERR_FETCH_MASK, "no X"),
    ):
        inner = ept_walk(0x11000, {**path, 0x14000: leaf}, kind)
        shown = texts(two_walks_picture(outer, [inner], title="fault", ept=True).markup)
        assert shown[shown.index("fault", 3) + 1] == words
