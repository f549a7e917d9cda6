"""RSM: back from system management mode.

KVM emulates it step by step: to real mode, then to the mode that SMRAM tells, by the
same functions that serve the guest's own writes of control registers. So the MMU is
configured anew several times on the way, and what those functions put off until the
next entry is put off here too.

Source: Linux 6.1 ``arch/x86/kvm/emulate.c`` (``em_rsm``, ``rsm_load_state_64``,
``rsm_load_state_32``, ``rsm_enter_protected_mode``), ``svm/svm.c`` (``rsm_interception``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.inject import UD_VECTOR, kvm_queue_exception
from mmulab.kvm.smm import kvm_smm_changed, read_save_state
from mmulab.kvm.state import Request, Vcpu
from mmulab.kvm.svm.nested import svm_leave_smm
from mmulab.kvm.trace import trace
from mmulab.kvm.x86 import (
    GeneralProtectionError,
    is_long_mode,
    kvm_set_cr0,
    kvm_set_cr3,
    kvm_set_cr4,
    set_efer,
)
from mmulab.x86.insn import Instruction
from mmulab.x86.regs import (
    EFER_LMA,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR3_PCID_MASK,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
)


def handle_rsm(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Emulate an intercepted RSM; its target is the RIP that SMRAM tells.

    SVM's handler brings the bytes along. To VMX it is an instruction that the
    processor does not know, and KVM fetches them.
    """
    if vcpu.kvm.config.vendor == "intel":
        kind = EmulationType(intercepted=True, trap_ud=True)
        verdict = x86_emulate_instruction(vcpu, 0, kind, insn)
        return verdict if verdict is not Verdict.DONE else em_rsm(vcpu, insn)
    vcpu.exception = None
    vcpu.last_retry_eip = vcpu.last_retry_addr = 0
    vcpu.stat["insn_emulation"] += 1
    trace(vcpu.kvm, ev.kvm_emulate_insn, insn.rip or 0, len(insn.code), insn.code.hex(), False)
    return em_rsm(vcpu, insn)


def em_rsm(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Leave SMM. A state that cannot be loaded shuts the vCPU down at its next entry."""
    if not vcpu.smm:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    state = read_save_state(vcpu)
    if state is None:
        return _failed(vcpu, insn)
    kvm_smm_changed(vcpu, entering=False)
    _enter_real_mode(vcpu)
    if not svm_leave_smm(vcpu, state):
        vcpu.requests |= Request.TRIPLE_FAULT
        return Verdict.DONE
    insn.target = state["rip"]
    vcpu.smbase = state["smbase"]
    try:
        if vcpu.kvm.config.x86_64:
            set_efer(vcpu, state["efer"] & ~EFER_LMA)
        _enter_protected_mode(vcpu, state["cr0"], state["cr3"], state["cr4"])
    except GeneralProtectionError:
        vcpu.requests |= Request.TRIPLE_FAULT
    return Verdict.DONE


def _failed(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Give up: SMRAM is in no slot (``handle_emulation_failure``)."""
    vcpu.stat["insn_emulation_fail"] += 1
    trace(vcpu.kvm, ev.kvm_emulate_insn, insn.rip or 0, 0, "", True)
    kvm_queue_exception(vcpu, UD_VECTOR)
    return Verdict.FAILED


def _enter_real_mode(vcpu: Vcpu) -> None:
    """Make CR0, CR4 and EFER safe to load; a 32-bit code segment lets EFER.LMA go."""
    x86_64 = vcpu.kvm.config.x86_64
    if x86_64 and vcpu.cr4 & X86_CR4_PCIDE:
        kvm_set_cr4(vcpu, vcpu.cr4 & ~X86_CR4_PCIDE)
    if vcpu.cr0 & X86_CR0_PE:
        kvm_set_cr0(vcpu, vcpu.cr0 & ~(X86_CR0_PG | X86_CR0_PE), cs_l=False)
    if x86_64:
        if vcpu.cr4 & X86_CR4_PAE:
            kvm_set_cr4(vcpu, vcpu.cr4 & ~X86_CR4_PAE)
        set_efer(vcpu, 0)


def _enter_protected_mode(vcpu: Vcpu, cr0: int, cr3: int, cr4: int) -> None:
    """Load the registers in an order that is legal; PCIDs can be turned on only in long mode.

    Raises
    ------
    GeneralProtectionError
    """
    pcid = cr3 & X86_CR3_PCID_MASK if cr4 & X86_CR4_PCIDE else 0
    cr3 &= ~pcid
    kvm_set_cr3(vcpu, cr3)
    kvm_set_cr4(vcpu, cr4 & ~X86_CR4_PCIDE)
    kvm_set_cr0(vcpu, cr0, cs_l=is_long_mode(vcpu))  # only L2 is in long mode by now
    if cr4 & X86_CR4_PCIDE:
        kvm_set_cr4(vcpu, cr4)
        if pcid:
            kvm_set_cr3(vcpu, cr3 | pcid)
