"""The design of September 2008, rule by rule, each with its sentence or hunk in the reply to the patch."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.oos_2008 import OOS_GLOBAL_PAGES, Oos2008, oos_2008
from mmulab.kvm.sync.oos_state import OosState
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.machine import op as ops
from mmulab.x86.regs import X86_CR0_WP, X86_CR4_PGE
from tests.kvm.guest import DATA, GVA, PAGE, TABLE, G, Guest, cr4

WINDOW = GVA + 0x40000000
"""Where the guest's own tables are mapped, under other leaves than those that are tested."""
TABLE_SPAN = 1 << 21
OTHER = DATA + 0x2000


def oos_guest(policy: object = oos_2008, *, tables: int = 1, flags: int = PAGE, mode: str = "64") -> Guest:
    """A guest that has used `tables` leaf tables, with the tables mapped at :data:`WINDOW`."""
    guest = Guest(mode, sync=policy, on=cr4(X86_CR4_PGE))
    for i in range(tables):
        guest.map(GVA + i * TABLE_SPAN, DATA, flags)
    for i in range(tables):
        guest.map(WINDOW + i * 0x1000, guest.table(GVA + i * TABLE_SPAN))
        guest.read(GVA + i * TABLE_SPAN)
    return guest


def edit(guest: Guest, entry: int, table: int = 0, gva: int = GVA) -> None:
    """Let the guest write its entry for `gva` through the window."""
    guest.write(WINDOW + table * 0x1000 + (guest.entry(gva) & 0xFFF), entry, size=8)


def state(guest: Guest) -> OosState:
    return Oos2008.state(guest.kvm)


def refused(guest: Guest) -> dict[str, int]:
    stat = guest.kvm.sync_stat
    return {name.removeprefix("refused "): n for name, n in stat.items() if name.startswith("refused ")}


def toggle_pge(guest: Guest) -> None:
    for value in (guest.vcpu.cr4 & ~X86_CR4_PGE, guest.vcpu.cr4):
        guest.machine.execute(ops.WriteCr(4, value))
    guest.enter()


def test_a_leaf_that_is_not_global_is_linked_off_its_root_and_synced_on_cr3() -> None:
    """ "Non-global unsync pages are linked off their root shadow page, synced on cr3/cr4/cr0 writes." """
    guest = oos_guest()
    edit(guest, OTHER | PAGE)
    page, root = guest.page(GVA), guest.page(GVA, 4)
    assert page.unsync
    assert state(guest).lists == {root.frame: [page.frame]}
    assert guest.maps(GVA, DATA)
    guest.cr3()
    assert not page.unsync
    assert state(guest).lists == {}
    guest.read(GVA)
    assert guest.maps(GVA, OTHER)
    assert violations(guest.kvm) == []


@pytest.mark.parametrize("register", [0, 4])
def test_both_kinds_are_synced_on_cr4_and_cr0(register: int) -> None:
    """ "saved into a per-vm array, synced on cr4/cr0 writes" """
    guest = oos_guest(tables=2, flags=PAGE | G)
    guest.map(GVA + TABLE_SPAN, DATA)
    guest.cr3()
    guest.read(GVA + TABLE_SPAN)
    edit(guest, OTHER | PAGE | G)
    edit(guest, OTHER | PAGE, 1, GVA + TABLE_SPAN)
    first, second = guest.page(GVA), guest.page(GVA + TABLE_SPAN)
    assert first.unsync
    assert second.unsync
    if register == 0:
        guest.machine.execute(ops.WriteCr(0, guest.vcpu.cr0 ^ X86_CR0_WP))
    else:
        guest.machine.execute(ops.WriteCr(4, guest.vcpu.cr4))
    assert not first.unsync
    assert not second.unsync
    assert violations(guest.kvm) == []


def test_a_global_page_is_in_the_array_and_outlives_cr3() -> None:
    """ "Global unsync pages are saved into a per-vm array, synced on cr4/cr0 writes." """
    guest = oos_guest(flags=PAGE | G)
    edit(guest, OTHER | PAGE | G)
    page = guest.page(GVA)
    assert state(guest).in_array() == [page.frame]
    guest.cr3()
    assert page.unsync
    assert guest.maps(GVA, DATA)
    toggle_pge(guest)
    guest.read(GVA)
    assert guest.maps(GVA, OTHER)


def test_without_pge_nothing_is_global() -> None:
    """SDM 3, 4.10.2.4: G counts only with CR4.PGE."""
    guest = Guest("64", sync=oos_2008).map(GVA, DATA, PAGE | G)
    guest.map(WINDOW, guest.table(GVA))
    guest.read(GVA)
    edit(guest, OTHER | PAGE | G)
    assert state(guest).in_array() == []
    guest.cr3()
    guest.read(GVA)
    assert guest.maps(GVA, OTHER)


def fill_array(policy: object) -> tuple[Guest, list[ShadowPage]]:
    guest = oos_guest(policy, tables=OOS_GLOBAL_PAGES + 1, flags=PAGE | G)
    pages = [guest.page(GVA + i * TABLE_SPAN) for i in range(OOS_GLOBAL_PAGES + 1)]
    for i in range(OOS_GLOBAL_PAGES):
        guest.write(WINDOW + i * 0x1000 + 0xFF0)
    return guest, pages


def test_the_eighth_global_page_takes_the_place_at_the_index() -> None:
    """``oos_global_pages[7]``, ``oos_global_idx``: "What does the index mean?"; here it goes round."""
    guest, pages = fill_array(oos_2008)
    assert state(guest).in_array() == [page.frame for page in pages[:-1]]
    guest.map(GVA + 0x1000, DATA + 0x1000, PAGE | G)
    guest.read(GVA + 0x1000)
    guest.write(WINDOW + OOS_GLOBAL_PAGES * 0x1000 + 0xFF0)
    assert [page.unsync for page in pages] == [False] + [True] * OOS_GLOBAL_PAGES
    assert guest.kvm.sync_stat["evicted"] == 1


def test_as_an_lru_pointer_the_index_spares_what_is_used() -> None:
    """ "An lru pointer?" """
    guest, pages = fill_array(find_sync("oos_2008+index=lru"))
    guest.map(GVA + 0x1000, DATA + 0x1000, PAGE | G)
    guest.read(GVA + 0x1000)
    guest.write(WINDOW + OOS_GLOBAL_PAGES * 0x1000 + 0xFF0)
    assert [page.unsync for page in pages] == [True, False] + [True] * (OOS_GLOBAL_PAGES - 1)


def test_a_list_is_never_full() -> None:
    """ "Why not a list?" """
    guest, pages = fill_array(find_sync("oos_2008+globals=list"))
    guest.write(WINDOW + OOS_GLOBAL_PAGES * 0x1000 + 0xFF0)
    assert all(page.unsync for page in pages)
    assert guest.kvm.sync_stat["evicted"] == 0


def test_invlpg_mends_the_entry_and_leaves_the_page_out() -> None:
    guest = oos_guest(flags=PAGE | G)
    edit(guest, OTHER | PAGE | G)
    guest.invlpg(GVA)
    assert guest.maps(GVA, OTHER)
    assert guest.page(GVA).unsync


def test_a_second_role_brings_a_leaf_back_for_good() -> None:
    """ "If a pagetable ... has multiple roles, unsync it and disable oos." """
    guest = oos_guest()
    guest.regs = (guest.vcpu.cr0 & ~X86_CR0_WP, *guest.regs[1:])
    guest.reset()
    guest.read(GVA)
    assert len(guest.pages(guest.table(GVA) >> 12)) == 2
    edit(guest, OTHER | PAGE)
    assert not any(page.unsync for page in guest.pages(guest.table(GVA) >> 12))
    assert refused(guest) == {"several_roles": 1}
    assert guest.kvm.sync_stat["emulated_writes"] == 1


def second_root(guest: Guest, level: int) -> int:
    """Make another root that shares the table below the entry of `level` on the way to GVA."""
    root = guest.new_table()
    guest.map(WINDOW, guest.table(GVA), root=root)
    guest.map(GVA, DATA, level=level, root=root)
    guest.poke(guest.entry(GVA, level, root), guest.load(guest.entry(GVA, level)))
    return root


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_second_root_brings_the_tree_back_for_good(level: int) -> None:
    """ "For higher level pgtables the entire tree has to be synced." """
    guest = oos_guest()
    edit(guest, OTHER | PAGE)
    page = guest.page(GVA)
    root = second_root(guest, level)
    guest.cr3(root)
    assert page.unsync
    guest.read(GVA)
    assert guest.page(GVA) is page
    assert guest.maps(GVA, OTHER)
    assert not page.unsync
    edit(guest, DATA | PAGE)
    assert not page.unsync
    assert refused(guest)["several_roots"] >= 1
    assert violations(guest.kvm) == []


def test_a_page_below_two_parents_stays_in_sync() -> None:
    """ "Some of this logic is simplistic and could be smarter (page_multimapped ...)." """
    guest = oos_guest()
    twin = GVA + TABLE_SPAN
    guest.poke(guest.entry(twin, 2), guest.load(guest.entry(GVA, 2)))
    guest.read(twin)
    assert guest.page(twin) is guest.page(GVA)
    edit(guest, OTHER | PAGE)
    assert refused(guest) == {"several_parents": 1}


def stale_through_a_second_parent(policy: object) -> bool:
    """Whether an address that was never translated shows what a table said before it changed."""
    guest = oos_guest(policy)
    edit(guest, OTHER | PAGE)
    twin = GVA + TABLE_SPAN
    guest.map(twin + 0x1000, DATA + 0x1000)  # makes a directory entry, which then leads to the same table
    guest.poke(guest.entry(twin, 2), TABLE | guest.table(GVA))
    guest.map(twin + 0x1000, DATA + 0x1000)
    guest.read(twin + 0x1000)  # links the page, and sets another leaf of it
    return guest.read(twin).hpa == guest.hpa(DATA)


def test_a_page_that_gets_another_parent_while_unsync_shows_what_is_gone() -> None:
    """The hunk of ``kvm_mmu_get_page`` adds the parent and returns the page as it is.

    What the answer foretold: "This means we no longer have to worry about multiple roots, when a page
    acquires another root while it is unsynced, etc."
    """
    assert stale_through_a_second_parent(oos_2008)
    assert not stale_through_a_second_parent(unsync_children)


def linked_off_the_wrong_root(policy: object) -> bool:
    """Whether CR3 leaves a translation stale after the guest's root was used in two modes."""
    guest = oos_guest(policy)
    wp, plain = guest.regs, (guest.regs[0] & ~X86_CR0_WP, *guest.regs[1:])
    guest.regs = plain
    guest.reset()  # a second page for the root, before the first in its bucket
    guest.read(GVA + 0x1000)
    guest.regs = wp
    guest.reset()
    far = GVA + 64 * TABLE_SPAN
    guest.map(far, DATA)
    guest.map(WINDOW + 0x1000, guest.table(far))
    guest.read(far)
    guest.write(WINDOW + 0x1000 + (guest.entry(far) & 0xFFF), OTHER | PAGE, size=8)
    guest.cr3()
    guest.read(far)
    return guest.maps(far, DATA)


def test_a_root_is_looked_up_without_its_role() -> None:
    """``kvm_mmu_lookup_page_root``: gfn and level alone. "I'm worried about the complexity this (and the
    rest) introduces." """
    assert linked_off_the_wrong_root(oos_2008)
    assert not linked_off_the_wrong_root(unsync_children)


def stale_after_a_change_of_global(policy: object) -> bool:
    """Whether CR3 leaves a translation stale that is not global, in a page that was global."""
    guest = oos_guest(policy, flags=PAGE | G)
    guest.write(WINDOW + 0xFF0)
    second = GVA + 0x1000
    edit(guest, DATA | PAGE, gva=second)
    guest.read(second)
    edit(guest, OTHER | PAGE, gva=second)
    guest.cr3()
    guest.read(second)
    return guest.maps(second, DATA)


def test_a_page_that_is_no_longer_global_must_move() -> None:
    """ "What happens when a sp->global changes its value while a page is oos?" """
    assert stale_after_a_change_of_global(oos_2008)
    assert not stale_after_a_change_of_global(find_sync("oos_2008+on_change=move"))
    assert not stale_after_a_change_of_global(find_sync("oos_2008+on_change=move+global_by=counters"))
    assert not stale_after_a_change_of_global(unsync_children)


@pytest.mark.parametrize(("global_by", "is_global"), [("flag", False), ("counters", True)])
def test_counters_detect_what_a_flag_does_not(global_by: str, is_global: bool) -> None:
    """ "Can we even detect a nonglobal->global change?" """
    guest = oos_guest(Oos2008(global_by=global_by))
    guest.store(guest.entry(GVA), DATA | PAGE | G)
    guest.read(GVA)
    assert oos_2008.is_global(guest.kvm, guest.page(GVA)) is False
    assert guest.kvm.sync.is_global(guest.kvm, guest.page(GVA)) is is_global  # type: ignore[attr-defined]


def test_roots_out_of_sync_come_back_on_cr3_and_invlpg() -> None:
    """ "That's okay, we may allow OOS roots one day." """
    guest = oos_guest(find_sync("oos_2008+roots=unsync"))
    root = guest.page(GVA, 4)
    guest.map(WINDOW + 0x1000, guest.root)
    for flush in (guest.cr3, lambda: guest.invlpg(GVA)):
        old = guest.table(GVA, 3)
        fresh = guest.new_table()
        for gva in (GVA, WINDOW):
            guest.poke(fresh + guest.mode.index(gva, 3) * 8, guest.load(guest.entry(gva, 3)))
        guest.write(WINDOW + 0x1000 + (guest.entry(GVA, 4) & 0xFFF), fresh | TABLE, size=8)
        assert root.unsync
        assert guest.page(GVA, 3).gfn == old >> 12
        flush()
        assert not root.unsync
        guest.read(GVA)
        assert guest.page(GVA, 3).gfn == fresh >> 12
        assert violations(guest.kvm) == []
    assert guest.kvm.sync_stat["emulated_writes"] == 0


def flood_root(policy: str) -> Guest:
    """Write a root table until it counts as flooded, with a page out of sync on its list."""
    guest = oos_guest(find_sync(policy))
    guest.map(GVA + 0x1000, DATA + 0x1000)
    edit(guest, OTHER | PAGE)
    for _ in range(3):
        guest.store(guest.root + 0xFF0, 0)
    guest.enter()
    guest.read(GVA + 0x1000)  # links what is below the root anew
    guest.cr3()
    return guest


def test_what_becomes_of_a_list_when_its_root_is_zapped() -> None:
    """ "Either a better data structure, or disallowing a parent to be zapped while any of its children are
    alive." """
    for policy, flooded in (("oos_2008", 1), ("oos_2008+parent_zap=refuse", 0)):
        guest = flood_root(policy)
        assert guest.kvm.stat["mmu_flooded"] == flooded
        assert guest.read(GVA).hpa == guest.hpa(OTHER)
    lost = flood_root("oos_2008+parent_zap=orphan")
    assert lost.page(GVA).unsync
    assert lost.read(GVA).hpa == lost.hpa(DATA)


def other_role_while_unsync(policy: str) -> Guest:
    """A page is out of sync under one root when another mode looks its gfn up under another root."""
    guest = oos_guest(find_sync(policy))
    edit(guest, OTHER | PAGE)
    root = second_root(guest, 2)
    guest.regs = (guest.regs[0] & ~X86_CR0_WP, root, *guest.regs[2:])
    # CR3 first, so that the write of CR0 syncs the new root's list alone.
    guest.cr3(root)
    guest.reset()
    guest.read(GVA)
    return guest


def test_inuse_protects_a_page_from_its_own_resync() -> None:
    """ "What does inuse mean exactly?" What cannot be synced in this mode is zapped, and read again."""
    guest = other_role_while_unsync("oos_2008")
    assert guest.maps(GVA, OTHER)
    with pytest.raises(AssertionError, match="freed by its own resync"):
        other_role_while_unsync("oos_2008+inuse=freed")


def test_names_and_values() -> None:
    assert str(Oos2008(index="lru", roots="unsync")) == "oos_2008+index=lru+roots=unsync"
    assert find_sync("oos_2008+roots=unsync+index=lru") == Oos2008(index="lru", roots="unsync")
    assert find_sync("oos_2008+index=round_robin") == oos_2008
    with pytest.raises(InputError, match="index=first, expected round_robin or lru"):
        find_sync("oos_2008+index=first")
    with pytest.raises(InputError, match="no variation size"):
        find_sync("oos_2008+size=9")
    with pytest.raises(InputError, match="write_protect has no variations"):
        find_sync("write_protect+index=lru")
