"""How the MMU lock is held while roots are freed."""

from __future__ import annotations

import pytest

from mmulab.kvm.free_roots_lock import FREE_ROOTS_LOCK, MmuLockHeld
from mmulab.kvm.mmu import KVM_MMU_ROOT_CURRENT, KVM_MMU_ROOTS_ALL
from mmulab.kvm.roots import kvm_mmu_free_roots
from mmulab.kvm.validity import RoleDecision
from mmulab.machine.config import HostConfig
from tests.kvm.guest import DATA, GVA, Guest

TDP_MMU = HostConfig(tdp=True, tdp_mmu=True)
LEGACY = HostConfig(tdp=True)


def held(host: HostConfig, rule: str, *, root_role: int | None = None) -> list[MmuLockHeld]:
    """Free the current root of a guest that has run, with another root role if given."""
    guest = Guest("64", host=host, free_roots_lock=rule).map(GVA, DATA)
    guest.read(GVA)
    mmu = guest.vcpu.root_mmu
    mmu.root_role = mmu.root_role if root_role is None else root_role
    seen: list[RoleDecision | MmuLockHeld] = []
    guest.kvm.watch = seen.append
    kvm_mmu_free_roots(guest.kvm, mmu, KVM_MMU_ROOT_CURRENT)
    kvm_mmu_free_roots(guest.kvm, mmu, KVM_MMU_ROOTS_ALL)  # nothing is left: the lock is not taken
    return [item for item in seen if isinstance(item, MmuLockHeld)]


@pytest.mark.parametrize("host", [HostConfig(), LEGACY, TDP_MMU], ids=["shadow", "legacy", "tdp_mmu"])
def test_linux_6_1_always_writes(host: HostConfig) -> None:
    (lock,) = held(host, "write", root_role=0)
    assert (lock.shared, lock.asserts, lock.context) == (False, False, "root_mmu")


@pytest.mark.parametrize(
    ("host", "shared", "roots"),
    [(HostConfig(), False, (0, 1)), (LEGACY, False, (0, 1)), (TDP_MMU, True, (1, 0))],
    ids=["shadow", "legacy", "tdp_mmu"],
)
def test_linux_6_9_goes_by_the_root_role(host: HostConfig, shared: bool, roots: tuple[int, int]) -> None:
    (lock,) = held(host, "by_root_role")
    assert (lock.shared, (lock.tdp_mmu_roots, lock.shadow_roots)) == (shared, roots)
    assert not lock.asserts


def test_a_cleared_word_names_the_wrong_lock() -> None:
    (lock,) = held(TDP_MMU, "by_root_role", root_role=0)
    assert (lock.shared, lock.asserts, lock.root_role) == (False, True, 0)


def test_a_shadow_root_under_the_shared_lock_would_be_worse() -> None:
    assert MmuLockHeld("by_root_role", "root_mmu", 0, True, 0, 1).asserts
    assert set(FREE_ROOTS_LOCK) == {"write", "by_root_role"}
