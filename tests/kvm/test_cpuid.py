"""A change of the guest's CPUID: when it is legal, and what the MMU does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab import events as ev
from mmulab.kvm.cpuid import EINVAL, kvm_set_cpuid
from mmulab.kvm.kernel import CPUID_AFTER_RUN
from mmulab.kvm.mmu import KVM_MMU_ROOTS_ALL, Mmu
from mmulab.kvm.roots import EFAULT, EIO
from mmulab.kvm.validity import VALIDITIES
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Mode, OutcomeKind
from tests.kvm.guest import DATA, GVA, Guest

BIT38 = 1 << 38


def reserved(mmu: Mmu) -> int:
    """Return the reserved bits of a 4 KiB entry."""
    assert mmu.paging is not None
    return mmu.paging.rsvd[0][1]


def narrow(guest: Guest) -> int:
    return kvm_set_cpuid(guest.vcpu, replace(guest.vcpu.cpu, maxphyaddr=36))


def test_before_the_first_run_the_context_in_use_follows() -> None:
    guest = Guest("64")
    assert not reserved(guest.vcpu.root_mmu) & BIT38
    with guest.watch() as seen:
        assert narrow(guest) == 0
    assert guest.vcpu.cpu.maxphyaddr == 36
    assert reserved(guest.vcpu.root_mmu) & BIT38
    assert seen == [ev.kvm_mmu_free_roots(KVM_MMU_ROOTS_ALL)] * 2  # the reset itself is inlined


def test_the_contexts_not_in_use_stay_marked() -> None:
    guest = Guest("64")
    vcpu = guest.vcpu
    vcpu.guest_mmu.root_role, vcpu.guest_mmu.cpu_role = 0x4321, vcpu.root_mmu.cpu_role
    narrow(guest)
    assert (vcpu.guest_mmu.root_role, vcpu.guest_mmu.cpu_role.valid) == (0, 0)
    assert (vcpu.root_mmu.cpu_role.valid, vcpu.root_mmu.root_level) == (1, 4)


def test_linux_6_1_refuses_a_change_after_the_first_run() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    before = guest.vcpu.cpu
    with guest.watch() as seen:
        assert narrow(guest) == -EINVAL
        assert kvm_set_cpuid(guest.vcpu, before) == 0
    assert seen == []
    assert guest.vcpu.cpu is before


def test_older_kernels_carry_it_out() -> None:
    guest = Guest("64", cpuid_after_run="allow").map(GVA, DATA)
    guest.read(GVA)
    assert narrow(guest) == 0
    assert reserved(guest.vcpu.root_mmu) & BIT38
    assert guest.read(GVA).kind is OutcomeKind.OK


def test_the_assertion_ends_the_vm() -> None:
    guest = Guest("64", cpuid_after_run="bug").map(GVA, DATA)
    assert narrow(guest) == 0
    assert guest.read(GVA).kind is OutcomeKind.OK  # it had not run
    assert kvm_set_cpuid(guest.vcpu, replace(guest.vcpu.cpu, maxphyaddr=40)) == 0
    for done in (guest.read(GVA), guest.machine.execute(ops.Touch(Mode.SUPERVISOR, GVA))):
        assert (done.kind, done.error) == (OutcomeKind.HANG, EIO)
    assert set(CPUID_AFTER_RUN) == {"refuse", "allow", "bug"}


def test_a_page_made_for_the_old_cpuid_is_found_again() -> None:
    """Why the change is refused: CPUID is in no role of a page."""
    guest = Guest("64", cpuid_after_run="allow").map(GVA, DATA)
    guest.read(GVA)
    guest.poke(guest.entry(GVA), DATA | BIT38 | 0x67)  # what KVM does not see
    narrow(guest)
    assert guest.read(GVA).kind is OutcomeKind.OK


@pytest.mark.parametrize("marker", ["valid", "level_zero", "cpuid_stale", "zero_word", "invalid_bit"])
def test_every_marker_lets_the_context_in_use_follow(marker: str) -> None:
    for host in (HostConfig(), HostConfig(tdp=True)):
        guest = Guest("64", host=host, validity=VALIDITIES[marker])
        narrow(guest)
        assert reserved(guest.vcpu.root_mmu) & BIT38
        assert guest.vcpu.root_mmu.root_level == 4


def test_without_a_mark_the_old_reserved_bits_stay() -> None:
    marker = VALIDITIES["valid"]._replace(name="nothing", writes=())
    guest = Guest("64", validity=marker)
    narrow(guest)
    assert not reserved(guest.vcpu.root_mmu) & BIT38


def test_a_flag_reaches_the_context_in_use_alone() -> None:
    guest = Guest("64", validity=VALIDITIES["force_role_reset"])
    guest.vcpu.nested_mmu.paging = guest.vcpu.root_mmu.paging
    narrow(guest)
    assert reserved(guest.vcpu.root_mmu) & BIT38
    assert not reserved(guest.vcpu.nested_mmu) & BIT38


@pytest.mark.parametrize(("level", "errno"), [(4, EFAULT), (0, EIO)])
def test_a_root_role_without_a_level_lets_no_vcpu_run(level: int, errno: int) -> None:
    guest = Guest("64").map(GVA, DATA)
    mmu = guest.vcpu.root_mmu
    mmu.root_level, mmu.cpu_role = 0, mmu.cpu_role._replace(level=level)
    done = guest.read(GVA)
    assert (done.kind, done.error) == (OutcomeKind.HANG, errno)
