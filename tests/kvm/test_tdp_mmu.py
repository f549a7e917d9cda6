"""The TDP MMU: zapping, write protection, splitting and collapsing, and the life of its roots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.kvm.spte import REMOVED_SPTE, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.tdp_iter import for_each_tdp_pte
from mmulab.kvm.tdp_mmu import (
    kvm_tdp_mmu_clear_dirty_pt_masked,
    kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_try_split_huge_pages,
    kvm_tdp_mmu_write_protect_gfn,
    kvm_tdp_mmu_wrprot_slot,
    kvm_tdp_mmu_zap_collapsible_sptes,
    kvm_tdp_mmu_zap_invalidated_roots,
    kvm_tdp_mmu_zap_leafs,
    roots,
)
from mmulab.kvm.zap import kvm_mmu_zap_all_fast
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from tests.kvm.guest import DATA, MIB, D, Guest, W
from tests.kvm.test_tdp_iter import NPT, PAGES, root_of, tdp_guest

EPT = HostConfig(vendor="intel", tdp=True, tdp_mmu=True)
NO_AD = HostConfig(vendor="intel", tdp=True, tdp_mmu=True, eptad=False)
EPT_W, EPT_D = 1 << 1, 1 << 9
Leaves = dict[int, tuple[int, int]]


def leaves(guest: Guest) -> Leaves:
    """Return level and value of each leaf by gfn, of all roots."""
    return {
        entry.gfn: (entry.level, entry.old_spte)
        for root in roots(guest.kvm)
        for entry in for_each_tdp_pte(guest.kvm, root, 0, PAGES)
        if is_shadow_present_pte(entry.old_spte) and is_last_spte(entry.old_spte, entry.level)
    }


def written(*gfns: int, host: HostConfig = NPT, **config: object) -> Guest:
    guest = tdp_guest(host=host, **config)
    for gfn in gfns:
        guest.write(gfn << 12)
    return guest


# Zapping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [LINUX_6_1, LINUX_6_12], ids=str)
def test_a_range_is_zapped_in_roots_on_their_way_out_until_6_9(kernel: Kernel) -> None:
    guest = written(3, 4, behaviours=kernel.behaviours)
    kvm_tdp_mmu_invalidate_all_roots(guest.kvm)
    guest.events.clear()
    skips = kernel.behaviours.zap_leafs_skips_invalid_roots
    assert kvm_tdp_mmu_zap_leafs(guest.kvm, 0, 3, 4) is not skips
    changed = [event.gfn for event in guest.events if isinstance(event, ev.kvm_tdp_mmu_spte_changed)]
    assert (changed, set(leaves(guest))) == (([], {3, 4}) if skips else ([3], {4}))


@settings(max_examples=40)
@given(
    gfns=st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=10, unique=True),
    start=st.integers(0, PAGES),
    length=st.integers(0, PAGES),
)
def test_leaves_of_a_range_go_and_no_others(gfns: list[int], start: int, length: int) -> None:
    guest = written(*gfns)
    before = leaves(guest)
    owed = kvm_tdp_mmu_zap_leafs(guest.kvm, None, start, start + length)
    kept = {gfn: leaf for gfn, leaf in before.items() if not start <= gfn < start + length}
    assert leaves(guest) == kept
    assert owed is (len(kept) < len(before))
    assert guest.kvm.stat["pages_4k"] == len(kept)
    assert violations(guest.kvm) == []


def test_zapping_spares_another_address_space() -> None:
    guest = written(0x10)
    assert not kvm_tdp_mmu_zap_leafs(guest.kvm, 1, 0, PAGES)
    assert leaves(guest).keys() == {0x10}
    assert kvm_tdp_mmu_zap_leafs(guest.kvm, 0, 0, PAGES)


def test_a_table_that_is_cut_off_is_taken_apart() -> None:
    """Each of its entries is reported gone, its children first freed; memory is given back."""
    guest = written(0x10, 0x11, 0x400)
    frames = set(guest.kvm.pages)
    (root,) = roots(guest.kvm)
    with guest.watch() as seen:
        kvm_mmu_zap_all_fast(guest.kvm)
        guest.enter()
    gone = [e for e in seen if isinstance(e, ev.kvm_tdp_mmu_spte_changed) and e.level == 1]
    assert {e.gfn for e in gone if e.old_spte} == {0x10, 0x11, 0x400}
    assert {e.new_spte for e in gone} == {REMOVED_SPTE}
    zapped = [e for e in seen if isinstance(e, ev.kvm_mmu_prepare_zap_page)]
    assert len(zapped) == len(frames) - 1, "all but the root"
    assert not frames & (set(guest.kvm.pages) - {root_of(guest).frame})
    assert root.frame not in guest.kvm.tdp_mmu_roots or guest.kvm.pages[root.frame] is not root
    assert guest.kvm.stat["pages_4k"] == 0


# Roots ---------------------------------------------------------------------------------------


def test_vcpus_of_one_role_share_a_root() -> None:
    guest = tdp_guest(vcpus=2)
    guest.reset(1)
    for vcpu in (0, 1):
        guest.read(DATA, vcpu=vcpu)
    (root,) = roots(guest.kvm)
    assert {vcpu.mmu.root_hpa >> 12 for vcpu in guest.kvm.vcpus} == {root.frame}
    assert root.root_count == 3, "each vCPU's hold, and the standing one"


def test_an_invalid_root_is_zapped_once_and_freed_with_its_last_hold() -> None:
    guest = written(0x10)
    (root,) = roots(guest.kvm)
    kvm_tdp_mmu_invalidate_all_roots(guest.kvm)
    assert root.invalid
    assert guest.kvm.config.kernel.design.facts(root.role).invalid
    assert list(roots(guest.kvm, only_valid=True)) == []
    kvm_tdp_mmu_zap_invalidated_roots(guest.kvm)
    assert leaves(guest) == {}
    assert root.root_count == 1, "the vCPU's"
    kvm_tdp_mmu_zap_invalidated_roots(guest.kvm)
    assert root.root_count == 1
    kvm_tdp_mmu_invalidate_all_roots(guest.kvm)
    assert not root.tdp_mmu_scheduled_root_to_zap, "an invalid one is not scheduled again"


# Write protection and the dirty log --------------------------------------------------------------


def test_a_slot_is_protected_from_a_level_up() -> None:
    """KVM may still make its pages writable again: only W goes."""
    guest = written(0x10, 0x800 - 1, thp=False)
    kvm_tdp_mmu_wrprot_slot(guest.kvm, guest.slot, 2)
    assert all(spte & W for _, spte in leaves(guest).values())
    kvm_tdp_mmu_wrprot_slot(guest.kvm, guest.slot, 1)
    for _, spte in leaves(guest).values():
        assert not spte & W
        assert spte & guest.kvm.fmt.mmu_writable


def test_a_gfn_with_a_table_in_it_stays_protected() -> None:
    guest = written(0x10, 0x11)
    assert kvm_tdp_mmu_write_protect_gfn(guest.kvm, 0, 0x10, 1)
    protected, other = leaves(guest)[0x10][1], leaves(guest)[0x11][1]
    assert not protected & (W | guest.kvm.fmt.mmu_writable)
    assert other & W
    assert other & guest.kvm.fmt.mmu_writable
    assert not kvm_tdp_mmu_write_protect_gfn(guest.kvm, 0, 0x10, 1), "nothing is owed the second time"


@pytest.mark.parametrize(
    ("host", "wrprot", "bit"),
    [(NPT, False, D), (NPT, True, W), (EPT, False, EPT_D), (EPT, True, EPT_W), (NO_AD, False, EPT_W)],
)
def test_clearing_takes_d_or_w_from_the_wanted_pages(host: HostConfig, wrprot: bool, bit: int) -> None:
    guest = written(*range(0x40, 0x48), host=host)
    before = leaves(guest)
    assert all(spte & bit for _, spte in before.values())
    kvm_tdp_mmu_clear_dirty_pt_masked(guest.kvm, 0, [0x41, 0x44, 0x46], wrprot=wrprot)
    for gfn, (_, spte) in leaves(guest).items():
        lost = bit if gfn in (0x41, 0x44, 0x46) else 0
        assert spte == before[gfn][1] & ~lost, hex(gfn)


@pytest.mark.parametrize("host", [NPT, EPT, NO_AD], ids=["npt", "ept", "noad"])
@settings(max_examples=15)
@given(rounds=st.lists(st.lists(st.integers(0x10, 0x60), max_size=6), min_size=1, max_size=4))
def test_each_log_has_the_pages_written_since_the_last(host: HostConfig, rounds: list[list[int]]) -> None:
    guest = written(*range(0x10, 0x30), host=host)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.machine.execute(ops.GetDirtyLog(0))
    for gfns in rounds:
        for gfn in gfns:
            guest.write(gfn << 12)
        assert guest.machine.execute(ops.GetDirtyLog(0)).dirty == sorted(set(gfns))


# Huge pages -----------------------------------------------------------------------------------


def test_a_split_page_maps_what_it_mapped() -> None:
    guest = written(0x400, 0x600, thp=True)
    assert {gfn: level for gfn, (level, _) in leaves(guest).items()} == {0x400: 2, 0x600: 2}
    huge = leaves(guest)[0x400][1]
    with guest.watch() as seen:
        kvm_tdp_mmu_try_split_huge_pages(guest.kvm, 0, 0x400, 0x600, 1, shared=False)
    after = leaves(guest)
    assert after.keys() == {*range(0x400, 0x600), 0x600}
    for gfn in range(0x400, 0x600):
        level, spte = after[gfn]
        assert (level, spte_to_pfn(spte), spte & W) == (1, guest.hpa(gfn << 12) >> 12, W)
    assert (guest.kvm.stat["pages_2m"], guest.kvm.stat["pages_4k"]) == (1, 512)
    (split,) = [e for e in seen if isinstance(e, ev.kvm_mmu_split_huge_page)]
    assert (split.gfn, split.spte, split.level, split.errno) == (0x400, huge, 2, 0)
    assert violations(guest.kvm) == []


def test_a_table_that_a_huge_page_can_replace_goes() -> None:
    """Those that lie wholly in the slot and whose page may be so large; the next access maps it anew."""
    guest = written(0x400, thp=True)
    kvm_tdp_mmu_try_split_huge_pages(guest.kvm, 0, 0x400, 0x600, 1, shared=False)
    guest.write(0x200 << 12)

    def level_of(allowed: dict[int, int]) -> Callable[[int], int]:
        return lambda gfn: allowed.get(gfn, 1)

    kvm_tdp_mmu_zap_collapsible_sptes(guest.kvm, guest.slot, level_of({}))
    assert 0x400 in leaves(guest)
    kvm_tdp_mmu_zap_collapsible_sptes(guest.kvm, guest.slot, level_of({0x400: 2}))
    assert leaves(guest).keys() == {0x200}
    assert guest.kvm.stat["pages_4k"] == 0
    guest.read(0x433 << 12)
    assert leaves(guest)[0x400][0] == 2
    assert violations(guest.kvm) == []


def test_dirty_logging_goes_and_comes_with_huge_pages() -> None:
    guest = written(0x400, thp=True)
    on = ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0)
    guest.machine.execute(on)
    guest.write(0x433 << 12)
    assert leaves(guest)[0x433][0] == 1
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 0, 0))
    guest.read(0x433 << 12)
    assert {gfn: level for gfn, (level, _) in leaves(guest).items()} == {0x400: 2}
    assert guest.machine.execute(on).result == 0
