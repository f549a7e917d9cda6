"""The way of a page fault that the processor reported.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_page_fault``,
``handle_mmio_page_fault``), ``mmu_internal.h`` (``kvm_mmu_do_page_fault``).
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab import events as ev
from mmulab.kvm.direct import kvm_tdp_page_fault, nonpaging_page_fault
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.mmio import check_mmio_spte, mmio_info_in_cache, vcpu_cache_mmio_info
from mmulab.kvm.paging_tmpl import page_fault
from mmulab.kvm.set_spte import PageFault, RetPf
from mmulab.kvm.shadow_page import shadow_path
from mmulab.kvm.spte import get_mmio_spte_access, get_mmio_spte_gfn, is_mmio_spte
from mmulab.kvm.state import Vcpu
from mmulab.kvm.zap import kvm_mmu_unprotect_page
from mmulab.x86.insn import Instruction
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

PFERR_NESTED_GUEST_PAGE = PFERR_GUEST_PAGE_MASK | PFERR_WRITE_MASK | PFERR_PRESENT_MASK
"""A guest table that the processor wanted to write is write-protected."""

HANDLERS: dict[str, Callable[[Vcpu, PageFault], RetPf]] = {
    "nonpaging": nonpaging_page_fault,
    "tdp": kvm_tdp_page_fault,
    "paging32": page_fault,
    "paging64": page_fault,
    "ept": page_fault,
}


def kvm_mmu_page_fault(vcpu: Vcpu, addr: int, error_code: int, insn: Instruction) -> Verdict:
    """Handle a page fault that the processor took on the tables in use.

    Parameters
    ----------
    addr : int
        CR2.
    error_code : int
        The processor's.
    insn : Instruction
        What the vCPU was executing, in case it must be emulated.
    """
    direct = vcpu.mmu.direct
    emulation_type = EmulationType(page_fault=True)
    ret = RetPf.INVALID
    if error_code & PFERR_RSVD_MASK:
        ret = handle_mmio_page_fault(vcpu, addr, direct)
        if ret == RetPf.EMULATE:
            return x86_emulate_instruction(vcpu, addr, emulation_type, insn)
    if ret == RetPf.INVALID:
        ret = kvm_mmu_do_page_fault(vcpu, addr, error_code & 0xFFFFFFFF, emulation_type)
    if ret != RetPf.EMULATE:
        return Verdict.RESUME
    if direct and error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        kvm_mmu_unprotect_page(vcpu.kvm, addr >> 12)
        return Verdict.RESUME
    emulation_type.allow_retry = not mmio_info_in_cache(vcpu, addr, direct) and not vcpu.guest_mode
    return x86_emulate_instruction(vcpu, addr, emulation_type, insn)


def kvm_mmu_do_page_fault(
    vcpu: Vcpu, addr: int, error_code: int, emulation_type: EmulationType
) -> RetPf:
    """Call the context's handler, and count."""
    fault = PageFault(
        addr=addr,
        error_code=error_code,
        exec=bool(error_code & PFERR_FETCH_MASK),
        write=bool(error_code & PFERR_WRITE_MASK),
        present=bool(error_code & PFERR_PRESENT_MASK),
        rsvd=bool(error_code & PFERR_RSVD_MASK),
        user=bool(error_code & PFERR_USER_MASK),
        is_tdp=vcpu.mmu.kind == "tdp",
        nx_huge_page_workaround_enabled=vcpu.kvm.config.nx_huge_pages,
    )
    stat = vcpu.stat
    stat["pf_taken"] += 1
    ret = HANDLERS[vcpu.mmu.kind](vcpu, fault)
    emulation_type.write_pf_to_sp = fault.write_fault_to_shadow_pgtable
    if ret == RetPf.FIXED:
        stat["pf_fixed"] += 1
    elif ret == RetPf.EMULATE:
        stat["pf_emulate"] += 1
    elif ret == RetPf.SPURIOUS:
        stat["pf_spurious"] += 1
    return ret


def handle_mmio_page_fault(vcpu: Vcpu, addr: int, direct: bool) -> RetPf:
    """Handle a fault on reserved bits: EMULATE if the entry is a fresh MMIO entry."""
    if mmio_info_in_cache(vcpu, addr, direct):
        return RetPf.EMULATE
    path = shadow_path(vcpu, addr)
    spte = path[-1][2] if path else 0
    fmt = vcpu.kvm.fmt
    if not is_mmio_spte(fmt, spte):
        return RetPf.RETRY
    gfn, access = get_mmio_spte_gfn(fmt, spte), get_mmio_spte_access(fmt, spte)
    if not check_mmio_spte(vcpu, spte):
        return RetPf.INVALID
    gva = 0 if direct else addr
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(ev.handle_mmio_page_fault(gva, gfn, access))
    vcpu_cache_mmio_info(vcpu, gva, gfn, access)
    return RetPf.EMULATE
