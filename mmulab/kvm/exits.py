"""Exits that are not page faults: what each vendor's half of KVM does with them.

AMD's without decode assists learns only that an instruction was intercepted and
emulates it; Intel's is told the operands.

Source: Linux 6.1 ``arch/x86/kvm/svm/svm.c`` (``emulate_on_interception``,
``invlpg_interception``, ``msr_interception``), ``arch/x86/kvm/vmx/vmx.c``
(``handle_cr``, ``handle_invlpg``), ``arch/x86/kvm/x86.c`` (``kvm_emulate_wrmsr``).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from mmulab import events as ev
from mmulab.kvm.assertions import kvm_bug_on, warn_on
from mmulab.kvm.emulate import INVALID_GFN, EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.guest_walk import gva_to_gpa
from mmulab.kvm.inject import GP_VECTOR, UD_VECTOR, kvm_queue_exception
from mmulab.kvm.invlpg import kvm_mmu_invlpg
from mmulab.kvm.invpcid import invpcid_is_undefined, kvm_handle_invpcid
from mmulab.kvm.page_fault import kvm_mmu_page_fault
from mmulab.kvm.rsm import handle_rsm
from mmulab.kvm.state import KvmRunError, Vcpu
from mmulab.kvm.svm.nested import is_vmcb12, nested_svm_vmrun
from mmulab.kvm.trace import trace
from mmulab.kvm.vmx.insn import handle_vmx_instruction, vmwrite_exits
from mmulab.kvm.vmx.pml import vmx_flush_pml_buffer
from mmulab.kvm.x86 import GeneralProtectionError, kvm_set_cr0, kvm_set_cr3, kvm_set_cr4, set_efer
from mmulab.kvm.zap import kvm_mmu_unprotect_page
from mmulab.x86.ept import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_NX,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_GVA_USER,
    EPT_VIOLATION_GVA_WRITABLE,
    EPT_VIOLATION_RWX_SHIFT,
)
from mmulab.x86.insn import VMX_INSTRUCTIONS, Instruction, Mnemonic
from mmulab.x86.pferr import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import (
    EFER_SVME,
    X86_CR0_CD,
    X86_CR0_NW,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR4_PGE,
)

SVM_MSR_WRITE = 1
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_POSSIBLE_CR4_GUEST_BITS = 0x1078E
"""CR4 bits that VMX guests may own: PVI, TSD, DE, PGE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE."""
_CR0_SELECTIVE = X86_CR0_TS | 1 << 1


def kvm_handle_page_fault(
    vcpu: Vcpu, addr: int, error_code: int, insn: Instruction, *, reinjection: bool
) -> Verdict:
    """Handle an intercepted #PF.

    `reinjection`: it came while an exception was being delivered. The page may
    be a guest table that delivery must write, so it is unprotected first.
    """
    if not vcpu.kvm.config.x86_64 and warn_on(
        vcpu.kvm, "mmu.c:kvm_handle_page_fault:address", addr >> 32 != 0
    ):
        raise KvmRunError(errno.EFAULT)
    trace(vcpu.kvm, ev.kvm_page_fault, vcpu.rip, addr, error_code)
    if reinjection and not vcpu.mmu.direct and vcpu.kvm.behaviours.unprotect_on_reinjection:
        access = PFERR_USER_MASK if vcpu.cpl == 3 else 0
        gpa, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, addr, access)
        kvm_mmu_unprotect_page(vcpu.kvm, INVALID_GFN if gpa is None else gpa >> 12)
    return kvm_mmu_page_fault(vcpu, addr, error_code, insn, reinjection=reinjection)


class InternalError(Exception):
    """``KVM_RUN`` ends with ``KVM_EXIT_INTERNAL_ERROR``; the VMM may run the vCPU again."""

    def __init__(self, suberror: int) -> None:
        super().__init__(suberror)
        self.suberror = suberror


class VmBuggedError(KvmRunError):
    """KVM found its own state impossible and lets the VM run no more (``KVM_BUG_ON``).

    L2 that L1 entered was to run before anything else, but could not: its EPT
    pointer leads out of memory.
    """

    def __init__(self) -> None:
        super().__init__(errno.EIO)


def trace_exit(vcpu: Vcpu, event: ev.kvm_exit, info1: int = 0, info2: int = 0) -> bool:
    """Report an exit; if L2 ran, give it to L1 should L1 want it, and return whether that was so.

    First the processor's log of dirtied pages is emptied, be it an exit of L1: L2 runs without one.

    Parameters
    ----------
    info1, info2 : int
        EXITINFO1 and EXITINFO2 (SVM); VMX has it all in the event.

    Raises
    ------
    VmBuggedError
    """
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(event)
    if vcpu.pml_buffer:
        vmx_flush_pml_buffer(vcpu)
    kvm, pending = vcpu.kvm, vcpu.vmx.nested_run_pending
    if kvm.config.vendor == "intel" and kvm_bug_on(kvm, "vmx.c:__vmx_handle_exit:run_pending", pending):
        raise VmBuggedError
    nested = vcpu.nested
    if nested is None:
        return False
    exit = nested.vmexit_event(event, info1, info2)
    if emit is not None:
        emit(exit)
    nested.idt_vectoring = event.idt_vectoring or 0
    return nested.exit_handled(vcpu, exit)


def handle_instruction(vcpu: Vcpu, insn: Instruction, *, cs_l: bool) -> Verdict | None:
    """Handle a privileged instruction; None if this one is not intercepted."""
    exit_event = _intercept(vcpu, insn)
    if exit_event is None:
        return None
    if trace_exit(vcpu, exit_event, exit_event.qualification or 0, exit_event.address or 0):
        return Verdict.RESUME
    if insn.mnemonic is Mnemonic.WRMSR:
        return _wrmsr(vcpu, insn)
    if insn.mnemonic is Mnemonic.VMRUN:
        return _vmrun(vcpu, insn)
    if insn.mnemonic is Mnemonic.RSM:
        return handle_rsm(vcpu, insn)
    if exit_event.reason == "ud":
        return _handle_ud(vcpu, insn)
    if insn.mnemonic is Mnemonic.INVPCID:
        return _skip(vcpu, insn, kvm_handle_invpcid(vcpu, insn.value, insn.gva))
    if insn.mnemonic in VMX_INSTRUCTIONS:
        return handle_vmx_instruction(vcpu, insn)
    if not vcpu.kvm.config.decode_assists:
        verdict = x86_emulate_instruction(vcpu, 0, EmulationType(intercepted=True), insn)
        if verdict is not Verdict.DONE:
            return verdict
    elif insn.mnemonic is Mnemonic.MOV_CR:
        _trace_cr(vcpu, insn)
    try:
        _execute(vcpu, insn, cs_l=cs_l)
    except GeneralProtectionError:
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    return Verdict.DONE


def _execute(vcpu: Vcpu, insn: Instruction, *, cs_l: bool) -> None:
    if insn.mnemonic is Mnemonic.INVLPG:
        kvm_mmu_invlpg(vcpu, insn.gva)
    elif insn.register == 0:
        kvm_set_cr0(vcpu, insn.value, cs_l=cs_l)
    elif insn.register == 3:
        kvm_set_cr3(vcpu, insn.value)
    else:
        kvm_set_cr4(vcpu, insn.value)


def _vmrun(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Enter L2, whose first instruction comes next. In SMM there is no SVM, nor without EFER.SVME.

    MSR VM_HSAVE_PA, which has to be set, is taken as set (``nested_svm_check_permissions``).
    """
    if not vcpu.efer & EFER_SVME or not vcpu.cr0 & X86_CR0_PG or vcpu.smm:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    if not is_vmcb12(vcpu, insn.value):
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    verdict = _skip(vcpu, insn, Verdict.DONE)
    if verdict is not Verdict.DONE:
        return verdict
    vcpu.rip += len(insn.code)
    nested_svm_vmrun(vcpu, insn.value)
    return Verdict.RESUME


def _wrmsr(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Write the MSR first; only then is the instruction skipped, which may need its opcode."""
    failed = False
    try:
        set_efer(vcpu, insn.value)
    except GeneralProtectionError:
        failed = True
    trace(vcpu.kvm, ev.kvm_msr, True, insn.register, insn.value, failed)
    if failed:
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    return _skip(vcpu, insn, Verdict.DONE)


def _skip(vcpu: Vcpu, insn: Instruction, verdict: Verdict) -> Verdict:
    """Advance RIP behind an instruction that was executed (``kvm_skip_emulated_instruction``).

    Where SVM does not tell the next RIP, the emulator must know the instruction.
    """
    if verdict is not Verdict.DONE or vcpu.kvm.config.nrips:
        return verdict
    return x86_emulate_instruction(vcpu, 0, EmulationType(skip=True), insn)


def _handle_ud(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Handle an intercepted #UD."""
    return x86_emulate_instruction(vcpu, 0, EmulationType(trap_ud=True), insn)


def _trace_cr(vcpu: Vcpu, insn: Instruction) -> None:
    trace(vcpu.kvm, ev.kvm_cr, True, insn.register, insn.value)


def _intercept(vcpu: Vcpu, insn: Instruction) -> ev.kvm_exit | None:
    """Return the exit that the instruction causes, None if the processor just executes it."""
    rip = insn.rip or 0
    intel = vcpu.kvm.config.vendor == "intel"
    if vcpu.kvm.config.tdp and (insn.mnemonic is Mnemonic.INVLPG or _is_cr3_load(insn)):
        return None
    if insn.mnemonic is Mnemonic.VMWRITE and not vmwrite_exits(vcpu, insn):
        return None
    if insn.mnemonic in (Mnemonic.VMRUN, Mnemonic.VMMCALL, *VMX_INSTRUCTIONS):
        return ev.kvm_exit(insn.mnemonic.value, rip)
    if insn.mnemonic is Mnemonic.INVLPG:
        return ev.kvm_exit("invlpg", rip, qualification=insn.gva if intel else None)
    if insn.mnemonic is Mnemonic.INVPCID:
        return _invpcid_exit(vcpu, insn)
    if insn.mnemonic is Mnemonic.RSM:
        return ev.kvm_exit("ud" if intel else "rsm", rip)
    if insn.mnemonic is Mnemonic.WRMSR:
        if intel:
            return ev.kvm_exit("wrmsr", rip)
        return ev.kvm_exit("msr", rip, qualification=SVM_MSR_WRITE)
    if intel:
        exits = _vmx_cr_exits(vcpu, insn)
        return ev.kvm_exit("cr", rip, qualification=insn.register) if exits else None
    reason = _svm_cr_reason(vcpu, insn)
    return None if reason is None else ev.kvm_exit(reason, rip)


def _invpcid_exit(vcpu: Vcpu, insn: Instruction) -> ev.kvm_exit | None:
    """Return the exit of INVPCID; SVM tells the operand's address and the type, VMX a displacement of 0."""
    rip, undefined = insn.rip or 0, invpcid_is_undefined(vcpu)
    if vcpu.kvm.config.vendor == "intel" and undefined:
        return ev.kvm_exit("ud", rip)
    if vcpu.kvm.config.tdp and not undefined:
        return None
    if vcpu.kvm.config.vendor == "intel":
        return ev.kvm_exit("invpcid", rip, qualification=0)
    return ev.kvm_exit("invpcid", rip, address=insn.value, qualification=insn.gva)


def handle_nested_page_fault(
    vcpu: Vcpu, fault: NestedExit, insn: Instruction, *, idt_vectoring: int | None
) -> Verdict:
    """Handle an NPT fault, an EPT violation or an EPT misconfiguration.

    Raises
    ------
    InternalError
        An EPT misconfiguration (MMIO) while an event is being delivered.
    """
    if vcpu.kvm.config.vendor == "amd":
        where = PFERR_GUEST_FINAL_MASK if fault.final else PFERR_GUEST_PAGE_MASK
        code = fault.error_code | where
        event = ev.kvm_exit("npf", vcpu.rip, error_code=code, address=fault.gpa, idt_vectoring=idt_vectoring)
        trace_exit(vcpu, event, code, fault.gpa)
        trace(vcpu.kvm, ev.kvm_page_fault, vcpu.rip, fault.gpa, code)
        return kvm_mmu_page_fault(vcpu, fault.gpa, code, insn, reinjection=idt_vectoring is not None)
    if vcpu.guest_mode:
        # Undefined if the access was for no linear address (SDM 3, table 28-7); processors leave 0.
        vcpu.vmx.gla = fault.va or 0
    if fault.error_code & PFERR_RSVD_MASK:
        trace_exit(vcpu, ev.kvm_exit("ept_misconfig", vcpu.rip, idt_vectoring=idt_vectoring))
        if idt_vectoring is not None:
            # Entering again would deliver into the same device memory for ever (__vmx_handle_exit).
            raise InternalError(KVM_INTERNAL_ERROR_DELIVERY_EV)
        return kvm_mmu_page_fault(vcpu, fault.gpa, PFERR_RSVD_MASK, insn)
    qualification = fault.qualification()
    event = ev.kvm_exit("ept_violation", vcpu.rip, qualification=qualification, idt_vectoring=idt_vectoring)
    trace_exit(vcpu, event)
    trace(vcpu.kvm, ev.kvm_page_fault, vcpu.rip, fault.gpa, qualification)
    vcpu.exit_qualification = qualification
    code = _ept_error_code(qualification)
    without_gva = not qualification & EPT_VIOLATION_GVA_IS_VALID
    if without_gva and vcpu.kvm.behaviours.pdpte_violation_is_no_guest_page:
        code &= ~PFERR_GUEST_PAGE_MASK
    return kvm_mmu_page_fault(vcpu, fault.gpa, code, insn, reinjection=idt_vectoring is not None)


@dataclass(frozen=True, slots=True)
class NestedExit:
    """What the processor tells of a fault in the nested tables.

    Attributes
    ----------
    gpa : int
    error_code : int
        In page-fault form.
    kind : int
        The access: W, U (a read, for EPT) and F bits.
    final : bool
    rwx : int
        Rights of the nested entries used.
    va : int or None
        The linear address that the access was for.
    guest_access : int or None
        Rights of that address by the guest's tables, if the processor tells them.
    """

    gpa: int
    error_code: int
    kind: int
    final: bool
    rwx: int
    va: int | None = 0
    guest_access: int | None = None

    def qualification(self) -> int:
        """Return the exit qualification of an EPT violation (SDM 3, table 28-7).

        An access to a guest table while EPT has A/D bits counts as read and write.
        """
        qual = self.rwx << EPT_VIOLATION_RWX_SHIFT
        qual |= EPT_VIOLATION_GVA_IS_VALID if self.va is not None else 0
        if self.kind & PFERR_USER_MASK:
            qual |= EPT_VIOLATION_ACC_READ
        if self.kind & PFERR_WRITE_MASK:
            qual |= EPT_VIOLATION_ACC_WRITE
        if self.kind & PFERR_FETCH_MASK:
            qual |= EPT_VIOLATION_ACC_INSTR
        if not self.final:
            return qual
        access = self.guest_access
        if access is not None:
            qual |= EPT_VIOLATION_GVA_USER if access & ACC_USER_MASK else 0
            qual |= EPT_VIOLATION_GVA_WRITABLE if access & ACC_WRITE_MASK else 0
            qual |= 0 if access & ACC_EXEC_MASK else EPT_VIOLATION_GVA_NX
        return qual | EPT_VIOLATION_GVA_TRANSLATED


def _ept_error_code(qualification: int) -> int:
    """Turn an exit qualification into page-fault form (``handle_ept_violation``)."""
    code = PFERR_USER_MASK if qualification & EPT_VIOLATION_ACC_READ else 0
    code |= PFERR_WRITE_MASK if qualification & EPT_VIOLATION_ACC_WRITE else 0
    code |= PFERR_FETCH_MASK if qualification & EPT_VIOLATION_ACC_INSTR else 0
    code |= PFERR_PRESENT_MASK if qualification & 7 << EPT_VIOLATION_RWX_SHIFT else 0
    translated = qualification & EPT_VIOLATION_GVA_TRANSLATED
    return code | (PFERR_GUEST_FINAL_MASK if translated else PFERR_GUEST_PAGE_MASK)


def _svm_cr_reason(vcpu: Vcpu, insn: Instruction) -> str | None:
    """Name the SVM exit of a MOV to CR.

    While the guest's CR0 is the one the processor runs with, only the selective
    intercept is on, which leaves writes of TS and MP alone (``svm_set_cr0``;
    APM 2, 15.8.1).
    """
    if insn.register != 0:
        return f"write_cr{insn.register}"
    hcr0 = vcpu.cr0 if vcpu.kvm.config.tdp else vcpu.cr0 | X86_CR0_PG | X86_CR0_WP
    if hcr0 & ~(X86_CR0_CD | X86_CR0_NW) != vcpu.cr0:
        return "write_cr0"
    return "cr0_sel_write" if (insn.value ^ vcpu.cr0) & ~_CR0_SELECTIVE else None


def _is_cr3_load(insn: Instruction) -> bool:
    return insn.mnemonic is Mnemonic.MOV_CR and insn.register == 3


def _vmx_cr_exits(vcpu: Vcpu, insn: Instruction) -> bool:
    """Whether a MOV to CR changes a bit that the host owns (SDM 3, 26.6.8); CR3 always exits.

    With EPT the guest owns CR0.WP and CR4.PGE too.
    """
    tdp = vcpu.kvm.config.tdp
    if insn.register == 0:
        return bool((insn.value ^ vcpu.cr0) & ~(X86_CR0_TS | (X86_CR0_WP if tdp else 0)))
    if insn.register == 4:
        owned = KVM_POSSIBLE_CR4_GUEST_BITS & ~(0 if tdp else X86_CR4_PGE)
        return bool((insn.value ^ vcpu.cr4) & ~owned)
    return True


def trace_page_fault_exit(vcpu: Vcpu, addr: int, error_code: int, idt_vectoring: int | None) -> None:
    """Report the exit of an intercepted #PF."""
    event = ev.kvm_exit("pf", vcpu.rip, error_code=error_code, address=addr, idt_vectoring=idt_vectoring)
    trace_exit(vcpu, event, error_code, addr)
