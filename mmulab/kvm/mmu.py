"""MMU contexts as records: roles, roots and the guest's paging.

Source: Linux 6.1 ``arch/x86/include/asm/kvm_host.h`` (``struct kvm_mmu``, ``struct kvm_mmu_root_info``),
``arch/x86/kvm/kvm_emulate.h`` (``struct x86_exception``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.x86.paging import Paging

INVALID_PAGE = -1
PT32_ROOT_LEVEL = 2
PT32E_ROOT_LEVEL = 3
"""Of PAE paging, whose root is four registers."""
PT64_ROOT_4LEVEL = 4
PT64_ROOT_5LEVEL = 5
INVALID_PAE_ROOT = 0
KVM_MMU_NUM_PREV_ROOTS = 3
KVM_MMU_ROOT_CURRENT = 1
KVM_MMU_ROOTS_ALL = (1 << 64) - 1
KVM_MMU_ROOTS_ALL_4_BITS = 0xF
"""The same from 6.4 on: the current root and the three previous ones."""
SHADOWING = ("paging32", "paging64", "ept")
"""Kinds of contexts that shadow tables of the guest."""


def root_previous(i: int) -> int:
    """Return the bit of previous root `i` in a mask of roots (``KVM_MMU_ROOT_PREVIOUS``)."""
    return 1 << (1 + i)


class X86Exception(NamedTuple):
    """A page fault that KVM found in a walk (``struct x86_exception``).

    Attributes
    ----------
    error_code, address : int
    nested_page_fault : bool
        Not the running guest's tables are at fault but those that L1 keeps for it;
        `address` is then L2's guest-physical one.
    """

    error_code: int
    address: int
    nested_page_fault: bool = False


class RootInfo(NamedTuple):
    """A root that was kept, and the guest root that it shadows (``struct kvm_mmu_root_info``).

    One that was never used has ``INVALID_PAGE`` in both (``KVM_MMU_ROOT_INFO_INVALID``); one that was
    freed keeps its `pgd` (``mmu_free_root_page``).
    """

    pgd: int = INVALID_PAGE
    hpa: int = INVALID_PAGE


@dataclass(slots=True)
class Mmu:
    """An MMU context (``struct kvm_mmu``).

    Attributes
    ----------
    kind : str
        Which handlers it has: ``nonpaging`` and ``tdp`` build direct maps,
        ``paging32``, ``paging64`` and ``ept`` shadow guest tables (:data:`SHADOWING`),
        ``none`` before the first configuration.
    cpu_role : CpuRole
    root_role : int
        Word of a root page of this context.
    root_facts : RoleFacts or None
    paging : Paging or None
        Configuration of walks of the guest's tables.
    root_hpa, root_pgd : int
        The root in use (-1: none) and the guest root it shadows.
    prev_roots : list of RootInfo
    pae_root, pml4_root, pml5_root : int
        Frames of the special roots, -1 where there is none.
    pdptrs : list of int
        PDPTE registers of a PAE guest.
    """

    kind: str = "none"
    cpu_role: CpuRole = field(default_factory=CpuRole)
    root_role: int = 0
    root_facts: RoleFacts | None = None
    root_level: int = 0
    direct: bool = False
    paging: Paging | None = None
    root_hpa: int = INVALID_PAGE
    root_pgd: int = 0
    prev_roots: list[RootInfo] = field(default_factory=lambda: [RootInfo()] * KVM_MMU_NUM_PREV_ROOTS)
    pae_root: int = -1
    pml4_root: int = -1
    pml5_root: int = -1
    pdptrs: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
