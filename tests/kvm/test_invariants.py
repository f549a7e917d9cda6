"""Each invariant is found violated where a state is made wrong, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.kvm.mmu import RootInfo
from mmulab.kvm.spte import REMOVED_SPTE, make_mmio_spte
from mmulab.kvm.state import Request, spte_index
from mmulab.kvm.zap import kvm_mmu_zap_all_fast
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from tests.kvm.guest import DATA, GVA, HOLE, MIB, MODES, PAGED, PS, G, Guest, P, W

SECOND = GVA + 0x1000


def guest_with_pages(mode: str = "64") -> Guest:
    """A guest that has written one page and read another, and holds an unsync table."""
    guest = Guest(mode)
    if mode == "np":
        guest.write(DATA)
        return guest
    guest.map(GVA, DATA).map(SECOND, DATA + 0x1000)
    guest.map(GVA + 0x2000, guest.table(GVA))
    guest.write(GVA)
    guest.read(SECOND)
    guest.write(GVA + 0x2FF8, 0)
    return guest


@pytest.mark.parametrize("mode", MODES)
def test_a_state_that_kvm_made_is_valid(mode: str) -> None:
    guest = guest_with_pages(mode)
    assert status(guest.kvm) is Invariant.VALID
    assert not status(guest.kvm)
    assert violations(guest.kvm) == []


@pytest.mark.parametrize("mode", PAGED)
def test_an_unsync_table_is_part_of_a_valid_state(mode: str) -> None:
    guest = guest_with_pages(mode)
    assert guest.page(GVA).unsync
    assert status(guest.kvm) is Invariant.VALID


def set_spte(guest: Guest, sptep: int, spte: int) -> None:
    guest.machine.memory.store64(sptep, spte)


def forget_rmap(guest: Guest) -> None:
    del guest.slot.rmap[1][DATA >> 12]


def stray_rmap(guest: Guest) -> None:
    guest.slot.rmap[1][0x77] = [[guest.sptep(GVA)]]


def other_frame(guest: Guest) -> None:
    set_spte(guest, guest.sptep(GVA), guest.spte(GVA) + 0x1000)


def forget_parent(guest: Guest) -> None:
    guest.page(GVA).parent_ptes.clear()


def stray_parent(guest: Guest) -> None:
    guest.page(GVA).parent_ptes.append([guest.sptep(SECOND)])


def other_access(guest: Guest) -> None:
    guest.page(GVA).access ^= 1


def skipped_level(guest: Guest) -> None:
    set_spte(guest, guest.sptep(GVA, 3), guest.spte(GVA, 2))


def twin(guest: Guest) -> None:
    guest.page(GVA, 3).gfn = guest.page(GVA, 4).gfn
    guest.page(GVA, 3).role = guest.page(GVA, 4).role


def writable_table(guest: Guest) -> None:
    guest.page(GVA).unsync = False


def writable_huge_page(guest: Guest) -> None:
    table, sptep, leaf = guest.page(GVA), guest.sptep(GVA, 2), guest.spte(GVA)
    first = (table.gfn & ~511) << 12
    guest.page(GVA, 2).shadowed_translation[spte_index(sptep)] = first | 7
    set_spte(guest, sptep, leaf & ~PT_BASE_ADDR_MASK | guest.hpa(first) | PS)


def unsync_upper(guest: Guest) -> None:
    guest.page(GVA, 2).unsync = True


def forgotten_child(guest: Guest) -> None:
    guest.page(GVA, 3).unsync_child_bitmap = 0
    guest.page(GVA, 3).unsync_children = 0


def wrong_bit_count(guest: Guest) -> None:
    guest.page(GVA, 4).unsync_children += 1


def count_used(guest: Guest) -> None:
    guest.kvm.n_used_mmu_pages += 1


def count_indirect(guest: Guest) -> None:
    guest.kvm.indirect_shadow_pages -= 1


def leave_list(guest: Guest) -> None:
    del guest.kvm.active_mmu_pages[guest.page(GVA).frame]


def leave_hash(guest: Guest) -> None:
    guest.kvm.page_hash[guest.page(GVA).gfn].clear()


def untrack(guest: Guest) -> None:
    guest.slot.gfn_track[guest.page(GVA, 2).gfn] -= 1


def track_nothing(guest: Guest) -> None:
    guest.slot.gfn_track[DATA >> 12] = 1


def allow_lpage(guest: Guest) -> None:
    guest.slot.disallow_lpage[2].clear()


def disallow_lpage(guest: Guest) -> None:
    guest.slot.disallow_lpage[3][7] = 1


def count_pages(guest: Guest) -> None:
    guest.kvm.stat["pages_4k"] += 1


def count_unsync(guest: Guest) -> None:
    guest.kvm.stat["mmu_unsync"] = 0


def count_nx_splits(guest: Guest) -> None:
    guest.kvm.stat["nx_lpage_splits"] = 1


def release_root(guest: Guest) -> None:
    guest.page(GVA, 4).root_count = 0


def free_child(guest: Guest) -> None:
    del guest.kvm.pages[guest.page(GVA).frame]


def free_root(guest: Guest) -> None:
    guest.vcpu.root_mmu.prev_roots[0] = RootInfo(0x5000, 0x3FF000)


def invalid_child(guest: Guest) -> None:
    guest.page(GVA).invalid = True


def old_generation(guest: Guest) -> None:
    guest.page(GVA, 4).mmu_valid_gen ^= 1


def clean_page(guest: Guest) -> None:
    guest.slot.flags |= KVM_MEM_LOG_DIRTY_PAGES
    guest.slot.dirty_bitmap = bytearray(guest.slot.npages)


def device_in_memory(guest: Guest) -> None:
    spte = make_mmio_spte(guest.kvm.fmt, DATA >> 12, 6, guest.kvm.slots[0].generation)
    set_spte(guest, guest.sptep(GVA) + 0x100, spte)


def huge_page_of_small_ones(guest: Guest) -> None:
    sptep, leaf = guest.sptep(GVA, 2), guest.spte(GVA)
    guest.page(GVA, 2).shadowed_translation[spte_index(sptep)] = 5
    leaf &= ~(PT_BASE_ADDR_MASK | W | guest.kvm.fmt.mmu_writable | guest.kvm.fmt.host_writable)
    set_spte(guest, sptep, leaf | guest.hpa(0) | PS)


def portal_that_is_a_table(guest: Guest) -> None:
    guest.page(GVA, 4).passthrough = True


def other_quadrant(guest: Guest) -> None:
    guest.page(GVA).quadrant = 1


def global_leaf(guest: Guest) -> None:
    set_spte(guest, guest.sptep(GVA), guest.spte(GVA) | G)


def reserved_bit(guest: Guest) -> None:
    set_spte(guest, guest.sptep(GVA, 2), guest.spte(GVA, 2) | 1 << 51)


def frozen_entry(guest: Guest) -> None:
    set_spte(guest, guest.sptep(GVA) + 0x100, REMOVED_SPTE)


def present_device(guest: Guest) -> None:
    spte = make_mmio_spte(guest.kvm.fmt, HOLE >> 12, 6, guest.kvm.slots[0].generation)
    set_spte(guest, guest.sptep(GVA) + 0x100, spte & ~guest.kvm.fmt.mmio_value | P)


CORRUPTIONS: list[tuple[Callable[[Guest], None], Invariant]] = [
    (forget_rmap, Invariant.RMAP),
    (stray_rmap, Invariant.RMAP),
    (other_frame, Invariant.FRAME),
    (forget_parent, Invariant.PARENTS),
    (stray_parent, Invariant.PARENTS),
    (other_access, Invariant.ROLE),
    (skipped_level, Invariant.ROLE),
    (twin, Invariant.DUPLICATE),
    (writable_table, Invariant.WRITE_PROTECTION),
    (writable_huge_page, Invariant.WRITE_PROTECTION),
    (unsync_upper, Invariant.UNSYNC),
    (forgotten_child, Invariant.UNSYNC),
    (wrong_bit_count, Invariant.UNSYNC),
    (count_used, Invariant.PAGE_COUNTS),
    (count_indirect, Invariant.PAGE_COUNTS),
    (leave_list, Invariant.PAGE_COUNTS),
    (leave_hash, Invariant.PAGE_COUNTS),
    (untrack, Invariant.WRITE_TRACKING),
    (track_nothing, Invariant.WRITE_TRACKING),
    (allow_lpage, Invariant.DISALLOW_LPAGE),
    (disallow_lpage, Invariant.DISALLOW_LPAGE),
    (count_pages, Invariant.STATISTICS),
    (count_unsync, Invariant.STATISTICS),
    (count_nx_splits, Invariant.STATISTICS),
    (release_root, Invariant.ROOT_COUNT),
    (free_child, Invariant.FREED),
    (free_root, Invariant.FREED),
    (invalid_child, Invariant.OBSOLETE),
    (old_generation, Invariant.OBSOLETE),
    (clean_page, Invariant.DIRTY_LOG),
    (device_in_memory, Invariant.MMIO),
    (huge_page_of_small_ones, Invariant.LARGE_PAGE),
    (portal_that_is_a_table, Invariant.PASSTHROUGH),
    (other_quadrant, Invariant.QUADRANT),
    (global_leaf, Invariant.FORMAT),
    (reserved_bit, Invariant.FORMAT),
    (frozen_entry, Invariant.FORMAT),
    (present_device, Invariant.FORMAT),
]
ALONE = {
    forget_rmap, stray_rmap, other_frame, forget_parent, stray_parent, forgotten_child, wrong_bit_count,
    count_used, count_indirect, leave_list, leave_hash, untrack, track_nothing, allow_lpage, disallow_lpage,
    count_pages, count_unsync, count_nx_splits, release_root, free_root, clean_page, device_in_memory,
    global_leaf, frozen_entry, present_device,
}  # fmt: skip
"""Corruptions that violate nothing else."""


@pytest.mark.parametrize(
    ("corrupt", "invariant"), CORRUPTIONS, ids=[function.__name__ for function, _ in CORRUPTIONS]
)
def test_a_corrupted_state_is_told(corrupt: Callable[[Guest], None], invariant: Invariant) -> None:
    guest = guest_with_pages()
    corrupt(guest)
    assert invariant in status(guest.kvm)
    if corrupt in ALONE:
        assert status(guest.kvm) is invariant
    named = {line.split(":")[0] for line in violations(guest.kvm)}
    assert named == {flag.name for flag in Invariant if flag in status(guest.kvm)}


def test_every_invariant_has_a_corruption() -> None:
    of_a_change = {Invariant.LINK_SYNC}  # no state tells of it: tests/check/test_mmu.py
    assert {invariant for _, invariant in CORRUPTIONS} == set(Invariant) - of_a_change


def test_a_line_says_what_is_wrong_where() -> None:
    guest = guest_with_pages()
    count_used(guest)
    assert violations(guest.kvm) == ["PAGE_COUNTS: n_used_mmu_pages is 5, a recount gives 4"]
    guest = guest_with_pages()
    forget_rmap(guest)
    (line,) = violations(guest.kvm)
    assert line.startswith(f"RMAP: spte {guest.sptep(GVA):#x} (entry 0x0 of <ShadowPage gfn ")
    assert line.endswith(f"is 0 times in the reverse map of gfn {DATA >> 12:#x}")


def test_an_obsolete_root_is_allowed_while_it_waits_to_be_dropped() -> None:
    guest = guest_with_pages()
    kvm_mmu_zap_all_fast(guest.kvm)
    assert status(guest.kvm) is Invariant.VALID
    guest.vcpu.requests &= ~Request.MMU_FREE_OBSOLETE_ROOTS
    assert status(guest.kvm) is Invariant.OBSOLETE
    guest.vcpu.requests |= Request.MMU_FREE_OBSOLETE_ROOTS
    guest.enter()
    assert status(guest.kvm) is Invariant.VALID
    assert [sp.level for sp in guest.kvm.pages.values()] == [4]


def test_kept_roots_of_every_vcpu_are_counted() -> None:
    guest = Guest("64", vcpus=2)
    guest.map(GVA, DATA)
    other = guest.new_table()
    guest.map(GVA, DATA, root=other)
    guest.reset(vcpu=1)
    for root in (other, guest.root):
        guest.cr3(root)
        guest.cr3(root, vcpu=1)
    assert guest.page(GVA, 4).root_count == 2
    assert status(guest.kvm) is Invariant.VALID
    guest.vcpu.root_mmu.prev_roots[0] = RootInfo()
    assert status(guest.kvm) is Invariant.ROOT_COUNT


def test_a_logged_page_that_can_be_written_counts_as_dirty() -> None:
    guest = guest_with_pages()
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.write(GVA)
    assert status(guest.kvm) is Invariant.VALID
    assert guest.slot.dirty_bitmap is not None
    guest.slot.dirty_bitmap[DATA >> 12] = 0
    assert status(guest.kvm) is Invariant.DIRTY_LOG


def test_a_logged_page_that_can_be_written_is_in_some_ring() -> None:
    guest = Guest("64", dirty_ring=256, vcpus=2).map(GVA, DATA)
    guest.reset(vcpu=1)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.write(GVA, vcpu=1)
    guest.write(GVA)
    assert status(guest.kvm) is Invariant.VALID
    ring = guest.kvm.vcpus[1].dirty_ring
    assert ring is not None
    ring.gfns.clear()
    assert status(guest.kvm) is Invariant.DIRTY_LOG


def test_a_device_entry_of_an_older_generation_may_lie() -> None:
    guest = Guest("64").map(GVA, HOLE)
    guest.read(GVA)
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, 0, 0))
    assert status(guest.kvm) is Invariant.VALID
