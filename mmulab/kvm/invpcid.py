"""INVPCID: forgetting translations by PCID.

KVM sees the instruction while it shadows the guest's tables. With two-dimensional
paging the processor executes it alone; SVM then intercepts it only to take it
from a guest whose CPUID has no INVPCID, and VMX leaves that to the processor.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_handle_invpcid``), ``mmu/mmu.c``
(``kvm_mmu_invpcid_gva``), ``svm/svm.c`` (``invpcid_interception``,
``svm_recalc_instruction_intercepts``), ``vmx/vmx.c`` (``handle_invpcid``).
"""

from __future__ import annotations

from mmulab.kvm.emulate import Verdict
from mmulab.kvm.inject import GP_VECTOR, UD_VECTOR, kvm_queue_exception
from mmulab.kvm.invlpg import invlpg
from mmulab.kvm.mmu import INVALID_PAGE, SHADOWING
from mmulab.kvm.operand import NoOperandError, read_operand
from mmulab.kvm.state import Request, Vcpu
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_INVPCID
from mmulab.kvm.x86 import kvm_get_pcid, kvm_invalidate_pcid
from mmulab.x86.regs import X86_CR4_LA57, X86_CR4_PCIDE

INVPCID_TYPE_INDIV_ADDR = 0
INVPCID_TYPE_SINGLE_CTXT = 1
INVPCID_TYPE_ALL_INCL_GLOBAL = 2
INVPCID_TYPE_ALL_NON_GLOBAL = 3


def invpcid_is_undefined(vcpu: Vcpu) -> bool:
    """Whether the processor itself, or KVM for it, meets the instruction with #UD.

    L2 of a VMX guest has it only if L1 turned it on (``prepare_vmcs02_early``).
    """
    if not vcpu.cpu.invpcid:
        return True
    return (
        vcpu.kvm.config.vendor == "intel"
        and vcpu.guest_mode
        and not vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_INVPCID)
    )


def invpcid_is_allowed(vcpu: Vcpu, kind: int, pcid: int, gla: int) -> bool:
    """Whether type and descriptor are valid; if not, #GP(0) (SDM 2, INVPCID).

    Canonical means by CR4.LA57, whatever the mode (``is_noncanonical_address``).
    """
    if pcid >> 12 or kind > INVPCID_TYPE_ALL_NON_GLOBAL:
        return False
    if kind in (INVPCID_TYPE_INDIV_ADDR, INVPCID_TYPE_SINGLE_CTXT) and pcid and not vcpu.cr4 & X86_CR4_PCIDE:
        return False
    sign_bit = 56 if vcpu.cr4 & X86_CR4_LA57 else 47
    canonical = gla >> sign_bit in (0, (1 << 64 - sign_bit) - 1)
    return kind != INVPCID_TYPE_INDIV_ADDR or canonical


def kvm_handle_invpcid(vcpu: Vcpu, kind: int, gva: int) -> Verdict:
    """Execute an intercepted INVPCID of type `kind` whose descriptor lies at `gva`.

    Shadow sptes are not told apart by G, so a flush that spares global pages
    spares none.
    """
    if invpcid_is_undefined(vcpu):
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    try:
        pcid, gla = read_operand(vcpu, gva, 2)
    except NoOperandError as none:
        return none.verdict
    if not invpcid_is_allowed(vcpu, kind, pcid, gla):
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    if kind == INVPCID_TYPE_INDIV_ADDR:
        kvm_mmu_invpcid_gva(vcpu, gla, pcid)
    elif kind == INVPCID_TYPE_SINGLE_CTXT:
        kvm_invalidate_pcid(vcpu, pcid)
    else:
        vcpu.requests |= Request.TLB_FLUSH_GUEST
    return Verdict.DONE


def kvm_mmu_invpcid_gva(vcpu: Vcpu, gva: int, pcid: int) -> None:
    """Refresh `gva` below the roots of one PCID; a root that is not kept is synced when it is taken."""
    mmu = vcpu.mmu
    if mmu.kind in SHADOWING:
        if pcid == kvm_get_pcid(vcpu, vcpu.cr3):
            invlpg(vcpu, gva, mmu.root_hpa)
        for pgd, hpa in mmu.prev_roots:
            if hpa != INVALID_PAGE and pcid == kvm_get_pcid(vcpu, pgd):
                invlpg(vcpu, gva, hpa)
    vcpu.stat["invlpg"] += 1
