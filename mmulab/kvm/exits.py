"""Exits that are not page faults: what each vendor's half of KVM does with them.

AMD's without decode assists learns only that an instruction was intercepted and
emulates it; Intel's is told the operands.

Source: Linux 6.1 ``arch/x86/kvm/svm/svm.c`` (``emulate_on_interception``,
``invlpg_interception``, ``msr_interception``), ``arch/x86/kvm/vmx/vmx.c``
(``handle_cr``, ``handle_invlpg``), ``arch/x86/kvm/x86.c`` (``kvm_emulate_wrmsr``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.guest_walk import gva_to_gpa
from mmulab.kvm.inject import GP_VECTOR, kvm_queue_exception
from mmulab.kvm.invlpg import kvm_mmu_invlpg
from mmulab.kvm.page_fault import kvm_mmu_page_fault
from mmulab.kvm.state import Vcpu
from mmulab.kvm.x86 import GeneralProtectionError, kvm_set_cr0, kvm_set_cr3, kvm_set_cr4, set_efer
from mmulab.kvm.zap import kvm_mmu_unprotect_page
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.pferr import PFERR_USER_MASK
from mmulab.x86.regs import (
    X86_CR0_CD,
    X86_CR0_NW,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR4_PGE,
)

MSR_EFER = 0xC0000080
SVM_MSR_WRITE = 1
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
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(ev.kvm_page_fault(vcpu.rip, addr, error_code))
    if reinjection and not vcpu.mmu.direct:
        access = PFERR_USER_MASK if vcpu.cpl == 3 else 0
        gpa, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, addr, access)
        kvm_mmu_unprotect_page(vcpu.kvm, ((1 << 64) - 1 if gpa is None else gpa) >> 12)
    return kvm_mmu_page_fault(vcpu, addr, error_code, insn)


def handle_instruction(vcpu: Vcpu, insn: Instruction, *, cs_l: bool) -> Verdict | None:
    """Handle a MOV to CR, WRMSR or INVLPG; None if this one is not intercepted."""
    exit_event = _intercept(vcpu, insn)
    if exit_event is None:
        return None
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(exit_event)
    if insn.mnemonic is Mnemonic.WRMSR:
        return _wrmsr(vcpu, insn)
    if not vcpu.kvm.config.decode_assists:
        verdict = x86_emulate_instruction(vcpu, 0, EmulationType(skip=True), insn)
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


def _wrmsr(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Write the MSR first; only then is the instruction skipped, which may need its opcode."""
    emit = vcpu.kvm.emit
    failed = False
    try:
        set_efer(vcpu, insn.value)
    except GeneralProtectionError:
        failed = True
    if emit is not None:
        emit(ev.kvm_msr(True, insn.register, insn.value, failed))
    if failed:
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    if vcpu.kvm.config.decode_assists:
        return Verdict.DONE
    return x86_emulate_instruction(vcpu, 0, EmulationType(skip=True), insn)


def _trace_cr(vcpu: Vcpu, insn: Instruction) -> None:
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(ev.kvm_cr(True, insn.register, insn.value))


def _intercept(vcpu: Vcpu, insn: Instruction) -> ev.kvm_exit | None:
    """Return the exit that the instruction causes, None if the processor just executes it."""
    rip = insn.rip or 0
    intel = vcpu.kvm.config.vendor == "intel"
    if insn.mnemonic is Mnemonic.INVLPG:
        return ev.kvm_exit("invlpg", rip, qualification=insn.gva if intel else None)
    if insn.mnemonic is Mnemonic.WRMSR:
        if intel:
            return ev.kvm_exit("wrmsr", rip)
        return ev.kvm_exit("msr", rip, qualification=SVM_MSR_WRITE)
    if intel:
        exits = _vmx_cr_exits(vcpu, insn)
        return ev.kvm_exit("cr", rip, qualification=insn.register) if exits else None
    reason = _svm_cr_reason(vcpu, insn)
    return None if reason is None else ev.kvm_exit(reason, rip)


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


def _vmx_cr_exits(vcpu: Vcpu, insn: Instruction) -> bool:
    """Whether a MOV to CR changes a bit that the host owns (SDM 3, 26.6.8); CR3 always exits."""
    if insn.register == 0:
        return bool((insn.value ^ vcpu.cr0) & ~X86_CR0_TS)
    if insn.register == 4:
        owned = KVM_POSSIBLE_CR4_GUEST_BITS
        if not vcpu.kvm.config.tdp:
            owned &= ~X86_CR4_PGE
        return bool((insn.value ^ vcpu.cr4) & ~owned)
    return True


def trace_page_fault_exit(
    vcpu: Vcpu, addr: int, error_code: int, idt_vectoring: int | None
) -> None:
    """Report the exit of an intercepted #PF."""
    emit = vcpu.kvm.emit
    if emit is not None:
        emit(
            ev.kvm_exit(
                "pf", vcpu.rip, error_code=error_code, address=addr, idt_vectoring=idt_vectoring
            )
        )
