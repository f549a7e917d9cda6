"""Shadow pages: found by gfn and role, created, linked; and the way down through them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.roles.derivation import DERIVATIONS
from mmulab.kvm.shadow_page import (
    ShadowWalk,
    kvm_mmu_child_role,
    kvm_mmu_find_shadow_page,
    kvm_mmu_get_child_sp,
    kvm_mmu_get_shadow_page,
    link_shadow_page,
    shadow_path,
    validate_direct_spte,
)
from mmulab.kvm.state import spte_index, sptep_to_sp
from mmulab.kvm.zap import kvm_mmu_zap_all_fast
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.regs import X86_CR0_WP
from tests.kvm.guest import DATA, GVA, MIB, PAGE, TABLE, D, Guest, P, U, W

GIB = 1 << 30


def facts(guest: Guest, sp: ShadowPage) -> str:
    return guest.kvm.config.kernel.design.facts(sp.role).full_str()


# Finding ------------------------------------------------------------------------------


def test_one_table_under_two_parents_is_one_page(guest: Guest) -> None:
    twin = GVA + 2 * MIB
    guest.poke(guest.entry(twin, 2), guest.load(guest.entry(GVA, 2)))
    guest.read(GVA)
    with guest.watch() as seen:
        guest.read(twin)
    assert [e.created for e in seen if isinstance(e, ev.kvm_mmu_get_page)] == [False]
    assert guest.page(twin) is guest.page(GVA)
    assert len(guest.page(GVA).parent_ptes[0]) == 2


def test_paths_of_other_rights_have_pages_of_their_own(guest: Guest) -> None:
    twin = GVA + 2 * MIB
    guest.poke(guest.entry(twin, 2), guest.load(guest.entry(GVA, 2)) & ~W)
    guest.read(GVA)
    guest.read(twin)
    first, second = guest.page(GVA), guest.page(twin)
    assert first.gfn == second.gfn
    assert (facts(guest, first), facts(guest, second)) == ("l1 g8 q0 uwx nx wp", "l1 g8 q0 u-x nx wp")
    assert guest.kvm.page_hash[first.gfn] == [second.frame, first.frame]


def test_the_two_halves_of_a_4_byte_table_are_two_pages() -> None:
    guest = Guest("32").map(GVA, DATA).map(GVA + 2 * MIB, DATA + 0x1000)
    guest.read(GVA)
    guest.read(GVA + 2 * MIB)
    assert [facts(guest, sp) for sp in guest.pages(guest.table(GVA) >> 12)] == [
        "l1 g4 q1 uwx nx wp",
        "l1 g4 q0 uwx nx wp",
    ]
    assert sorted(sp.quadrant for sp in guest.pages(guest.root >> 12)) == [0, 1, 2, 3]


def test_the_role_of_a_child_comes_from_its_parent() -> None:
    """``kvm_mmu_child_role``: one level down, the quadrant by the parity of the entry's index."""
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    design = guest.kvm.config.kernel.design
    parent = guest.sptep(GVA, 2)
    roles = [
        design.facts(kvm_mmu_child_role(guest.kvm, parent + 8 * i, direct=False, access=5)) for i in range(3)
    ]
    assert [(f.level, f.quadrant, f.access, f.has_4_byte_gpte) for f in roles] == [
        (1, 0, 5, True),
        (1, 1, 5, True),
        (1, 0, 5, True),
    ]
    direct = design.facts(kvm_mmu_child_role(guest.kvm, parent, direct=True, access=7))
    assert direct.direct


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("parity", "l1 g4 q1 --x direct nx wp guest_mode"), ("scratch", "l1 g4 q0 --x direct nx smep_nwp")],
)
def test_from_scratch_all_but_the_level_is_the_context_s(rule: str, wanted: str) -> None:
    """The page with the entry says its level; rights, directness and quadrant are those of the fault."""
    guest = Guest("32", derivation=DERIVATIONS[rule]).map(GVA, DATA)
    guest.read(GVA)
    kvm, mmu = guest.kvm, guest.vcpu.mmu
    assert mmu.root_facts is not None
    sptep = guest.sptep(GVA, 2) + 8
    sp = sptep_to_sp(kvm, sptep)
    design = kvm.config.kernel.design
    sp.role = design.layout.set(sp.role, "guest_mode", 1)
    mmu.root_facts = mmu.root_facts._replace(
        level=5, quadrant=3, access=7, cr0_wp=False, smep_andnot_wp=True, passthrough=True
    )
    role = kvm_mmu_child_role(kvm, sptep, direct=True, access=1, vcpu=guest.vcpu, addr=GVA)
    assert design.facts(role).full_str() == wanted


def test_an_invalid_parent_does_not_pass_that_on(guest: Guest) -> None:
    guest.read(GVA)
    sp = guest.page(GVA, 2)
    sp.role = guest.kvm.config.kernel.design.invalidated(sp.role)
    role = kvm_mmu_child_role(guest.kvm, guest.sptep(GVA, 2), direct=False, access=7)
    assert not guest.kvm.config.kernel.design.facts(role).invalid


def test_an_obsolete_page_is_not_found(guest: Guest) -> None:
    guest.read(GVA)
    page = guest.page(GVA)
    assert kvm_mmu_find_shadow_page(guest.kvm, guest.vcpu, page.gfn, page.role) is page
    misses = guest.kvm.stat["mmu_cache_miss"]
    page.mmu_valid_gen ^= 1
    assert kvm_mmu_find_shadow_page(guest.kvm, guest.vcpu, page.gfn, page.role) is None
    assert guest.kvm.stat["mmu_cache_miss"] == misses + 1


def test_a_new_upper_page_ends_an_unsync_one_of_its_gfn() -> None:
    """The gfn will be write-protected for good, so nothing may stay writable (ddc16abbbae9)."""
    window = GVA + 0x100000
    guest = Guest("64").map(GVA, DATA)
    guest.map(window, guest.table(GVA))
    guest.read(GVA)
    guest.write(window + 0xFF0)
    table = guest.table(GVA)
    role = guest.page(GVA).role
    other = GVA + GIB
    guest.poke(guest.entry(other, 3), table | TABLE)
    guest.poke(guest.entry(other, 2), table | TABLE)
    with guest.watch() as seen:
        guest.read(other)
    zap = [e for e in seen if isinstance(e, ev.kvm_mmu_prepare_zap_page)]
    assert [(e.gfn, e.role, e.unsync) for e in zap] == [(table >> 12, role, True)]
    assert guest.page(other, 2).gfn == table >> 12
    assert violations(guest.kvm) == []


def test_use_forgets_the_writes_counted_against_a_page(guest: Guest) -> None:
    guest.read(GVA)
    page = guest.page(GVA, 2)
    page.write_flooding_count = 2
    assert kvm_mmu_get_shadow_page(guest.kvm, guest.vcpu, page.gfn, page.role) is page
    assert page.write_flooding_count == 0


# Creating ------------------------------------------------------------------------------


def test_a_new_page_is_empty_hashed_and_last_in_line(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        sp = kvm_mmu_get_shadow_page(guest.kvm, guest.vcpu, 0x20, guest.page(GVA, 2).role)
    assert seen[-1] == ev.kvm_mmu_get_page(0x20, sp.role, 0, 0, False, True)
    assert list(guest.kvm.active_mmu_pages)[-1] == sp.frame
    assert guest.kvm.page_hash[0x20] == [sp.frame]
    assert not guest.machine.memory.frames[sp.frame].any()
    assert guest.slot.gfn_track[0x20] == 1


# Linking -------------------------------------------------------------------------------


def test_the_right_child_is_taken_as_it_is(guest: Guest) -> None:
    """``-EEXIST`` only if gfn and role are the wanted ones (fixed in 6.1.192)."""
    guest.read(GVA)
    sptep, child = guest.sptep(GVA, 2), guest.page(GVA)
    assert kvm_mmu_get_child_sp(guest.vcpu, sptep, child.gfn, direct=False, access=7, addr=GVA) is None
    other = kvm_mmu_get_child_sp(guest.vcpu, sptep, child.gfn, direct=False, access=5, addr=GVA)
    assert other is not None
    assert other.access == 5
    elsewhere = kvm_mmu_get_child_sp(guest.vcpu, sptep, 0x20, direct=False, access=7, addr=GVA)
    assert elsewhere is not None
    assert elsewhere.gfn == 0x20


def test_a_link_takes_the_place_of_what_was_there(guest: Guest) -> None:
    guest.read(GVA)
    sptep, old = guest.sptep(GVA, 2), guest.page(GVA)
    new = kvm_mmu_get_child_sp(guest.vcpu, sptep, 0x20, direct=False, access=7, addr=GVA)
    assert new is not None
    with guest.watch() as seen:
        link_shadow_page(guest.kvm, sptep, new)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert old.parent_ptes == []
    assert new.parent_ptes == [[sptep]]
    assert guest.machine.memory.words[sptep >> 3] & PT_BASE_ADDR_MASK == new.frame << 12
    assert violations(guest.kvm) == []


def test_a_small_page_under_a_huge_one_drops_it() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    huge = guest.spte(GVA, 2)
    guest.slot.disallow_lpage[2][4 * MIB >> 21] = 1
    guest.poke(guest.entry(GVA, 2), 4 * MIB | PAGE | 0x80)
    guest.machine.memory.store64(guest.sptep(GVA, 2), huge & ~(P | W | U))
    with guest.watch() as seen:
        guest.read(GVA)
    assert any(isinstance(e, ev.drop_spte) for e in seen)
    assert guest.kvm.stat["pages_2m"] == 0
    assert guest.page(GVA).direct


@pytest.mark.parametrize(("first", "second"), [(PAGE & ~D, PAGE), (P | U | 0x20, P | U | 0x60)])
def test_a_direct_child_of_other_rights_is_replaced(first: int, second: int) -> None:
    """A large guest page on small host pages: its direct page has the rights of the guest's entry."""
    guest = Guest("64").map(GVA, 2 * MIB, first, level=2)
    guest.read(GVA)
    before = guest.page(GVA)
    validate_direct_spte(guest.kvm, guest.sptep(GVA, 2), before.access)
    assert before.parent_ptes
    guest.poke(guest.entry(GVA, 2), 2 * MIB | second | 0x80)
    if before.access == (7 if second & W else 5):
        return
    with guest.watch() as seen:
        guest.write(GVA)
    assert guest.page(GVA) is not before
    assert guest.page(GVA).access == 7
    assert before.parent_ptes == []
    assert ev.kvm_flush_remote_tlbs() in seen


# Walking ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "top"), [("np", 2), ("32", 2), ("pae", 2), ("64", 4), ("57", 5)])
def test_the_way_down_begins_below_special_roots(mode: str, top: int) -> None:
    guest = Guest(mode)
    gva = GVA if mode != "np" else DATA
    if mode != "np":
        guest.map(GVA, DATA)
    guest.read(gva)
    path = shadow_path(guest.vcpu, gva)
    assert [level for level, _, _ in path] == list(range(top, 0, -1))
    for (_, _, spte), (level, sptep, _) in pairwise(path):
        assert sptep & ~0xFFF == spte & PT_BASE_ADDR_MASK
        assert sptep_to_sp(guest.kvm, sptep).level == level
        assert spte_index(sptep) == gva >> 12 + 9 * (level - 1) & 511


def test_each_gigabyte_of_a_32_bit_guest_has_its_directory() -> None:
    guest = Guest("32")
    for i in range(4):
        guest.map(i * GIB + GVA, DATA + i * 0x1000)
        guest.read(i * GIB + GVA)
    pages = [guest.page(i * GIB + GVA, 2) for i in range(4)]
    assert [sp.quadrant for sp in pages] == [0, 1, 2, 3]
    assert all(sp.gfn == guest.root >> 12 for sp in pages)


def test_a_directory_that_pae_lacks_ends_the_way() -> None:
    guest = Guest("pae").map(GVA, DATA)
    guest.read(GVA)
    assert shadow_path(guest.vcpu, 3 * GIB) == []


def test_the_way_ends_where_nothing_is_present(guest: Guest) -> None:
    guest.read(GVA)
    assert [level for level, _, _ in shadow_path(guest.vcpu, GVA + GIB)] == [4, 3]
    it = ShadowWalk(guest.vcpu, guest.vcpu.mmu.root_hpa, GVA + GIB)
    while it.okay():
        it.next()
    assert it.level == 0


def test_another_root_can_be_walked_too(guest: Guest) -> None:
    guest.read(GVA)
    other = guest.new_table()
    root = guest.vcpu.mmu.root_hpa
    guest.cr3(other)
    assert shadow_path(guest.vcpu, GVA)[0][2] == 0
    assert [level for level, _, _ in shadow_path(guest.vcpu, GVA, root)] == [4, 3, 2, 1]


def test_write_protect_off_is_another_role(guest: Guest) -> None:
    guest.read(GVA)
    kvm_mmu_zap_all_fast(guest.kvm)
    guest.regs = (guest.vcpu.cr0 & ~X86_CR0_WP, *guest.regs[1:])
    guest.reset()
    guest.read(GVA)
    assert facts(guest, guest.page(GVA)) == "l1 g8 q0 uwx nx"
