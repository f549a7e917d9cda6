"""Rules of Linux 6.1 that no recording exercises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab import events as ev
from mmulab.kvm import fault
from mmulab.kvm.context import kvm_calc_cpu_role, kvm_init_mmu
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.roots import kvm_mmu_reset_context
from mmulab.kvm.spte import (
    SPTE_TDP_AD_MASK,
    SPTE_TDP_AD_WRPROT_ONLY_MASK,
    ept_format,
    is_access_track_spte,
    mark_spte_for_access_track,
    restore_acc_track_spte,
)
from mmulab.kvm.state import Vcpu
from mmulab.kvm.zap import kvm_mmu_unprotect_page, kvm_mmu_zap_all_fast
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG, X86_CR0_WP, X86_CR4_PAE, X86_CR4_PKE
from tests.kvm.guest import DATA, GVA, HOLE, MIB, NX, PAGE, D, Guest, W

EPT = HostConfig(vendor="intel", tdp=True)


def test_a_configured_role_is_never_the_empty_one() -> None:
    without = kvm_calc_cpu_role(0, 0, 0, smm=0, guest_mode=False)
    assert without == CpuRole(direct=1, valid=1)
    assert CpuRole().valid == 0


@pytest.mark.parametrize(("efer", "pke"), [(EFER_LMA, 1), (0, 0)])
def test_protection_keys_are_in_the_role_of_long_mode_alone(efer: int, pke: int) -> None:
    role = kvm_calc_cpu_role(X86_CR0_PG, X86_CR4_PAE | X86_CR4_PKE, efer, smm=0, guest_mode=False)
    assert role.cr4_pke == pke


@pytest.mark.parametrize("host", [HostConfig(), EPT], ids=["shadow", "tdp"])
def test_a_context_is_configured_again_only_if_its_roles_changed(host: HostConfig) -> None:
    guest = Guest("64", host=host)
    kind, guest.vcpu.mmu.kind = guest.vcpu.mmu.kind, "left alone"
    kvm_init_mmu(guest.vcpu)
    assert guest.vcpu.mmu.kind == "left alone"
    guest.vcpu.cr0 ^= X86_CR0_WP
    kvm_init_mmu(guest.vcpu)
    assert guest.vcpu.mmu.kind == kind


def test_unprotecting_a_table_zaps_every_page_that_shadows_it() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    gfn = guest.table(GVA) >> 12
    assert guest.pages(gfn)
    assert kvm_mmu_unprotect_page(guest.kvm, gfn)
    assert not guest.pages(gfn)
    assert not kvm_mmu_unprotect_page(guest.kvm, gfn)


def test_a_root_that_reclaim_takes_away_is_not_built_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of ``FNAME(page_fault)``: pages are made available before the root is looked at."""
    guest = Guest("64").map(GVA, DATA)
    guest.enter()
    old = guest.vcpu.mmu.root_hpa
    reclaim = fault.make_mmu_pages_available
    calls = []

    def reclaim_the_root(vcpu: Vcpu) -> bool:
        if not calls:
            kvm_mmu_zap_all_fast(vcpu.kvm)
        calls.append(vcpu.mmu.root_hpa)
        return reclaim(vcpu)

    monkeypatch.setattr(fault, "make_mmu_pages_available", reclaim_the_root)
    assert guest.read(GVA).kind is OutcomeKind.OK
    assert guest.maps(GVA, DATA)
    assert calls[0] == old
    assert len(calls) == 2, "the fault is taken again"
    (requested,) = guest.of(ev.kvm_mmu_spte_requested)
    assert requested.gfn == DATA >> 12


@pytest.mark.parametrize("mode", ["64", "pae"])
def test_a_fetch_splits_an_nx_huge_page(mode: str) -> None:
    guest = Guest(mode, host=HostConfig(nx_huge_pages=True), thp=True)
    guest.map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    assert guest.spte(GVA, 2) & NX
    assert guest.kvm.stat["nx_lpage_splits"] == 0
    assert guest.fetch(GVA).kind is OutcomeKind.OK
    assert guest.maps(GVA, 4 * MIB)
    assert not guest.spte(GVA) & NX
    assert guest.kvm.stat["nx_lpage_splits"] == 1


@pytest.mark.parametrize("tdp_mmu", [False, True])
@pytest.mark.parametrize("l2", [False, True])
def test_pages_of_l2_are_write_protected_where_the_processor_logs(tdp_mmu: bool, l2: bool) -> None:
    """PML would log L2's addresses; ``make_spte`` marks such entries ``WRPROT_ONLY``."""
    guest = Guest("np", host=replace(EPT, tdp_mmu=tdp_mmu, pml=True))
    guest.vcpu.guest_mode = l2
    kvm_mmu_reset_context(guest.vcpu)
    guest.enter()
    guest.write(DATA)
    assert guest.spte(DATA) & SPTE_TDP_AD_MASK == (SPTE_TDP_AD_WRPROT_ONLY_MASK if l2 else 0)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 1, 0))
    guest.vcpu.guest_mode = False
    assert bool(guest.spte(DATA) & W) is not l2
    assert bool(guest.spte(DATA) & guest.kvm.fmt.dirty) is l2


def test_an_access_tracked_entry_comes_back_on_a_fault() -> None:
    guest = Guest("np", host=replace(EPT, eptad=False))
    guest.read(DATA)
    fmt, at = guest.kvm.fmt, guest.sptep(DATA)
    used = guest.spte(DATA)
    guest.kvm.memory.store64(at, mark_spte_for_access_track(fmt, used))
    assert is_access_track_spte(fmt, guest.spte(DATA))
    assert not guest.spte(DATA) & 7
    guest.read(DATA)
    fast = guest.of(ev.fast_page_fault)[-1]
    assert (fast.sptep, fast.new_spte & 5) == (at, used & 5)
    assert guest.spte(DATA) & 5 == used & 5


@pytest.mark.parametrize("rx", [0, 1, 4, 5])
def test_access_tracking_keeps_the_rights_to_read_and_execute(rx: int) -> None:
    fmt = ept_format(40, has_ad=False)
    spte = 1 << 52 | 1 << 11 | 0x1234000 | rx
    assert restore_acc_track_spte(fmt, mark_spte_for_access_track(fmt, spte)) == spte


def test_a_present_entry_is_dropped_before_an_mmio_entry_takes_its_place() -> None:
    guest = Guest("64").map(GVA, DATA, PAGE & ~D)
    guest.read(GVA)
    at = guest.sptep(GVA)
    assert guest.rmap(DATA >> 12) == [at]
    guest.poke(guest.entry(GVA), HOLE | PAGE)
    with guest.watch() as seen:
        guest.write(GVA)
    assert [e.sptep for e in seen if isinstance(e, ev.drop_spte)] == [at]
    assert guest.rmap(DATA >> 12) == []
    assert [e.gfn for e in seen if isinstance(e, ev.mark_mmio_spte)] == [HOLE >> 12]
