"""Control registers, and what a vCPU does before it enters the guest.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_set_cr0``, ``kvm_set_cr3``,
``kvm_set_cr4``, ``set_efer``, ``load_pdptrs``, ``__set_sregs``, ``vcpu_enter_guest``,
``kvm_vcpu_ioctl_x86_set_xsave``).
"""

from __future__ import annotations

import errno
from errno import EINVAL
from typing import NoReturn

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.context import kvm_init_mmu
from mmulab.kvm.dirty_ring import DirtyRingFullError
from mmulab.kvm.flush import flush_tlb, tell_entry
from mmulab.kvm.guest_walk import read_pdptrs
from mmulab.kvm.hw_cr4 import set_cr0, set_cr4
from mmulab.kvm.mmu import INVALID_PAGE, KVM_MMU_ROOT_CURRENT, root_previous
from mmulab.kvm.roots import (
    kvm_mmu_free_obsolete_roots,
    kvm_mmu_free_roots,
    kvm_mmu_load,
    kvm_mmu_new_pgd,
    kvm_mmu_reset_context,
    kvm_mmu_sync_prev_roots,
    kvm_mmu_sync_roots,
    kvm_mmu_unload,
    root_pages,
)
from mmulab.kvm.smm import enter_smm
from mmulab.kvm.sregs import (
    invalid_sregs,
    kvm_is_valid_cr0,
    kvm_is_valid_cr4,
    kvm_valid_efer,
    unknown_efer,
)
from mmulab.kvm.state import KvmRunError, Request, Vcpu
from mmulab.kvm.svm.load_mmu_pgd import kvm_mmu_load_pgd
from mmulab.kvm.trace import trace
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SVME,
    X86_CR0_ET,
    X86_CR0_PDPTR_BITS,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR3_PCID_MASK,
    X86_CR3_PCID_NOFLUSH,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
    X86_CR4_PDPTR_BITS,
    X86_CR4_PGE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)

KVM_MMU_CR0_ROLE_BITS = X86_CR0_PG | X86_CR0_WP
KVM_MMU_CR4_ROLE_BITS = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_LA57 | X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PKE
KVM_MMU_EFER_ROLE_BITS = EFER_LME | EFER_NX
CR0_BITS = 0xE005003F
MAX_ENTRIES = 64
"""Tries to enter the guest; beyond, a signal to the VMM alone ends ``KVM_RUN``."""


class GeneralProtectionError(Exception):
    """The guest's write is not allowed: #GP(0)."""


def is_paging(vcpu: Vcpu) -> bool:
    """Whether CR0.PG is set."""
    return vcpu.cr0 & X86_CR0_PG != 0


def is_long_mode(vcpu: Vcpu) -> bool:
    """Whether EFER.LMA is set."""
    return vcpu.efer & EFER_LMA != 0


def is_pae_paging(vcpu: Vcpu) -> bool:
    """Whether the guest uses PAE paging."""
    return not is_long_mode(vcpu) and vcpu.cr4 & X86_CR4_PAE != 0 and is_paging(vcpu)


def load_pdptrs(vcpu: Vcpu, cr3: int) -> bool:
    """Load PAE's four PDPTEs; False if the guest's are not valid."""
    pdptrs = read_pdptrs(vcpu, cr3)
    if pdptrs is None:
        return False
    mmu = vcpu.walk_mmu
    if not vcpu.kvm.config.tdp and mmu.pdptrs != pdptrs:
        kvm_mmu_free_roots(vcpu.kvm, mmu, KVM_MMU_ROOT_CURRENT)
    mmu.pdptrs = pdptrs
    vcpu.pdptrs_available = True
    vcpu.requests |= Request.LOAD_MMU_PGD
    return True


def kvm_set_cr0(vcpu: Vcpu, cr0: int, *, cs_l: bool) -> None:
    """Load CR0. `cs_l`: the code segment is a 64-bit one.

    Raises
    ------
    GeneralProtectionError
    """
    old = vcpu.cr0
    if not kvm_is_valid_cr0(vcpu, cr0):
        raise GeneralProtectionError
    cr0 = (cr0 | X86_CR0_ET) & CR0_BITS
    pae = bool(vcpu.cr4 & X86_CR4_PAE)
    if vcpu.efer & EFER_LME:
        if not is_paging(vcpu) and cr0 & X86_CR0_PG and (not pae or cs_l):
            raise GeneralProtectionError
    elif cr0 & X86_CR0_PG and pae and (cr0 ^ old) & X86_CR0_PDPTR_BITS and not load_pdptrs(vcpu, vcpu.cr3):
        raise GeneralProtectionError
    if not cr0 & X86_CR0_PG and ((is_long_mode(vcpu) and cs_l) or vcpu.cr4 & X86_CR4_PCIDE):
        raise GeneralProtectionError
    set_cr0(vcpu, cr0)
    _sync_after_control_write(vcpu)
    if vcpu.efer & EFER_LME:
        vcpu.efer = vcpu.efer | EFER_LMA if cr0 & X86_CR0_PG else vcpu.efer & ~EFER_LMA
    only_wp = cr0 ^ old == X86_CR0_WP
    if only_wp and not cr0 & X86_CR0_PG and vcpu.kvm.behaviours.cr0_wp_needs_paging:
        return
    if vcpu.kvm.config.tdp and only_wp:
        kvm_init_mmu(vcpu)
        return
    if (cr0 ^ old) & X86_CR0_PG and not cr0 & X86_CR0_PG:
        vcpu.requests |= Request.TLB_FLUSH_GUEST
    if (cr0 ^ old) & KVM_MMU_CR0_ROLE_BITS:
        kvm_mmu_reset_context(vcpu)


def _sync_after_control_write(vcpu: Vcpu) -> None:
    """Let the sync policy follow a write to CR0 or CR4, while the context is still the one before."""
    mmu = vcpu.mmu
    if not mmu.direct and mmu.root_hpa != INVALID_PAGE:
        vcpu.kvm.sync.control_written(vcpu, root_pages(vcpu.kvm, mmu))


def kvm_set_cr4(vcpu: Vcpu, cr4: int) -> None:
    """Load CR4.

    Raises
    ------
    GeneralProtectionError
    """
    old = vcpu.cr4
    if not kvm_is_valid_cr4(vcpu, cr4):
        raise GeneralProtectionError
    if is_long_mode(vcpu):
        if not cr4 & X86_CR4_PAE or (cr4 ^ old) & X86_CR4_LA57:
            raise GeneralProtectionError
    elif (
        is_paging(vcpu)
        and cr4 & X86_CR4_PAE
        and (cr4 ^ old) & X86_CR4_PDPTR_BITS
        and not load_pdptrs(vcpu, vcpu.cr3)
    ):
        raise GeneralProtectionError
    enables_pcid = cr4 & X86_CR4_PCIDE and not old & X86_CR4_PCIDE
    if enables_pcid and (vcpu.cr3 & X86_CR3_PCID_MASK or not is_long_mode(vcpu)):
        raise GeneralProtectionError
    set_cr4(vcpu, cr4)
    _sync_after_control_write(vcpu)
    if (cr4 ^ old) & KVM_MMU_CR4_ROLE_BITS:
        kvm_mmu_reset_context(vcpu)
    if not vcpu.kvm.config.tdp and enables_pcid:
        kvm_mmu_unload(vcpu)
    if (cr4 ^ old) & X86_CR4_PGE or (old & X86_CR4_PCIDE and not cr4 & X86_CR4_PCIDE):
        vcpu.requests |= Request.TLB_FLUSH_GUEST
    elif (cr4 ^ old) & X86_CR4_PAE or (cr4 & X86_CR4_SMEP and not old & X86_CR4_SMEP):
        vcpu.requests |= Request.TLB_FLUSH_CURRENT


def nested_load_cr3(vcpu: Vcpu, cr3: int, *, nested_tdp: bool, reload_pdptrs: bool = True) -> bool:
    """Load CR3 at a change between L1 and L2; False if it is not legal.

    The tables that it points to matter to KVM only if L1 has none of its own for
    L2 (`nested_tdp`). RSM back to L2 loads CR3 again, and the PDPTEs only then.

    Source: ``nested_svm_load_cr3``, ``nested_vmx_load_cr3``.
    """
    if cr3 >> vcpu.cpu.maxphyaddr:
        return False
    if reload_pdptrs and not nested_tdp and is_pae_paging(vcpu) and not load_pdptrs(vcpu, cr3):
        return False
    vcpu.cr3 = cr3
    kvm_init_mmu(vcpu)
    if not nested_tdp:
        kvm_mmu_new_pgd(vcpu, cr3)
    return True


def kvm_get_pcid(vcpu: Vcpu, cr3: int) -> int:
    """Return the PCID in a CR3 value, 0 while PCIDs are off."""
    return cr3 & X86_CR3_PCID_MASK if vcpu.cr4 & X86_CR4_PCIDE else 0


def kvm_invalidate_pcid(vcpu: Vcpu, pcid: int) -> None:
    """Flush the guest's translations of one PCID: sync the current root, free kept ones."""
    if vcpu.kvm.config.tdp:
        vcpu.requests |= Request.TLB_FLUSH_GUEST
        return
    mmu = vcpu.mmu
    if kvm_get_pcid(vcpu, vcpu.cr3) == pcid:
        vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
    if not vcpu.cr4 & X86_CR4_PCIDE:
        return
    roots = 0
    for i, (pgd, _) in enumerate(mmu.prev_roots):
        if kvm_get_pcid(vcpu, pgd) == pcid:
            roots |= root_previous(i)
    kvm_mmu_free_roots(vcpu.kvm, mmu, roots)


def kvm_set_cr3(vcpu: Vcpu, cr3: int) -> None:
    """Load CR3: take another root, and flush unless bit 63 says not to.

    Raises
    ------
    GeneralProtectionError
    """
    skip_flush, pcid = False, 0
    if vcpu.cr4 & X86_CR4_PCIDE:
        skip_flush = bool(cr3 & X86_CR3_PCID_NOFLUSH)
        cr3 &= ~X86_CR3_PCID_NOFLUSH
        pcid = cr3 & X86_CR3_PCID_MASK
    if cr3 != vcpu.cr3 or is_pae_paging(vcpu):
        if cr3 >> vcpu.cpu.maxphyaddr:
            raise GeneralProtectionError
        if is_pae_paging(vcpu) and not load_pdptrs(vcpu, cr3):
            raise GeneralProtectionError
        if cr3 != vcpu.cr3:
            kvm_mmu_new_pgd(vcpu, cr3)
        vcpu.cr3 = cr3
    if not skip_flush:
        vcpu.cr3_written = True
        kvm_invalidate_pcid(vcpu, pcid)


def set_efer(vcpu: Vcpu, efer: int) -> None:
    """Load EFER from the guest; LMA stays as it is.

    Raises
    ------
    GeneralProtectionError
    InputError
        L2 turns SVM off.
    """
    old = vcpu.efer
    valid = kvm_valid_efer(vcpu.kvm.config, vcpu.cpu, efer)
    if not valid or (is_paging(vcpu) and (old ^ efer) & EFER_LME):
        raise GeneralProtectionError
    _refuse_leaving_svm(vcpu, efer)
    vcpu.efer = efer & ~EFER_LMA | old & EFER_LMA
    vcpu.gif |= not efer & EFER_SVME
    if (vcpu.efer ^ old) & KVM_MMU_EFER_ROLE_BITS:
        kvm_mmu_reset_context(vcpu)


def _refuse_leaving_svm(vcpu: Vcpu, efer: int) -> None:
    """Refuse to clear EFER.SVME while L2 runs: KVM drops L2 there and then (``svm_leave_nested``).

    Raises
    ------
    InputError
    """
    if vcpu.guest_mode and vcpu.kvm.config.vendor == "amd" and not efer & EFER_SVME:
        raise InputError(f"EFER {efer:x} clears SVME while L2 runs, which is not modelled")


def set_sregs(vcpu: Vcpu, cr0: int, cr3: int, cr4: int, efer: int) -> int | None:
    """Load all of them from the VMM (``KVM_SET_SREGS``); with PAE paging the MMU is always reset.

    Returns
    -------
    int or None
        A negative errno if they cannot be, with nothing loaded. None, not 0, if they are:
        that is how recordings have it.

    Raises
    ------
    InputError
        KVM takes what no processor does: VM entry fails then, which is not modelled.
    """
    valid = kvm_is_valid_cr0(vcpu, cr0) and kvm_is_valid_cr4(vcpu, cr4)
    if not valid or invalid_sregs(vcpu.kvm.config, vcpu.cpu, cr0, cr3, cr4, efer):
        return -EINVAL
    if vcpu.kvm.behaviours.sregs_check_efer and not kvm_valid_efer(vcpu.kvm.config, vcpu.cpu, efer):
        return -EINVAL
    unknown = unknown_efer(vcpu.kvm.config, efer)
    if unknown:
        raise InputError(unknown)
    _refuse_leaving_svm(vcpu, efer)
    changed = (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) != (cr0, cr3, cr4, efer)
    vcpu.cr3, vcpu.efer, vcpu.cr0 = cr3, efer, cr0
    set_cr4(vcpu, cr4)
    _sync_after_control_write(vcpu)
    vcpu.gif |= not efer & EFER_SVME
    if is_pae_paging(vcpu):
        load_pdptrs(vcpu, cr3)
        changed = True
    if changed:
        kvm_mmu_reset_context(vcpu)
        if vcpu.kvm.behaviours.sregs_flush_guest:
            vcpu.requests |= Request.TLB_FLUSH_GUEST
    return None


def kvm_vcpu_ioctl_x86_set_xsave(vcpu: Vcpu, pkru: int) -> int:
    """Give the vCPU another PKRU, which acts while CR4.PKE is set (``kvm_load_guest_xsave_state``).

    ``supported_xcr0`` has it wherever the host has, with or without two-dimensional
    paging and whatever the guest's CPUID says. The MMU has no part in it.
    """
    vcpu.pkru = pkru
    return 0


def serve_requests(vcpu: Vcpu) -> bool:
    """Do what was put off until entry; False if the vCPU shuts down (triple fault).

    Raises
    ------
    KvmRunError
        The VM is dead.
    """
    requests = vcpu.requests
    if requests & Request.VM_DEAD:
        raise KvmRunError(errno.EIO)
    if requests & Request.MMU_FREE_OBSOLETE_ROOTS:
        vcpu.requests &= ~Request.MMU_FREE_OBSOLETE_ROOTS
        kvm_mmu_free_obsolete_roots(vcpu)
    if vcpu.requests & Request.MMU_SYNC:
        vcpu.requests &= ~Request.MMU_SYNC
        kvm_mmu_sync_roots(vcpu)
    if vcpu.requests & Request.LOAD_MMU_PGD:
        vcpu.requests &= ~Request.LOAD_MMU_PGD
        kvm_mmu_load_pgd(vcpu)
    if vcpu.requests & Request.TLB_FLUSH:
        vcpu.requests &= ~(Request.TLB_FLUSH | Request.TLB_FLUSH_CURRENT)
        vcpu.stat["tlb_flush"] += 1
        flush_tlb(vcpu, Request.TLB_FLUSH)
    kvm_service_local_tlb_flush_requests(vcpu)
    if vcpu.requests & Request.TRIPLE_FAULT and not (
        vcpu.nested is not None and vcpu.nested.triple_fault(vcpu)
    ):
        return False
    if vcpu.requests & Request.SMI:
        vcpu.requests &= ~Request.SMI
        vcpu.smi_pending = True
    return True


def kvm_service_local_tlb_flush_requests(vcpu: Vcpu) -> None:
    """Flush for the current context; a flush for the guest syncs all its roots first."""
    if vcpu.requests & Request.TLB_FLUSH_CURRENT:
        vcpu.requests &= ~Request.TLB_FLUSH_CURRENT
        vcpu.stat["tlb_flush"] += 1
        flush_tlb(vcpu, Request.TLB_FLUSH_CURRENT)
    if vcpu.requests & Request.TLB_FLUSH_GUEST:
        vcpu.requests &= ~Request.TLB_FLUSH_GUEST
        vcpu.stat["tlb_flush"] += 1
        if not vcpu.kvm.config.tdp:
            kvm_mmu_sync_roots(vcpu, everything=True)
            kvm_mmu_sync_prev_roots(vcpu)
        flush_tlb(vcpu, Request.TLB_FLUSH_GUEST)


def vcpu_enter_guest(vcpu: Vcpu, *, reinject: bool) -> bool:
    """Prepare an entry: requests, the queued exception or an SMI, a root.

    Parameters
    ----------
    reinject : bool
        The queued exception was on its way when the vCPU left the guest.

    Returns
    -------
    bool
        False if the vCPU shuts down instead.

    Raises
    ------
    DirtyRingFullError, KvmRunError
    """
    for _ in range(MAX_ENTRIES):
        if vcpu.dirty_ring is not None and vcpu.dirty_ring.soft_full():
            _dirty_ring_exit(vcpu)
        if vcpu.requests and not serve_requests(vcpu):
            return False
        reinject = _inject_events(vcpu, reinject)
        if vcpu.mmu.root_hpa == INVALID_PAGE:
            kvm_mmu_load(vcpu)
            kvm_mmu_load_pgd(vcpu)
        # What was asked for meanwhile is served before the guest runs (kvm_vcpu_exit_request).
        if not vcpu.requests and vcpu.mmu.root_hpa != INVALID_PAGE:
            vcpu.pdptrs_available = False
            if vcpu.guest_mode:
                vcpu.vmx.nested_run_pending = False
            tell_entry(vcpu)
            if vcpu.nested is None or not vcpu.nested.run_pending:
                return True
            vcpu.nested.run_pending = False
            if not vcpu.smi_pending:
                return True
            # L2 is left at once, its entry being complete (req_immediate_exit), for the SMI to be taken.
    raise KvmRunError(errno.EINTR)


def _inject_events(vcpu: Vcpu, reinject: bool) -> bool:
    """Inject the queued exception unless L1 gets it, or take an SMI (``kvm_check_and_inject_events``).

    Where L1 wants the exception but its VMCB is gone, KVM warns that it is still
    pending, once before and once after it injects the #GP that L2 gets in its place.

    Returns
    -------
    bool
        An exception is on its way.
    """
    kvm, nested = vcpu.kvm, vcpu.nested
    wanted = (
        nested is not None and not reinject and vcpu.exception is not None and nested.exception_handled(vcpu)
    )
    pending = wanted and vcpu.guest_mode
    heard = pending or kvm.assertion_counts is not None
    if heard:
        warn_on(kvm, "x86.c:kvm_check_and_inject_events:vmexit_pending", pending)
    if vcpu.exception is None or (wanted and not pending):
        if vcpu.smi_pending:
            _take_smi(vcpu)
    else:
        _trace_injection(vcpu, reinject)
        reinject = True
    if heard:
        warn_on(kvm, "x86.c:kvm_check_and_inject_events:new_exception", pending)
    return reinject


def _take_smi(vcpu: Vcpu) -> None:
    """Go to SMM for the pending SMI if nothing blocks it; L1 may want it for itself (``svm_smi_allowed``).

    L2 runs first if it was just entered.
    """
    if vcpu.smm or not vcpu.gif:
        return
    nested = vcpu.nested
    if nested is not None and (nested.run_pending or nested.smi_handled(vcpu)):
        return
    vcpu.smi_pending = False
    enter_smm(vcpu)


def _dirty_ring_exit(vcpu: Vcpu) -> NoReturn:
    trace(vcpu.kvm, ev.kvm_dirty_ring_exit, vcpu.id)
    raise DirtyRingFullError


def _trace_injection(vcpu: Vcpu, reinject: bool) -> None:
    if vcpu.exception is not None:
        vector, error_code, _ = vcpu.exception
        trace(vcpu.kvm, ev.kvm_inj_exception, vector, error_code, reinject)
