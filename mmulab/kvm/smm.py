"""System management mode: an SMI takes the vCPU into it, with another address space.

In SMM the vCPU sees the slots of address space 1, its pages have ``smm`` in their
roles, and its state before the SMI lies in the state-save area of SMRAM, which is
guest memory of that space. Of the state the model has what is named in
:data:`SAVE_STATE_64` and :data:`SAVE_STATE_32`; general, segment and debug registers
are saved as 0 and not restored.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``enter_smm``, ``enter_smm_save_state_64``,
``enter_smm_save_state_32``, ``kvm_smm_changed``), 6.12 ``smm.c`` (``enter_smm``); APM 2, 10.2 and 10.3.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.guest_walk import kvm_read_guest, kvm_write_guest
from mmulab.kvm.hw_cr4 import set_cr4
from mmulab.kvm.roots import kvm_mmu_reset_context
from mmulab.kvm.state import Request, Vcpu
from mmulab.kvm.trace import trace
from mmulab.kvm.vmx.vmcs12 import INVALID_GPA
from mmulab.memory.host import FRAME_BYTES
from mmulab.x86.regs import (
    X86_CR0_EM,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_EFLAGS_AC,
    X86_EFLAGS_FIXED,
)

SMI_HANDLER = 0x8000
"""Offset from SMBASE at which the handler begins."""
STATE_SAVE_AREA = 0xFE00
STATE_SAVE_BYTES = 512
_FIRST_OFFSET = 0x7E00
"""The manual gives offsets of the area from SMBASE + 8000h."""


class SaveState(NamedTuple):
    """Layout of the state-save area.

    Attributes
    ----------
    revision : int
        SMM-revision identifier.
    fields : dict of str to (int, int)
        Offset and size of each register.
    """

    revision: int
    fields: dict[str, tuple[int, int]]


SAVE_STATE_64 = SaveState(
    0x20064,
    {
        "efer": (0x7ED0, 8),
        "svm_guest": (0x7ED8, 8),
        "vmcb12_gpa": (0x7EE0, 8),
        "revision": (0x7EFC, 4),
        "smbase": (0x7F00, 4),
        "cr4": (0x7F48, 8),
        "cr3": (0x7F50, 8),
        "cr0": (0x7F58, 8),
        "rflags": (0x7F70, 4),
        "rip": (0x7F78, 8),
    },
)
SAVE_STATE_32 = SaveState(
    0x20000,
    {
        "smbase": (0x7EF8, 4),
        "revision": (0x7EFC, 4),
        "cr4": (0x7F14, 4),
        "rip": (0x7FF0, 4),
        "rflags": (0x7FF4, 4),
        "cr3": (0x7FF8, 4),
        "cr0": (0x7FFC, 4),
    },
)


def save_state_of(vcpu: Vcpu) -> SaveState:
    """Return the layout: a 32-bit host's KVM knows no long mode."""
    return SAVE_STATE_64 if vcpu.kvm.config.x86_64 else SAVE_STATE_32


def _spans(gpa: int) -> list[tuple[int, int]]:
    """Split the area at `gpa` into (offset, bytes) within pages: a guest may move SMBASE anywhere."""
    first = min(STATE_SAVE_BYTES, FRAME_BYTES - gpa % FRAME_BYTES)
    spans = [(0, first), (first, STATE_SAVE_BYTES - first)]
    return [span for span in spans if span[1]]


def read_save_state(vcpu: Vcpu) -> dict[str, int] | None:
    """Read the state-save area from the vCPU's address space; None if no slot has it."""
    gpa, data = vcpu.smbase + STATE_SAVE_AREA, b""
    for offset, size in _spans(gpa):
        value = kvm_read_guest(vcpu, gpa + offset, size)
        if value is None:
            return None
        data += value.to_bytes(size, "little")
    fields = save_state_of(vcpu).fields.items()
    starts = {name: (at - _FIRST_OFFSET, size) for name, (at, size) in fields}
    return {name: int.from_bytes(data[at : at + size], "little") for name, (at, size) in starts.items()}


def _registers(vcpu: Vcpu) -> dict[str, int]:
    return {
        "rip": vcpu.rip,
        "rflags": X86_EFLAGS_FIXED | (X86_EFLAGS_AC if vcpu.ac else 0),
        "cr0": vcpu.cr0,
        "cr3": vcpu.cr3,
        "cr4": vcpu.cr4,
        "efer": vcpu.efer,
        "smbase": vcpu.smbase,
        "revision": save_state_of(vcpu).revision,
    }


def _save_state(layout: SaveState, state: dict[str, int]) -> bytes:
    data = bytearray(STATE_SAVE_BYTES)
    for name, (offset, size) in layout.fields.items():
        at = offset - _FIRST_OFFSET
        data[at : at + size] = (state.get(name, 0) & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(data)


def kvm_vcpu_ioctl_smi(vcpu: Vcpu) -> None:
    """Send the vCPU an SMI, which it takes at the next entry outside SMM.

    Raises
    ------
    InputError
        Where SMM is not modelled.
    """
    if vcpu.vmx.vmxon_ptr != INVALID_GPA:
        raise InputError("an SMI in VMX operation is not modelled")
    vcpu.requests |= Request.SMI


def kvm_smm_changed(vcpu: Vcpu, *, entering: bool) -> None:
    """Go to the other address space, with the MMU configured anew."""
    trace(vcpu.kvm, ev.kvm_smm_transition, vcpu.smbase, entering)
    vcpu.smm = int(entering)
    kvm_mmu_reset_context(vcpu)


def enter_smm(vcpu: Vcpu) -> None:
    """Take a pending SMI: real mode without paging, at the handler's first instruction.

    If L2 runs, its registers are saved, and L1's are those that SMM goes on with.
    Where no slot of address space 1 has the state-save area, 6.1 loses the state
    without a word, and later kernels end the VM. The write goes past the tracking
    of guest tables.
    """
    state = _registers(vcpu)
    if vcpu.nested is not None:
        state |= vcpu.nested.enter_smm(vcpu)
    data = _save_state(save_state_of(vcpu), state)
    kvm_smm_changed(vcpu, entering=True)
    gpa = vcpu.smbase + STATE_SAVE_AREA
    for offset, size in _spans(gpa):
        part = int.from_bytes(data[offset : offset + size], "little")
        if kvm_write_guest(vcpu, gpa + offset, size, part):
            continue
        if vcpu.kvm.behaviours.smm_needs_smram:
            vcpu.kvm.make_all_cpus_request(Request.VM_DEAD)
            return
        break
    vcpu.rip, vcpu.cpl, vcpu.ac = SMI_HANDLER, 0, False
    vcpu.cr0 &= ~(X86_CR0_PE | X86_CR0_EM | X86_CR0_TS | X86_CR0_PG)
    set_cr4(vcpu, 0)
    if vcpu.kvm.config.x86_64:
        vcpu.efer = 0
        vcpu.gif = True  # with EFER.SVME off (svm_set_efer)
    kvm_mmu_reset_context(vcpu)
