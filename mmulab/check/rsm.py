"""Whether what RSM loads is a state that a processor takes, or one that shuts it down.

SDM 3, 34.4.1 and 34.5; APM 2, 10.4: reserved bits and illegal combinations in control registers
and EFER. The PDPTEs of PAE paging are loaded too, and count as MOV to CR3 counts them.
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab.check.world import World
from mmulab.kvm.smm import save_state_of
from mmulab.kvm.sregs import invalid_cr0, invalid_cr4, kvm_valid_efer
from mmulab.kvm.state import Vcpu
from mmulab.x86.mode import PT_PRESENT_MASK
from mmulab.x86.paging import pdpte_reserved
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    X86_CR0_PG,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
)

_BASE = 0x8000
"""The manuals count the state-save area's offsets from SMBASE + 8000h."""
Read = Callable[[int, int], int]


def rsm_may_shut_down(vcpu: Vcpu, smm: World, read: Read) -> bool:
    """Whether RSM may end in a shutdown; what cannot be told may.

    Parameters
    ----------
    vcpu : Vcpu
        After it.
    smm : World
        Before it.
    read : callable
        Reads memory as it was before: host-physical address, number of bytes.
    """
    state = _state(vcpu, smm, read)
    if state is None or state.get("svm_guest") or state["smbase"] != vcpu.smbase:
        return True  # no memory, a guest of L1's, or the area lay where SMBASE was before
    cr0, cr4, efer = state["cr0"], state["cr4"], state.get("efer", 0)
    config = vcpu.kvm.config
    if invalid_cr0(cr0) or invalid_cr4(config, vcpu.cpu, cr4):
        return True
    if not kvm_valid_efer(config, vcpu.cpu, efer & ~EFER_LMA):
        return True
    long_mode = bool(efer & EFER_LME and cr0 & X86_CR0_PG)
    if (long_mode and not cr4 & X86_CR4_PAE) or (cr4 & X86_CR4_PCIDE and not long_mode):
        return True
    if state["cr3"] >> vcpu.cpu.maxphyaddr:
        return True
    pae = cr0 & X86_CR0_PG and cr4 & X86_CR4_PAE and not long_mode
    return bool(pae) and bad_pdptes(vcpu, smm, state["cr3"], read)


def _state(vcpu: Vcpu, smm: World, read: Read) -> dict[str, int] | None:
    """Return the registers in SMRAM; None where no memory is."""
    found: dict[str, int] = {}
    for name, (offset, size) in save_state_of(vcpu).fields.items():
        hpa = smm.hpa_of(vcpu.smbase + _BASE + offset)
        if hpa is None:
            return None
        found[name] = read(hpa, size)
    return found


def bad_pdptes(vcpu: Vcpu, smm: World, cr3: int, read: Read) -> bool:
    """Whether one of the four is present with a reserved bit; where SMM sees no memory, nobody says."""
    places = [smm.hpa_of((cr3 & ~0x1F) + 8 * number) for number in range(4)]
    reserved = pdpte_reserved(vcpu.cpu)
    return any(hpa is None or (read(hpa, 8) & PT_PRESENT_MASK and read(hpa, 8) & reserved) for hpa in places)
