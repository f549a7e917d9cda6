"""Out-of-sync pages: when they become so, who knows of it, and how they are found again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.sync.unsync import gfn_sps_with_gptes
from mmulab.kvm.sync.unsync_children import (
    KVM_PAGE_ARRAY_NR,
    mmu_unsync_walk,
)
from mmulab.kvm.zap import kvm_mmu_prepare_zap_page
from mmulab.machine.op import OutcomeKind
from mmulab.x86.regs import X86_CR0_WP
from tests.kvm.guest import DATA, GVA, Guest, W

WINDOW = GVA + 0x100000
"""Where tests map the guest's own tables."""


def with_window(mode: str = "64", tables: int = 1) -> Guest:
    """A guest that has used `tables` leaf tables and has them mapped at :data:`WINDOW`."""
    guest = Guest(mode)
    span = 1 << guest.mode.level_shift(2)
    for i in range(tables):
        guest.map(GVA + i * span, DATA)
    for i in range(tables):
        guest.map(WINDOW + i * 0x1000, guest.table(GVA + i * span))
        guest.read(GVA + i * span)
    return guest


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_a_store_to_a_leaf_table_makes_it_unsync_once(mode: str) -> None:
    guest = with_window(mode)
    page = guest.page(GVA)
    with guest.watch() as seen:
        guest.write(WINDOW + 0xFF0, 5)
        guest.write(WINDOW + 0xFF8, 7)
    unsync = [e for e in seen if isinstance(e, ev.kvm_mmu_unsync_page)]
    assert [(e.gfn, e.role, e.unsync) for e in unsync] == [(page.gfn, page.role, False)]
    assert not any(isinstance(e, ev.kvm_emulate_insn | ev.kvm_mmu_pte_write) for e in seen)
    assert page.unsync
    assert guest.spte(WINDOW) & W
    assert guest.kvm.stat["mmu_unsync"] == 1
    assert [e for e, after in pairwise(seen) if isinstance(after, ev.kvm_mmu_set_spte)][-1] == unsync[0]


@pytest.mark.parametrize("mode", ["32", "64"])
def test_a_store_to_an_upper_table_is_emulated(mode: str) -> None:
    guest = Guest(mode).map(GVA, DATA)
    guest.map(WINDOW, guest.table(GVA, 2))
    guest.read(GVA)
    with guest.watch() as seen:
        assert guest.write(WINDOW + 0xFF0, 5).kind is OutcomeKind.OK
    assert not any(isinstance(e, ev.kvm_mmu_unsync_page) for e in seen)
    assert [e.bytes for e in seen if isinstance(e, ev.kvm_mmu_pte_write)] == [4]
    assert not guest.spte(WINDOW) & W
    assert guest.load(guest.table(GVA, 2) + 0xFF0, 4) == 5


def chain(guest: Guest, gva: int = GVA) -> list[ShadowPage]:
    """Return the pages above the leaf page of `gva`, from below."""
    return [guest.page(gva, level) for level in sorted(guest.path(gva)) if level > 1]


def test_every_parent_up_to_the_root_knows() -> None:
    guest = with_window("57")
    assert all(not sp.unsync_children for sp in chain(guest))
    guest.write(WINDOW + 0xFF0)
    for level, sp in enumerate(chain(guest), 2):
        assert sp.unsync_children == 1
        assert sp.unsync_child_bitmap == 1 << guest.mode.index(GVA, level)
    assert [sp.level for sp in chain(guest)] == [2, 3, 4, 5]


def test_a_parent_counts_each_child_but_tells_its_own_parent_once() -> None:
    guest = with_window(tables=3)
    for i in range(3):
        guest.write(WINDOW + i * 0x1000 + 0xFF0)
    below, *above = chain(guest)
    assert below.unsync_children == 3
    assert [sp.unsync_children for sp in above] == [1, 1]


def test_all_pages_of_a_gfn_go_out_of_sync_together() -> None:
    """One table, shadowed with CR0.WP set and clear: two roles."""
    guest = with_window()
    cr0 = guest.vcpu.cr0
    table = guest.table(GVA) >> 12
    guest.regs = (cr0 & ~X86_CR0_WP, *guest.regs[1:])
    guest.reset()
    guest.read(GVA)
    assert len(gfn_sps_with_gptes(guest.kvm, table)) == 2
    guest.write(WINDOW + 0xFF0)
    assert [sp.unsync for sp in gfn_sps_with_gptes(guest.kvm, table)] == [True, True]
    assert guest.kvm.stat["mmu_unsync"] == 2


def test_who_may_unsync(guest: Guest) -> None:
    """``mmu_try_to_unsync_pages``: not a tracked gfn, not by prefetch, not while syncing."""
    guest.read(GVA)
    kvm, slot = guest.kvm, guest.slot
    leaf, upper = guest.table(GVA) >> 12, guest.table(GVA, 2) >> 12

    def attempt(gfn: int, *, can_unsync: bool = True, prefetch: bool = False) -> bool:
        return kvm.sync.try_to_unsync(kvm, slot, gfn, can_unsync=can_unsync, prefetch=prefetch)

    assert not attempt(upper)
    assert not attempt(leaf, prefetch=True)
    assert not attempt(leaf, can_unsync=False)
    assert not guest.page(GVA).unsync
    assert attempt(DATA >> 12)
    assert attempt(leaf)
    assert guest.page(GVA).unsync
    assert attempt(leaf, prefetch=True)
    assert not attempt(leaf, can_unsync=False)


def test_a_prefetched_mapping_of_a_synced_table_stays_read_only() -> None:
    """The window's neighbour is filled by prefetch."""
    guest = with_window()
    guest.map(WINDOW + 0x1000, DATA + 0x1000)
    guest.write(WINDOW + 0x1000)
    assert guest.spte(WINDOW)
    assert not guest.spte(WINDOW) & W
    assert not guest.page(GVA).unsync


def test_a_page_linked_while_unsync_is_known_to_its_new_parent(guest: Guest) -> None:
    """Two directory entries share one leaf table."""
    guest.read(GVA)
    guest.map(WINDOW, guest.table(GVA))
    guest.write(WINDOW + 0xFF0)
    twin = GVA + (1 << 21)
    guest.poke(guest.entry(twin, 2), guest.load(guest.entry(GVA, 2)))
    guest.read(twin)
    assert guest.page(twin) is guest.page(GVA)
    assert guest.page(GVA, 2).unsync_child_bitmap == 0b1100
    assert guest.page(GVA, 2).unsync_children == 2


def test_a_batch_holds_at_most_sixteen_pages_inner_ones_included() -> None:
    """``KVM_PAGE_ARRAY_NR``: the root takes a place itself, and so do inner pages."""
    guest = with_window(tables=20)
    for i in range(20):
        guest.write(WINDOW + i * 0x1000 + 0xFF0)
    root = guest.page(GVA, 4)
    steps = mmu_unsync_walk(guest.kvm, root)
    assert steps is not None
    inner = 3  # root, level 3 and level 2
    assert len(steps) == KVM_PAGE_ARRAY_NR - inner
    assert [step.sp.gfn for step in steps] == [guest.table(GVA + (i << 21)) >> 12 for i in range(13)]
    assert [[sp.level for sp, _ in step.path] for step in steps[:2]] == [[4, 3, 2]] * 2
    with guest.watch() as seen:
        guest.cr3()
    assert [e.gfn for e in seen if isinstance(e, ev.kvm_mmu_sync_page)] == [
        guest.table(GVA + (i << 21)) >> 12 for i in range(20)
    ]
    assert root.unsync_children == guest.kvm.stat["mmu_unsync"] == 0


def test_a_bit_over_nothing_unsync_is_cleared_by_the_walk() -> None:
    guest = with_window()
    guest.write(WINDOW + 0xFF0)
    invalid: list[int] = []
    root, page = guest.page(GVA, 4), guest.page(GVA)
    kvm_mmu_prepare_zap_page(guest.kvm, page, invalid)
    assert root.unsync_children == 1
    assert mmu_unsync_walk(guest.kvm, root) is None
    assert root.unsync_children == guest.page(GVA, 2).unsync_children == 0


def truth(guest: Guest) -> dict[int, set[int]]:
    """Return, for each page by frame, the indexes of entries that lead to an unsync page."""
    kvm = guest.kvm
    found: dict[int, set[int]] = {frame: set() for frame in kvm.pages}

    def below(sp: ShadowPage) -> bool:
        dirty = sp.unsync
        for index in range(512):
            spte = kvm.memory.words[sp.frame * 512 + index]
            child = kvm.pages.get((spte & ((1 << 52) - 1)) >> 12) if spte >> 11 & 1 else None
            if child is not None and sp.level > 1 and below(child):
                found[sp.frame].add(index)
                dirty = True
        return dirty

    below(guest.page(GVA, 4))
    return found


@settings(max_examples=25, phases=[Phase.generate])
@given(st.lists(st.tuples(st.sampled_from("wwwsiz"), st.integers(0, 11)), max_size=25))
def test_bitmaps_and_counts_are_the_truth(steps: list[tuple[str, int]]) -> None:
    """Tables are written, synced by CR3, by INVLPG, and zapped by a directory write, in any order.

    Only a bit too many may be left, over an entry that was cleared or a page that was synced since.
    """
    guest = with_window(tables=12)
    for kind, i in steps:
        if kind == "w":
            guest.write(WINDOW + i * 0x1000 + 0xFF0, i)
        elif kind == "s":
            guest.cr3()
        elif kind == "i":
            guest.invlpg(GVA + (i << 21))
        else:
            guest.store(guest.entry(GVA + (i << 21), 2), guest.load(guest.entry(GVA + (i << 21), 2)))
            guest.read(GVA + (i << 21))
        wanted = truth(guest)
        for frame, sp in guest.kvm.pages.items():
            bits = {index for index in range(512) if sp.unsync_child_bitmap >> index & 1}
            assert sp.unsync_children == len(bits)
            assert wanted[frame] <= bits
    guest.cr3()
    assert all(not sp.unsync and not sp.unsync_children for sp in guest.kvm.pages.values())
