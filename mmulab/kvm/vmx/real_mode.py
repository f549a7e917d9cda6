"""Real mode without an unrestricted guest: what virtual-8086 mode cannot run, KVM emulates.

VMX enters no guest with CR0.PE=0 then. KVM runs real mode as virtual-8086 mode, whose
segments have a base of 16 times their selector and a limit of FFFFh. Here every segment
is flat, in SMM too, so each instruction is emulated and the processor is not entered:
no exit is told of, and the handler's page needs no spte.

Source: Linux 6.1 ``arch/x86/kvm/vmx/vmx.c`` (``vmx_vcpu_run``, ``rmode_segment_valid``,
``handle_invalid_guest_state``), ``x86.c`` (``enter_smm``).
"""

from __future__ import annotations

from mmulab.errors import InputError
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.state import Vcpu
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.regs import X86_CR0_PE


def emulation_required(vcpu: Vcpu) -> bool:
    """Whether KVM emulates the guest. An unrestricted guest is taken for granted where there is EPT."""
    config = vcpu.kvm.config
    return config.vendor == "intel" and not config.tdp and not vcpu.cr0 & X86_CR0_PE


def handle_invalid_guest_state(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Emulate one instruction; the VMM's single step ends ``KVM_RUN`` behind it.

    Raises
    ------
    InputError
        It is no NOP: the stubs are no code of 16 bits.
    """
    if insn.mnemonic is not Mnemonic.NOP:
        raise InputError(
            f"{insn.mnemonic.value} with CR0.PE=0 is not modelled without EPT, where KVM emulates real mode"
        )
    return x86_emulate_instruction(vcpu, 0, EmulationType(), insn)
