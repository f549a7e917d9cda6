"""The way of a page fault that the processor reported.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_page_fault``,
``handle_mmio_page_fault``), ``mmu_internal.h`` (``kvm_mmu_do_page_fault``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from mmulab import events as ev
from mmulab.kvm.assertions import kvm_bug_on, warn_on
from mmulab.kvm.direct import kvm_tdp_page_fault, nonpaging_page_fault
from mmulab.kvm.emulate import (
    EmulationType,
    Verdict,
    kvm_mmu_unprotect_gfn_and_retry,
    x86_emulate_instruction,
)
from mmulab.kvm.mmio import check_mmio_spte, mmio_info_in_cache, vcpu_cache_mmio_info
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.mmu_internal import PageFault, RetPf
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled
from mmulab.kvm.paging_tmpl import page_fault
from mmulab.kvm.shadow_page import shadow_path
from mmulab.kvm.spte import get_mmio_spte_access, get_mmio_spte_gfn, is_mmio_spte
from mmulab.kvm.state import KvmRunError, Vcpu
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import kvm_mmu_unprotect_page
from mmulab.kvm.zero_check import any_rsvd_spte, zero_check
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

_COUNTED = {RetPf.FIXED: "pf_fixed", RetPf.EMULATE: "pf_emulate", RetPf.SPURIOUS: "pf_spurious"}
HANDLERS: dict[str, Callable[[Vcpu, PageFault], RetPf]] = {
    "nonpaging": nonpaging_page_fault,
    "tdp": kvm_tdp_page_fault,
    "paging32": page_fault,
    "paging64": page_fault,
    "ept": page_fault,
}


def kvm_mmu_page_fault(
    vcpu: Vcpu, addr: int, error_code: int, insn: Instruction, *, reinjection: bool = False
) -> Verdict:
    """Handle a page fault that the processor took on the tables in use.

    Parameters
    ----------
    addr : int
        CR2.
    error_code : int
        The processor's.
    insn : Instruction
        What the vCPU was executing, in case it must be emulated.
    reinjection : bool
        It came while an event was being delivered.

    Raises
    ------
    KvmRunError
        The MMU finds its own state wrong.
    """
    if warn_on(vcpu.kvm, "mmu.c:kvm_mmu_page_fault:root", vcpu.mmu.root_hpa == INVALID_PAGE):
        return Verdict.RESUME
    direct = vcpu.mmu.direct
    emulation_type = EmulationType(page_fault=True)
    ret = RetPf.INVALID
    if error_code & PFERR_RSVD_MASK:
        ret = handle_mmio_page_fault(vcpu, addr, direct)
        if ret == RetPf.EMULATE:
            return x86_emulate_instruction(vcpu, addr, emulation_type, insn)
    if ret == RetPf.INVALID:
        known = error_code if vcpu.kvm.behaviours.error_code_has_64_bits else error_code & 0xFFFFFFFF
        ret = kvm_mmu_do_page_fault(vcpu, addr, known, emulation_type)
        if kvm_bug_on(vcpu.kvm, "mmu.c:kvm_mmu_page_fault:invalid", ret == RetPf.INVALID):
            raise KvmRunError(errno.EIO)
    handle = (
        kvm_mmu_write_protect_fault
        if vcpu.kvm.behaviours.retry_only_if_write_protected
        else _unprotect_or_allow_retry
    )
    ret = handle(vcpu, addr, error_code, ret, emulation_type, reinjection)
    if ret != RetPf.EMULATE:
        return Verdict.RESUME
    return x86_emulate_instruction(vcpu, addr, emulation_type, insn)


def _unprotect_or_allow_retry(
    vcpu: Vcpu, addr: int, error_code: int, ret: RetPf, kind: EmulationType, reinjection: bool
) -> RetPf:
    """Let the guest write its table, or allow the emulator to, whatever made it necessary (6.1)."""
    direct = vcpu.mmu.direct
    unprotects = not vcpu.kvm.behaviours.unprotect_on_reinjection
    reinjects = unprotects and reinjection and not direct and ret == RetPf.WRITE_PROTECTED
    if reinjects and kvm_mmu_unprotect_gfn_and_retry(vcpu, addr):
        return RetPf.RETRY
    if ret == RetPf.WRITE_PROTECTED:
        ret = RetPf.EMULATE
    _count(vcpu, ret)
    if ret != RetPf.EMULATE:
        return ret
    if direct and error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE:
        kvm_mmu_unprotect_page(vcpu.kvm, addr >> 12)
        return RetPf.RETRY
    kind.allow_retry = not mmio_info_in_cache(vcpu, addr, direct) and not vcpu.guest_mode
    return ret


def kvm_mmu_write_protect_fault(
    vcpu: Vcpu, addr: int, error_code: int, ret: RetPf, kind: EmulationType, reinjection: bool
) -> RetPf:
    """Let the guest write its table, or allow the emulator to, if the fault hit one (6.12)."""
    if ret == RetPf.WRITE_PROTECTED:
        ret = _write_protected(vcpu, addr, error_code, kind, reinjection)
    _count(vcpu, ret)
    return ret


def _write_protected(vcpu: Vcpu, addr: int, error_code: int, kind: EmulationType, reinjection: bool) -> RetPf:
    if (vcpu.last_retry_eip, vcpu.last_retry_addr) == (vcpu.rip, addr):
        return RetPf.EMULATE
    vcpu.last_retry_eip = vcpu.last_retry_addr = 0
    direct = vcpu.mmu.direct
    table = error_code & PFERR_NESTED_GUEST_PAGE == PFERR_NESTED_GUEST_PAGE
    reinjects = reinjection and not vcpu.kvm.behaviours.unprotect_on_reinjection
    if (table if direct else reinjects) and kvm_mmu_unprotect_gfn_and_retry(vcpu, addr):
        return RetPf.RETRY
    kind.allow_retry = not vcpu.guest_mode
    return RetPf.EMULATE


def _count(vcpu: Vcpu, ret: RetPf) -> None:
    name = _COUNTED.get(ret)
    if name is not None:
        vcpu.stat[name] += 1


def kvm_mmu_do_page_fault(vcpu: Vcpu, addr: int, error_code: int, emulation_type: EmulationType) -> RetPf:
    """Call the context's handler."""
    fault = PageFault(
        addr=addr,
        error_code=error_code,
        exec=bool(error_code & PFERR_FETCH_MASK),
        write=bool(error_code & PFERR_WRITE_MASK),
        present=bool(error_code & PFERR_PRESENT_MASK),
        rsvd=bool(error_code & PFERR_RSVD_MASK),
        user=bool(error_code & PFERR_USER_MASK),
        is_tdp=vcpu.mmu.kind == "tdp",
        nx_huge_page_workaround_enabled=is_nx_huge_page_enabled(vcpu.kvm),
    )
    vcpu.stat["pf_taken"] += 1
    stat = vcpu.kvm.sync_stat
    unsyncs = stat["unsyncs"]
    ret = HANDLERS[vcpu.mmu.kind](vcpu, fault)
    if ret == RetPf.WRITE_PROTECTED or stat["unsyncs"] != unsyncs:
        stat["write_protect_faults"] += 1
    emulation_type.write_pf_to_sp = fault.write_fault_to_shadow_pgtable
    return ret


def handle_mmio_page_fault(vcpu: Vcpu, addr: int, direct: bool) -> RetPf:
    """Handle a fault on reserved bits: EMULATE if the entry is a fresh MMIO entry."""
    if mmio_info_in_cache(vcpu, addr, direct):
        return RetPf.EMULATE
    path = shadow_path(vcpu, addr)
    if warn_on(vcpu.kvm, "mmu.c:handle_mmio_page_fault:reserved", any_rsvd_spte(zero_check(vcpu), path)):
        raise KvmRunError(errno.EINVAL)
    spte = path[-1][2] if path else 0
    fmt = vcpu.kvm.fmt
    if not is_mmio_spte(fmt, spte):
        return RetPf.RETRY
    gfn, access = get_mmio_spte_gfn(fmt, spte), get_mmio_spte_access(fmt, spte)
    if not check_mmio_spte(vcpu, spte):
        return RetPf.INVALID
    gva = 0 if direct else addr
    trace(vcpu.kvm, ev.handle_mmio_page_fault, gva, gfn, access)
    vcpu_cache_mmio_info(vcpu, gva, gfn, access)
    return RetPf.EMULATE
