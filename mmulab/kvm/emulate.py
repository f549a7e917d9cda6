"""The instruction emulator, for the instructions that scenarios contain.

KVM emulates what the processor cannot be let to execute: a write to a tracked
guest table, a device access, and, without decode assists, every intercepted
instruction. It first fetches the opcode, which is a walk of the guest's tables
of its own, and then walks again for each memory operand.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``x86_emulate_instruction``,
``reexecute_instruction``, ``retry_instruction``, ``emulator_read_write_onepage``,
``emulator_cmpxchg_emulated``), ``emulate.c`` (``x86_emulate_insn``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mmulab import events as ev
from mmulab.kvm.assertions import bug_on, warn_on
from mmulab.kvm.dirty import kvm_vcpu_mark_page_dirty
from mmulab.kvm.guest_walk import gva_to_gpa, kvm_read_guest
from mmulab.kvm.host_page import access_host_page
from mmulab.kvm.inject import UD_VECTOR, kvm_inject_emulated_page_fault, kvm_queue_exception
from mmulab.kvm.mmio import vcpu_match_mmio_gpa, vcpu_match_mmio_gva
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.pte_write import emulator_write_phys, kvm_mmu_pte_write
from mmulab.kvm.state import Emulation, MmioAccess, Vcpu, vcpu_memslots
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import kvm_mmu_unprotect_page
from mmulab.x86.insn import WRITES_TABLES, Instruction, Mnemonic
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

APIC_DEFAULT_PHYS_BASE = 0xFEE00000
INVALID_GFN = (1 << 52) - 1
NOT_EMULATED = (Mnemonic.INVPCID,)
"""What the emulator gives up on at the opcode, before it fetches ModRM (``opcode_map_0f_38``)."""
_PAGE = 4096


class Verdict(Enum):
    """What an exit handler tells the run loop."""

    RESUME = "resume"
    """Enter the guest again; the instruction is still to be executed, or faults."""
    DONE = "done"
    """The instruction has been executed by KVM."""
    MMIO = "mmio"
    """The VMM must perform the accesses in :attr:`Emulation.mmio`."""
    FAILED = "failed"
    """KVM cannot emulate this: an internal error for the VMM."""


@dataclass(slots=True)
class EmulationType:
    """Why an instruction is emulated (``EMULTYPE_*``).

    `intercepted`: not for a fault; whoever handles the exit gives it its effect.
    `trap_ud`: the processor does not know the instruction (``EMULTYPE_TRAP_UD``).
    """

    page_fault: bool = False
    skip: bool = False
    intercepted: bool = False
    allow_retry: bool = False
    write_pf_to_sp: bool = False
    trap_ud: bool = False


class _GuestFault(Exception):
    """A memory operand faults."""

    def __init__(self, fault: X86Exception) -> None:
        super().__init__(fault)
        self.fault = fault


class _UnhandleableError(Exception):
    """A locked operand cannot be written: the VMM's mapping is read-only (``X86EMUL_UNHANDLEABLE``)."""


def _user(vcpu: Vcpu) -> int:
    return PFERR_USER_MASK if vcpu.cpl == 3 else 0


def x86_emulate_instruction(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> Verdict:
    """Emulate `insn`, or unprotect a guest table and let the processor try again.

    Parameters
    ----------
    cr2 : int
        Faulting address, 0 if the cause is no fault.
    """
    vcpu.exception = None
    if not _decode(vcpu, cr2, kind, insn):
        return _decode_failed(vcpu, cr2, kind, insn)
    if kind.skip:
        return Verdict.DONE
    if _retry_instruction(vcpu, cr2, kind, insn):
        return Verdict.RESUME
    if kind.intercepted:
        return Verdict.DONE
    vcpu.emulation = Emulation()
    try:
        EXECUTE[insn.mnemonic](vcpu, cr2, kind, insn)
    except _GuestFault as fault:
        kvm_inject_emulated_page_fault(vcpu, fault.fault)
        return Verdict.RESUME
    except _UnhandleableError:
        if _reexecute_instruction(vcpu, cr2, kind):
            return Verdict.RESUME
        return _handle_emulation_failure(vcpu, kind, insn, insn.code)
    if vcpu.emulation.mmio:
        vcpu.stat["mmio_exits"] += 1
        return Verdict.MMIO
    return Verdict.DONE


def _decode(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> bool:
    """Fetch the opcode; False if that cannot be. A stream's access has no opcode."""
    known = insn.mnemonic not in NOT_EMULATED
    fetched, vcpu.fetch_fault = insn.code if known else insn.code[:-1], None
    if insn.rip is not None:
        at = insn.base + insn.rip
        gpa, fault = gva_to_gpa(vcpu, vcpu.walk_mmu, at, _user(vcpu) | PFERR_FETCH_MASK)
        if gpa is None:
            fetched, vcpu.fetch_fault = b"", fault
        elif kvm_read_guest(vcpu, gpa, 1) is None:
            fetched = b""
        trace(vcpu.kvm, ev.kvm_emulate_insn, insn.rip, len(fetched), fetched.hex(), False)
    vcpu.stat["insn_emulation"] += 1
    return insn.rip is None or (known and bool(fetched))


def _decode_failed(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> Verdict:
    if kind.trap_ud:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    if _reexecute_instruction(vcpu, cr2, kind):
        return Verdict.RESUME
    if vcpu.fetch_fault is not None and not kind.skip:
        kvm_inject_emulated_page_fault(vcpu, vcpu.fetch_fault)
        return Verdict.RESUME
    return _handle_emulation_failure(vcpu, kind, insn, b"")


def _handle_emulation_failure(vcpu: Vcpu, kind: EmulationType, insn: Instruction, fetched: bytes) -> Verdict:
    vcpu.stat["insn_emulation_fail"] += 1
    trace(vcpu.kvm, ev.kvm_emulate_insn, insn.rip or 0, len(fetched), fetched.hex(), True)
    if kind.skip:
        return Verdict.FAILED
    kvm_queue_exception(vcpu, UD_VECTOR)
    return Verdict.FAILED if vcpu.cpl == 0 and not vcpu.guest_mode else Verdict.RESUME


def _reexecute_instruction(vcpu: Vcpu, cr2: int, kind: EmulationType) -> bool:
    """Whether the processor should try what could not be emulated, the page unprotected."""
    if not kind.allow_retry:
        return False
    kvm = vcpu.kvm
    if warn_on(kvm, "x86.c:reexecute_instruction:guest_mode", vcpu.guest_mode) or warn_on(
        kvm, "x86.c:reexecute_instruction:pf", not kind.page_fault
    ):
        return False
    if vcpu.kvm.behaviours.retry_only_if_write_protected:
        if kind.write_pf_to_sp:
            return False
        kvm_mmu_unprotect_gfn_and_retry(vcpu, cr2, always=True)
        return True
    gpa: int | None = cr2
    if not vcpu.mmu.direct:
        gpa, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, cr2, _user(vcpu) | PFERR_WRITE_MASK)
        if gpa is None:
            return True
    assert gpa is not None
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    if slot is None or slot.readonly or not access_host_page(vcpu.kvm, slot.frame(gpa >> 12), write=True):
        return False
    if vcpu.mmu.direct:
        if vcpu.kvm.indirect_shadow_pages:
            kvm_mmu_unprotect_page(vcpu.kvm, gpa >> 12)
        return True
    kvm_mmu_unprotect_page(vcpu.kvm, gpa >> 12)
    return not kind.write_pf_to_sp


def kvm_mmu_unprotect_gfn_and_retry(vcpu: Vcpu, cr2: int, *, always: bool = False) -> bool:
    """Zap what write-protects the gfn at an address, and note where; return whether to try again (6.12).

    `always`: also if there was nothing.
    """
    kvm, gpa, found = vcpu.kvm, cr2, False
    if kvm.indirect_shadow_pages:
        where: int | None = gpa
        if not vcpu.mmu.direct:
            where, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, cr2, _user(vcpu) | PFERR_WRITE_MASK)
        found = where is not None and kvm_mmu_unprotect_page(kvm, where >> 12)
    if found or always:
        vcpu.last_retry_eip, vcpu.last_retry_addr = vcpu.rip, cr2
    return found


def _retry_instruction(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> bool:
    """Whether to unprotect and retry, because this instruction is not one that writes tables."""
    kvm, forgets = vcpu.kvm, not vcpu.kvm.behaviours.retry_only_if_write_protected
    last_eip, last_addr = vcpu.last_retry_eip, vcpu.last_retry_addr
    if forgets:
        vcpu.last_retry_eip = vcpu.last_retry_addr = 0
    if not kind.allow_retry:
        return False
    if warn_on(kvm, "x86.c:retry_instruction:guest_mode", vcpu.guest_mode) or warn_on(
        kvm, "x86.c:retry_instruction:pf", not kind.page_fault
    ):
        return False
    if insn.mnemonic in WRITES_TABLES:
        return False
    if not forgets:
        return kvm_mmu_unprotect_gfn_and_retry(vcpu, cr2)
    eip = insn.rip or 0
    if (eip, cr2) == (last_eip, last_addr):
        return False
    vcpu.last_retry_eip, vcpu.last_retry_addr = eip, cr2
    gpa: int | None = cr2
    if not vcpu.mmu.direct:
        gpa, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, cr2, _user(vcpu) | PFERR_WRITE_MASK)
    kvm_mmu_unprotect_page(vcpu.kvm, INVALID_GFN if gpa is None else gpa >> 12)
    return True


def _mmio_gva_to_gpa(vcpu: Vcpu, gva: int, known_gpa: int | None, write: bool) -> tuple[int, bool]:
    """Translate an operand's address.

    Returns
    -------
    gpa : int
    is_mmio : bool
        It is known to be device memory.
    """
    if known_gpa is not None and not (known_gpa ^ gva) & 0xFFF:
        return known_gpa, _is_mmio_gpa(vcpu, known_gpa)
    access = _user(vcpu) | (PFERR_WRITE_MASK if write else 0)
    if vcpu_match_mmio_gva(vcpu, gva) and _cached_access_allows(vcpu, access):
        return vcpu.mmio_gfn << 12 | gva & 0xFFF, True
    gpa, fault = gva_to_gpa(vcpu, vcpu.walk_mmu, gva, access)
    if fault is not None or gpa is None:
        assert fault is not None
        raise _GuestFault(fault)
    return gpa, _is_mmio_gpa(vcpu, gpa)


def _is_mmio_gpa(vcpu: Vcpu, gpa: int) -> bool:
    return gpa & ~0xFFF == APIC_DEFAULT_PHYS_BASE or vcpu_match_mmio_gpa(vcpu, gpa)


def _cached_access_allows(vcpu: Vcpu, access: int) -> bool:
    paging = vcpu.walk_mmu.paging
    if paging is None or paging.mode.root_level == 0:
        return True
    index = (access | (PFERR_RSVD_MASK if vcpu.ac else 0)) >> 1
    return not paging.permissions[index] >> vcpu.mmio_access & 1


def _pieces(insn: Instruction) -> list[tuple[int, int, int]]:
    """Split an operand at a page border into (gva, size, shift of its value)."""
    first = _PAGE - (insn.gva & 0xFFF)
    if insn.size <= first:
        return [(insn.gva, insn.size, 0)]
    return [(insn.gva, first, 0), (insn.gva + first, insn.size - first, 8 * first)]


def _known_gpa(vcpu: Vcpu, cr2: int, kind: EmulationType) -> int | None:
    """Return the gpa that a fault on a direct map already told."""
    return cr2 if kind.page_fault and vcpu.mmu.direct else None


def _read_memory(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> int:
    """Read the memory operand; device parts are left to the VMM and read as 0xd0 bytes."""
    mmio = vcpu.emulation.mmio
    result = 0
    for gva, size, shift in _pieces(insn):
        gpa, is_mmio = _mmio_gva_to_gpa(vcpu, gva, _known_gpa(vcpu, cr2, kind), False)
        if not shift:
            vcpu.emulation.gpa = gpa
        value = None if is_mmio else kvm_read_guest(vcpu, gpa, size)
        if value is None:
            value = int.from_bytes(b"\xd0" * size, "little")
            mmio.append(MmioAccess(False, gpa, size, value))
        result |= value << shift
    if mmio:
        trace(vcpu.kvm, ev.kvm_mmio, "unsatisfied-read", mmio[0].size, mmio[0].gpa)
        trace(vcpu.kvm, ev.kvm_mmio, "read", insn.size, mmio[0].gpa)
    return result


def _write_memory(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction, value: int) -> None:
    """Write the memory operand; device parts are left to the VMM."""
    for gva, size, shift in _pieces(insn):
        gpa, is_mmio = _mmio_gva_to_gpa(vcpu, gva, _known_gpa(vcpu, cr2, kind), True)
        if not shift:
            vcpu.emulation.gpa = gpa
        part = value >> shift & ((1 << 8 * size) - 1)
        if is_mmio or not emulator_write_phys(vcpu, gpa, size, part):
            trace(vcpu.kvm, ev.kvm_mmio, "write", size, gpa)
            vcpu.emulation.mmio.append(MmioAccess(True, gpa, size, part))


def _load(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    vcpu.emulation.result = _read_memory(vcpu, cr2, kind, insn)


def _store(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    _write_memory(vcpu, cr2, kind, insn, insn.value)


def _read_for_write(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> int:
    """Read an operand that will be written: a fault of the read is reported as a write."""
    try:
        return _read_memory(vcpu, cr2, kind, insn)
    except _GuestFault as found:
        fault = found.fault
        raise _GuestFault(fault._replace(error_code=fault.error_code | PFERR_WRITE_MASK)) from found


def _xchg(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    vcpu.emulation.result = _read_for_write(vcpu, cr2, kind, insn)
    _cmpxchg(vcpu, cr2, kind, insn, insn.value)


def _cmpxchg(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction, value: int) -> None:
    """Write a locked operand in place, which never reaches a device."""
    gpa, _ = gva_to_gpa(vcpu, vcpu.walk_mmu, insn.gva, _user(vcpu) | PFERR_WRITE_MASK)
    slot = None if gpa is None else vcpu_memslots(vcpu).lookup(gpa >> 12)
    inside = (insn.gva & 0xFFF) + insn.size <= _PAGE
    if gpa is None or slot is None or slot.invalid or slot.readonly or not inside:
        _write_memory(vcpu, cr2, kind, insn, value)
        return
    frame = slot.frame(gpa >> 12)
    if not access_host_page(vcpu.kvm, frame, write=True):
        raise _UnhandleableError
    bug_on(vcpu.kvm, "x86.c:emulator_cmpxchg_emulated:size", insn.size not in (1, 2, 4, 8))
    vcpu.kvm.memory.write(frame << 12 | gpa & 0xFFF, insn.size, value)
    kvm_vcpu_mark_page_dirty(vcpu, gpa >> 12)
    kvm_mmu_pte_write(vcpu, gpa, insn.size)


def _cmpxchg8b(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    old = _read_for_write(vcpu, cr2, kind, insn)
    equal = old == insn.old
    vcpu.emulation.result = old & 0xFFFFFFFF
    vcpu.emulation.zf = int(equal)
    _write_memory(vcpu, cr2, kind, insn, insn.value if equal else old)


def _add(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    old = _read_for_write(vcpu, cr2, kind, insn)
    _write_memory(vcpu, cr2, kind, insn, (old + insn.value) & 0xFF)


def _nop(vcpu: Vcpu, cr2: int, kind: EmulationType, insn: Instruction) -> None:
    """Do nothing."""


EXECUTE: dict[Mnemonic, Callable[[Vcpu, int, EmulationType, Instruction], None]] = {
    Mnemonic.LOAD: _load,
    Mnemonic.STORE: _store,
    Mnemonic.XCHG: _xchg,
    Mnemonic.CMPXCHG8B: _cmpxchg8b,
    Mnemonic.ADD: _add,
    Mnemonic.NOP: _nop,
}
