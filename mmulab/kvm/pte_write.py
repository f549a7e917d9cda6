"""Emulated writes to guest tables.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_pte_write`` and beside it).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.guest_walk import kvm_read_guest_atomic, kvm_write_guest
from mmulab.kvm.mmu import PT32_ROOT_LEVEL
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, is_shadow_present_pte
from mmulab.kvm.state import Kvm, Vcpu, spte_at
from mmulab.kvm.sync.unsync import gfn_sps_with_gptes
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import (
    InvalidList,
    kvm_mmu_prepare_zap_page,
    kvm_mmu_remote_flush_or_zap,
    mmu_page_zap_pte,
)
from mmulab.x86.regs import X86_CR4_PAE

WRITE_FLOODING_LIMIT = 3


def emulator_write_phys(vcpu: Vcpu, gpa: int, size: int, value: int) -> bool:
    """Write guest-physical memory and tell the MMU; False if no slot takes the write."""
    if not kvm_write_guest(vcpu, gpa, size, value):
        return False
    kvm_mmu_pte_write(vcpu, gpa, size)
    return True


def _detect_write_flooding(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether the page is written so often that it is likely no table any more."""
    if not kvm.sync.counts_floods(kvm, sp):
        return False
    sp.write_flooding_count += 1
    return sp.write_flooding_count >= WRITE_FLOODING_LIMIT


def _detect_write_misaligned(sp: ShadowPage, gpa: int, size: int) -> bool:
    """Whether the write is not one whole entry; one byte at an entry's start passes (``clear_bit``)."""
    offset = gpa & 0xFFF
    pte_size = 4 if sp.has_4_byte_gpte else 8
    if not offset & (pte_size - 1) and size == 1:
        return False
    return bool((offset ^ (offset + size - 1)) & ~(pte_size - 1)) or size < 4


def get_written_sptes(sp: ShadowPage, gpa: int) -> range | None:
    """Return the host-physical addresses of the sptes that shadow the entry at `gpa`.

    A page may shadow another quadrant of the table: None. A 4-byte directory
    entry is shadowed by two entries.
    """
    offset = gpa & 0xFFF
    count = 1
    if sp.has_4_byte_gpte:
        offset <<= 1
        if sp.level == PT32_ROOT_LEVEL:
            offset = (offset & ~7) << 1
            count = 2
        if offset >> 12 != sp.quadrant:
            return None
        offset &= 0xFFF
    first = (sp.frame * SPTE_ENT_PER_PAGE + offset // 8) << 3
    return range(first, first + 8 * count, 8)


def kvm_mmu_pte_write(vcpu: Vcpu, gpa: int, size: int) -> None:
    """Follow an emulated write of `size` bytes at `gpa` in every page that shadows it."""
    kvm = vcpu.kvm
    trace(kvm, ev.kvm_mmu_pte_write, gpa, size)
    if not kvm.indirect_shadow_pages:
        return
    gfn = gpa >> 12
    if vcpu.cr4 & X86_CR4_PAE and size == 4:
        # Half of an 8-byte entry: take it as a write of the whole.
        gpa &= ~7
        size = 8
    gentry = (kvm_read_guest_atomic(vcpu, gpa, size) or 0) if size in (4, 8) else 0
    kvm.stat["mmu_pte_write"] += 1
    invalid: InvalidList = []
    flush = False
    pages = gfn_sps_with_gptes(kvm, gfn)
    kvm.sync_stat["emulated_writes"] += bool(pages)
    for sp in pages:
        if sp.invalid:
            continue
        flooded = _detect_write_flooding(kvm, sp) and kvm.sync.may_zap(kvm, sp)
        if _detect_write_misaligned(sp, gpa, size) or flooded:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid)
            kvm.stat["mmu_flooded"] += 1
            continue
        for sptep in get_written_sptes(sp, gpa) or ():
            entry = spte_at(kvm, sptep)
            mmu_page_zap_pte(kvm, sp, sptep, None)
            if gentry and sp.level != 1:
                kvm.stat["mmu_pde_zapped"] += 1
            flush |= is_shadow_present_pte(entry)
    kvm_mmu_remote_flush_or_zap(kvm, invalid, flush)
