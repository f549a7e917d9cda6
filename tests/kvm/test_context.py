"""MMU contexts: the roles that registers give, and when nothing has to be done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.context import base_facts, kvm_calc_cpu_role, kvm_init_mmu, kvm_mmu_get_tdp_level
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.state import Request
from mmulab.kvm.validity import RoleDecision
from mmulab.machine.config import HostConfig
from mmulab.machine.machine import Machine
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PGE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from tests.kvm.guest import DATA, GVA, MODES, Guest, cr4

BITS = st.integers(0, (1 << 32) - 1)


def role_of(cr0: int, cr4: int, efer: int) -> CpuRole:
    return kvm_calc_cpu_role(cr0, cr4, efer, smm=0, guest_mode=False)


@given(BITS, BITS, BITS)
def test_the_cpu_role_is_what_the_registers_say(cr0: int, cr4: int, efer: int) -> None:
    """``kvm_calc_cpu_role``, Linux 6.1 ``mmu.c``, with the checklist's rules C1 and C2."""
    role = role_of(cr0, cr4, efer)
    if not cr0 & X86_CR0_PG:
        assert role == CpuRole(direct=1, valid=1)
        return
    wp, lma, pae = cr0 & X86_CR0_WP, efer & EFER_LMA, cr4 & X86_CR4_PAE
    la57 = cr4 & X86_CR4_LA57
    assert role.level == ((5 if la57 else 4) if lma else (3 if pae else 2))
    assert bool(role.has_4_byte_gpte) == (not pae)
    assert bool(role.smep_andnot_wp) == bool(cr4 & X86_CR4_SMEP and not wp)
    assert bool(role.smap_andnot_wp) == bool(cr4 & X86_CR4_SMAP and not wp)
    assert bool(role.cr4_la57) == bool(lma and la57)
    assert bool(role.cr4_pke) == bool(lma and cr4 & X86_CR4_PKE)
    for flag, bit in (
        (role.cr0_wp, wp),
        (role.efer_nx, efer & EFER_NX),
        (role.cr4_pse, cr4 & X86_CR4_PSE),
        (role.cr4_smep, cr4 & X86_CR4_SMEP),
        (role.cr4_smap, cr4 & X86_CR4_SMAP),
        (role.efer_lma, lma),
    ):
        assert bool(flag) == bool(bit)
    assert role.valid


def test_other_register_bits_do_not_matter() -> None:
    assert role_of(X86_CR0_PG | 0x60000031, X86_CR4_PAE | X86_CR4_PGE, 0) == role_of(
        X86_CR0_PG, X86_CR4_PAE, 1
    )


@pytest.mark.parametrize(
    ("mode", "kind", "root", "full"),
    [
        ("np", "nonpaging", 3, "l3 g8 q0 uwx direct nx"),
        ("32", "paging32", 3, "l3 g4 q0 uwx nx wp"),
        ("pae", "paging64", 3, "l3 g8 q0 uwx nx wp"),
        ("64", "paging64", 4, "l4 g8 q0 uwx nx wp"),
        ("57", "paging64", 5, "l5 g8 q0 uwx nx wp"),
    ],
)
def test_a_shadow_root_has_at_least_three_levels_and_always_nx(
    mode: str, kind: str, root: int, full: str
) -> None:
    """``kvm_init_shadow_mmu``: PAE tables at least, and KVM uses NX itself."""
    guest = Guest(mode, off=EFER_NX << 64)
    mmu = guest.vcpu.mmu
    assert (mmu.kind, mmu.root_level, mmu.direct) == (kind, root, mode == "np")
    assert guest.kvm.config.kernel.design.facts(mmu.root_role).full_str() == full
    assert mmu.paging is not None
    assert not mmu.paging.nx
    assert mmu.paging.mode is MODES[mode]


def test_a_context_is_configured_again_only_if_a_role_changed() -> None:
    guest = Guest("64").map(GVA, DATA)
    paging = guest.vcpu.mmu.paging
    guest.vcpu.cr4 |= X86_CR4_PGE
    kvm_init_mmu(guest.vcpu)
    assert guest.vcpu.mmu.paging is paging
    guest.vcpu.cr4 |= X86_CR4_SMEP
    kvm_init_mmu(guest.vcpu)
    assert guest.vcpu.mmu.paging is not paging
    assert guest.vcpu.mmu.cpu_role.cr4_smep


def test_smep_and_smap_split_pages_only_without_wp() -> None:
    """With WP the pages can be shared: only the walk must know (checklist R9, R10, X7, X8)."""
    bits = cr4(X86_CR4_SMEP | X86_CR4_SMAP)
    plain, both = Guest("64"), Guest("64", on=bits)
    assert plain.vcpu.mmu.root_role == both.vcpu.mmu.root_role
    assert plain.vcpu.mmu.cpu_role != both.vcpu.mmu.cpu_role
    off = X86_CR0_WP
    assert Guest("64", off=off).vcpu.mmu.root_role != Guest("64", off=off, on=bits).vcpu.mmu.root_role


def test_the_base_of_a_cpu_role() -> None:
    facts = base_facts(role_of(X86_CR0_PG | X86_CR0_WP, X86_CR4_PSE, 0))
    assert facts.full_str() == "l2 g4 q0 uwx wp"
    assert base_facts(CpuRole(access=5, guest_mode=1, smm=1)).full_str() == "l0 g8 q0 u-x guest_mode smm1"


@pytest.mark.parametrize(
    ("vendor", "la57", "bits", "level"),
    [
        ("amd", False, 48, 4),
        ("amd", True, 40, 5),
        ("intel", False, 52, 4),
        ("intel", True, 48, 4),
        ("intel", True, 52, 5),
    ],
)
def test_levels_of_two_dimensional_paging(vendor: str, la57: bool, bits: int, level: int) -> None:
    """AMD's are the host's; Intel's go to five only for guests that need them (``kvm_mmu_get_tdp_level``)."""
    host = HostConfig(vendor=vendor, tdp=True, la57=la57)
    guest = Guest("np", host=host, cpu=CpuModel(vendor=vendor, maxphyaddr=bits))
    assert kvm_mmu_get_tdp_level(guest.vcpu) == guest.vcpu.mmu.root_level == level
    assert guest.vcpu.mmu.direct


def test_a_new_vcpu_has_a_page_for_pae_roots_and_intels_a_flush(guest: Guest) -> None:
    assert guest.vcpu.root_mmu.pae_root > 0
    fresh = {v: Machine(Guest("np", host=HostConfig(vendor=v)).machine.config) for v in ("amd", "intel")}
    requests = {vendor: machine.kvm.vcpus[0].requests for vendor, machine in fresh.items()}
    assert requests == {"amd": 0, "intel": Request.TLB_FLUSH}


@pytest.mark.parametrize(("tdp", "legal"), [(True, True), (False, False)])
def test_with_tdp_1_gib_pages_are_legal_if_the_host_has_them(tdp: bool, legal: bool) -> None:
    """``guest_can_use_gbpages``: the processor, which walks too, knows nothing of the guest's CPUID."""
    guest = Guest("64", host=HostConfig(tdp=tdp), cpu=CpuModel(maxphyaddr=40, gbpages=False))
    paging = guest.vcpu.root_mmu.paging
    assert paging is not None
    assert bool(paging.rsvd[1][3] & 1 << 7) is not legal


@pytest.mark.parametrize("host", [HostConfig(), HostConfig(tdp=True)], ids=["shadow", "tdp"])
def test_each_comparison_is_told_to_a_watcher(host: HostConfig) -> None:
    guest = Guest("64", host=host)
    seen: list[RoleDecision | MmuLockHeld] = []
    guest.kvm.watch = seen.append
    mmu = guest.vcpu.root_mmu
    roles = mmu.cpu_role, mmu.root_role
    kvm_init_mmu(guest.vcpu)
    kvm_init_mmu(guest.vcpu, force_role_reset=True)
    guest.vcpu.cr4 ^= X86_CR4_SMEP
    kvm_init_mmu(guest.vcpu)
    decisions = [item for item in seen if isinstance(item, RoleDecision)]
    assert [decision.unchanged for decision in decisions] == [True, False, False]
    assert {decision.context for decision in decisions} == {"root_mmu"}
    last = decisions[-1]
    assert (last.old_cpu_role, last.old_root_role) == roles
    assert (last.cpu_role, last.root_role, last.paging) == (mmu.cpu_role, mmu.root_role, mmu.paging)
    assert last.old_paging != last.paging
