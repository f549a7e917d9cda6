"""Going through the TDP MMU's tables, compared with a list of all their entries."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import is_large_pte, is_shadow_present_pte
from mmulab.kvm.tdp_iter import for_each_tdp_pte
from mmulab.kvm.tdp_mmu import roots, tdp_mmu_set_spte
from mmulab.machine.config import HostConfig
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from tests.kvm.guest import MIB, Guest

NPT = HostConfig(tdp=True, tdp_mmu=True)
PAGES = 8 * MIB >> 12
Seen = tuple[int, int, int, int]


def tdp_guest(*gfns: int, host: HostConfig = NPT, **config: bool) -> Guest:
    """A guest without paging that has read these pages."""
    guest = Guest("np", host=host, **config)
    for gfn in gfns:
        guest.read(gfn << 12)
    return guest


def root_of(guest: Guest) -> ShadowPage:
    """Return the only root, made if there is none."""
    guest.enter()
    (root,) = roots(guest.kvm)
    return root


def every_entry(guest: Guest, table: int, level: int, gfn: int) -> Iterator[Seen]:
    """Yield level, gfn, address and value of each entry, one before what is below it."""
    words = guest.machine.memory.words
    for index in range(512):
        at = table + 8 * index
        here = gfn + (index << 9 * (level - 1))
        yield level, here, at, words[at >> 3]
        spte = words[at >> 3]
        if level > 1 and is_shadow_present_pte(spte) and not is_large_pte(spte):
            yield from every_entry(guest, spte & PT_BASE_ADDR_MASK, level - 1, here)


@settings(max_examples=40)
@given(
    gfns=st.lists(st.integers(0, PAGES - 1), max_size=8),
    thp=st.booleans(),
    start=st.integers(0, PAGES),
    length=st.integers(0, 1 << 20),
    min_level=st.integers(1, 4),
)
def test_entries_of_a_range_are_those_that_cover_it(
    gfns: list[int], thp: bool, start: int, length: int, min_level: int
) -> None:
    guest = tdp_guest(*gfns, thp=thp)
    root = root_of(guest)
    end = start + length
    covering = [
        entry
        for entry in every_entry(guest, root.frame << 12, root.level, 0)
        if entry[0] >= min_level and entry[1] < end and entry[1] + (1 << 9 * (entry[0] - 1)) > start
    ]
    found = [
        (entry.level, entry.gfn, entry.sptep, entry.old_spte)
        for entry in for_each_tdp_pte(guest.kvm, root, start, end, min_level)
    ]
    assert found == covering


def test_what_the_visitor_empties_is_not_gone_into() -> None:
    guest = tdp_guest(0x10, 0x400)
    root = root_of(guest)
    seen = []
    for entry in for_each_tdp_pte(guest.kvm, root, 0, PAGES):
        seen.append(entry.level)
        if entry.level == 2 and entry.gfn == 0:
            tdp_mmu_set_spte(guest.kvm, entry, 0)
    assert seen.count(1) == 512, "the table of gfn 0x400 alone"


def test_what_the_visitor_links_is_gone_into() -> None:
    """So one walk makes all tables of a page that is mapped (``kvm_tdp_mmu_map``)."""
    guest = tdp_guest(0x10)
    root = root_of(guest)
    levels = []
    for entry in for_each_tdp_pte(guest.kvm, root, 0x400, 0x401):
        levels.append(entry.level)
        if entry.level == 2:
            guest.read(0x400 << 12)
    assert levels == [4, 3, 2, 1]


def test_the_address_space_is_the_roots() -> None:
    guest = tdp_guest(0x10)
    root = root_of(guest)
    assert {entry.as_id for entry in for_each_tdp_pte(guest.kvm, root, 0, 4)} == {root.smm} == {0}
