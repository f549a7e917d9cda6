"""Roots that are shadow pages above a 32-bit guest's tables."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.events import kvm_mmu_get_page, kvm_mmu_prepare_zap_page
from mmulab.kvm.expanded_role import expanded_role, is_expanded_level
from mmulab.kvm.invariants import violations
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES, find_root_strategy, special, top_table_level
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.roots import kvm_mmu_load, kvm_mmu_unload
from mmulab.kvm.spte import is_shadow_present_pte, make_pdpte
from mmulab.x86.pferr import ACC_ALL
from tests.kvm.guest import DATA, GVA, Guest

MAPPED = make_pdpte(0)


def guest_with(strategy: str, mode: str) -> Guest:
    return Guest(mode, root_strategy=find_root_strategy(strategy)).map(GVA, DATA)


def test_pdptes_have_nothing_but_p_and_an_ignored_bit() -> None:
    """SDM 3, table 4-8: bits 2:1 and 8:5 are reserved, 11:9 ignored."""
    entry = make_pdpte(0x123)
    assert entry >> 12 == 0x123
    assert entry & 0xFFF == 1 | 1 << 11


@pytest.mark.parametrize(("level", "top"), [(2, 2), (3, 2), (4, 4), (5, 5)])
def test_pdptes_are_registers(level: int, top: int) -> None:
    assert top_table_level(CpuRole(level=level)) == top


def test_strategies_go_by_name() -> None:
    assert find_root_strategy("special") is special
    with pytest.raises(InputError, match=r"root strategy 'none': unknown; .*special, shadow, one_off"):
        find_root_strategy("none")


@pytest.mark.parametrize("mode", ["32", "pae"])
@pytest.mark.parametrize("strategy", ["shadow", "one_off"])
def test_the_root_is_a_portal_with_pdptes(strategy: str, mode: str) -> None:
    guest = guest_with(strategy, mode)
    guest.read(GVA)
    mmu, kvm = guest.vcpu.mmu, guest.kvm
    root = kvm.pages[mmu.root_hpa >> 12]
    assert (root.level, root.passthrough, root.has_gptes, root.root_count) == (3, True, False, 1)
    assert is_expanded_level(mmu, 3)
    assert not is_expanded_level(mmu, 2)
    linked = [e for e in kvm.memory.words[root.frame * 512 :][:512].tolist() if is_shadow_present_pte(e)]
    assert linked
    assert all(entry & 0xFFF == MAPPED for entry in linked)
    assert violations(kvm) == []


@pytest.mark.parametrize("index", range(4))
def test_a_directory_has_the_quadrant_of_its_index(index: int) -> None:
    guest = guest_with("shadow", "32")
    guest.read(GVA)
    facts = guest.kvm.config.kernel.design.facts
    below = facts(expanded_role(guest.vcpu, 2, index, ACC_ALL))
    assert (below.level, below.quadrant, below.passthrough) == (2, index, False)
    above = facts(expanded_role(guest.vcpu, 3, index, ACC_ALL))
    assert (above.level, above.quadrant, above.passthrough) == (3, 0, True)


def test_a_shared_root_stays_when_it_is_freed_and_a_one_off_one_goes() -> None:
    for strategy, stays in (("shadow", True), ("one_off", False)):
        guest = guest_with(strategy, "32")
        guest.read(GVA)
        frame = guest.vcpu.mmu.root_hpa >> 12
        kvm_mmu_unload(guest.vcpu)
        assert (frame in guest.kvm.pages) is stays
        assert violations(guest.kvm) == []
        guest.read(GVA)
        assert violations(guest.kvm) == []


def test_directories_of_other_pdptes_are_zapped_when_the_root_is_loaded() -> None:
    """A PAE guest's directories are named by registers: the same CR3 may stand for others."""
    guest = guest_with("shadow", "pae")
    guest.read(GVA)
    root = guest.kvm.pages[guest.vcpu.mmu.root_hpa >> 12]
    guest.vcpu.mmu.pdptrs = [0, 0, 0, 0]
    kvm_mmu_unload(guest.vcpu)
    with guest.watch() as seen:
        kvm_mmu_load(guest.vcpu)
    zapped = [e for e in seen if isinstance(e, kvm_mmu_prepare_zap_page)]
    made = [e for e in seen if isinstance(e, kvm_mmu_get_page)]
    assert [(e.gfn, e.role) for e in zapped] == [(root.gfn, made[0].role)]
    assert [e.created for e in made] == [True]


@pytest.mark.parametrize("strategy", ROOT_STRATEGIES)
def test_special_roots_alone_have_frames_of_their_own(strategy: str) -> None:
    guest = guest_with(strategy, "32")
    guest.read(GVA)
    mmu = guest.vcpu.mmu
    assert (mmu.root_hpa >> 12 in guest.kvm.pages) is (strategy != "special")
    assert (mmu.root_hpa >> 12 == mmu.pae_root) is (strategy == "special")
