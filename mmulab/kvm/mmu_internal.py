"""A page fault on its way through the MMU, and what becomes of it.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu_internal.h`` (``struct kvm_page_fault``, ``RET_PF_*``),
``include/linux/kvm_host.h`` (``KVM_PFN_*``), ``arch/x86/include/asm/kvm_host.h``
(``KVM_HPAGE_GFN_SHIFT``, ``KVM_PAGES_PER_HPAGE``); 6.12 ``mmu_internal.h`` (``gfn_round_for_level``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot

KVM_PFN_NOSLOT = -1
KVM_PFN_ERR_RO_FAULT = -2
KVM_PFN_ERR_FAULT = -3
KVM_HPAGE_GFN_SHIFT = tuple(9 * (level - 1) for level in range(7))
"""By level: a gfn without so many bits is the number of its page; level 0 has none."""
KVM_PAGES_PER_HPAGE = (0, *(1 << shift for shift in KVM_HPAGE_GFN_SHIFT[1:]))
"""By level: how many small pages one page has."""


def gfn_round_for_level(gfn: int, level: int) -> int:
    """Return the first gfn of the page of `level` that `gfn` lies in."""
    return gfn & -KVM_PAGES_PER_HPAGE[level]


class RetPf(IntEnum):
    """What became of a fault (``RET_PF_*``); the numbers are 6.1's, which has no WRITE_PROTECTED."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    INVALID = 3
    FIXED = 4
    SPURIOUS = 5
    WRITE_PROTECTED = 6


@dataclass(slots=True)
class PageFault:
    """One fault on its way through the MMU (``struct kvm_page_fault``).

    Attributes
    ----------
    addr, error_code : int
        A guest-virtual address, or a guest-physical one under TDP.
    exec, write, present, rsvd, user : bool
        Bits of the error code.
    is_tdp, prefetch : bool
    max_level, req_level, goal_level : int
        Largest page allowed by the guest, by the host too, and wanted.
    gfn, pfn : int
    slot : KvmMemslot or None
    map_writable : bool
    write_fault_to_shadow_pgtable : bool
        The guest writes a table that translates this very write.
    """

    addr: int
    error_code: int
    exec: bool
    write: bool
    present: bool
    rsvd: bool
    user: bool
    is_tdp: bool = False
    prefetch: bool = False
    max_level: int = KVM_MAX_HUGEPAGE_LEVEL
    req_level: int = 1
    goal_level: int = 1
    gfn: int = 0
    pfn: int = KVM_PFN_NOSLOT
    slot: KvmMemslot | None = None
    map_writable: bool = False
    nx_huge_page_workaround_enabled: bool = False
    huge_page_disallowed: bool = False
    write_fault_to_shadow_pgtable: bool = False
