"""Ops, outcomes and events as plain English sentences, for people who do not read traces yet.

The kernel's own wording of an event is in :mod:`mmulab.ftrace`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from mmulab import events as ev
from mmulab.errors import error_str
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.spte import is_writable_pte
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.op import Mmio, Mode, Op, Outcome, OutcomeKind
from mmulab.x86.exceptions import EXCEPTIONS
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)

_MODES = {
    Mode.SUPERVISOR: "as supervisor",
    Mode.USER: "in user mode",
    Mode.SUPERVISOR_AC: "as supervisor with EFLAGS.AC",
    Mode.IMPLICIT: "implicitly, as supervisor",
}


def error_code_sentence(code: int) -> str:
    """Say what a page-fault error code means.

    >>> error_code_sentence(6)
    'a write in user mode to a page that is not present'
    """
    kind = "a fetch" if code & PFERR_FETCH_MASK else "a write" if code & PFERR_WRITE_MASK else "a read"
    who = "in user mode" if code & PFERR_USER_MASK else "as supervisor"
    if code & PFERR_RSVD_MASK:
        why = "through an entry with a reserved bit set"
    elif code & PFERR_PK_MASK:
        why = "against the page's protection key"
    elif code & PFERR_PRESENT_MASK:
        why = "against the page's rights"
    else:
        why = "to a page that is not present" if kind == "a write" else "of a page that is not present"
    return f"{kind} {who} {why}"


def op_sentence(op: Op) -> str:
    """Say what an op does.

    >>> op_sentence(ops.Read(mode=Mode.USER, size=4, gva=0x40000000))
    'vCPU 0 reads 4 bytes at 0x40000000 in user mode'
    """
    wording = _OPS.get(type(op))
    if wording is not None:
        return wording(op)
    values = ((f.name, getattr(op, f.name)) for f in fields(op) if f.name != "vcpu")
    shown = (f"{name} {value:#x}" if isinstance(value, int) else f"{name} {value}" for name, value in values)
    arguments = " ".join(shown)
    return f"vCPU {op.vcpu} executes {type(op).__name__.lower()} {arguments}".rstrip()


def _touch(op: Any) -> str:
    verb = "fetches from" if op.fetch else "writes to" if op.write else "reads from"
    return f"vCPU {op.vcpu} {verb} {op.gva:#x} {_MODES[op.mode]}"


def _slot(op: Any) -> str:
    end = op.gpa + op.size - 1
    return f"the VMM sets memslot {op.id:#x}: gpa {op.gpa:#x} to {end:#x}, flags {op.flags:#x}"


def _sregs(op: Any) -> str:
    registers = f"CR0 {op.cr0:#x}, CR3 {op.cr3:#x}, CR4 {op.cr4:#x}, EFER {op.efer:#x}"
    return f"the VMM sets the registers of vCPU {op.vcpu}: {registers}"


_PROTECTED = {0: "inaccessible", 1: "read-only"}
_OPS: dict[type, Callable[[Any], str]] = {
    ops.Read: lambda o: f"vCPU {o.vcpu} reads {o.size} bytes at {o.gva:#x} {_MODES[o.mode]}",
    ops.Write: lambda o: f"vCPU {o.vcpu} writes {o.value:#x} ({o.size} bytes) to {o.gva:#x} {_MODES[o.mode]}",
    ops.Exchange: lambda o: (
        f"vCPU {o.vcpu} exchanges {o.value:#x} with {o.size} bytes at {o.gva:#x} {_MODES[o.mode]}"
    ),
    ops.CompareExchange: lambda o: (
        f"vCPU {o.vcpu} stores {o.new:#x} at {o.gva:#x} {_MODES[o.mode]} if it finds {o.old:#x}"
    ),
    ops.Execute: lambda o: f"vCPU {o.vcpu} executes a NOP at {o.gva:#x} {_MODES[o.mode]}",
    ops.Touch: _touch,
    ops.WriteCr: lambda o: f"vCPU {o.vcpu} loads CR{o.cr} with {o.value:#x}",
    ops.WriteEfer: lambda o: f"vCPU {o.vcpu} loads EFER with {o.value:#x}",
    ops.Invlpg: lambda o: f"vCPU {o.vcpu} executes INVLPG of {o.gva:#x}",
    ops.Invpcid: lambda o: (
        f"vCPU {o.vcpu} executes INVPCID of type {o.type:#x}: PCID {o.pcid:#x}, address {o.gva:#x}"
    ),
    ops.Smm: lambda o: (
        f"vCPU {o.vcpu} gets an SMI" if o.on else f"vCPU {o.vcpu} leaves system management mode (RSM)"
    ),
    ops.Nop: lambda o: f"vCPU {o.vcpu} executes a NOP",
    ops.Sysexit: lambda o: f"vCPU {o.vcpu} goes to user mode (SYSEXIT)",
    ops.Sysenter: lambda o: f"vCPU {o.vcpu} goes to supervisor mode (SYSENTER)",
    ops.GuestStore: lambda o: f"the guest stores {o.value:#x} ({o.size} bytes) at gpa {o.gpa:#x}",
    ops.HostWrite: lambda o: (
        f"the VMM writes {o.value:#x} ({o.size} bytes) at offset {o.gpa:#x}, behind KVM's back"
    ),
    ops.SetMemslot: _slot,
    ops.DeleteMemslot: lambda o: f"the VMM deletes memslot {o.id:#x}",
    ops.GetDirtyLog: lambda o: f"the VMM reads the dirty log of memslot {o.id:#x}",
    ops.ClearDirtyLog: lambda o: (
        f"the VMM clears the dirty log of memslot {o.id:#x}: {o.count:#x} pages from {o.first:#x}"
    ),
    ops.GetDirtyRing: lambda o: f"the VMM takes what is new in the dirty ring of vCPU {o.vcpu}",
    ops.ResetDirtyRings: lambda o: "the VMM has what it took from the dirty rings logged anew",
    ops.InvalidateHva: lambda o: f"the host invalidates {o.length:#x} bytes behind offset {o.gpa:#x}",
    ops.Age: lambda o: f"the host tries to reclaim {o.length:#x} bytes behind offset {o.gpa:#x}",
    ops.Collapse: lambda o: f"the host makes huge pages of {o.length:#x} bytes behind offset {o.gpa:#x}",
    ops.Protect: lambda o: (
        f"the VMM makes {o.length:#x} bytes behind offset {o.gpa:#x} "
        f"{_PROTECTED.get(o.access, 'writable')} for itself"
    ),
    ops.SwapOut: lambda o: f"the host swaps {o.length:#x} bytes behind offset {o.gpa:#x} out",
    ops.RecoverNxHugePages: lambda o: (
        f"the host makes huge pages possible again for 1/{o.ratio} of the split NX ones"
        if o.ratio
        else "the host's recovery of NX huge pages is off"
    ),
    ops.SetNxHugePages: lambda o: f"the host turns nx_huge_pages {'on' if o.enabled else 'off'}",
    ops.SetNrMmuPages: lambda o: f"the VMM limits the shadow pages to {o.count:#x}",
    ops.SetSregs: _sregs,
    ops.SetPkru: lambda o: f"the VMM sets PKRU of vCPU {o.vcpu} to {o.value:#x}",
    ops.Teardown: lambda o: "the VM is destroyed",
}


def outcome_sentence(outcome: Outcome) -> str:
    """Say how an op ended."""
    match outcome.kind:
        case OutcomeKind.OK:
            return "; ".join(_ended_well(outcome)) or "done"
        case OutcomeKind.EXC:
            code = "" if outcome.error_code is None else f", error code {outcome.error_code:#x}"
            if outcome.vector == 14 and outcome.error_code is not None:
                code += f" {pferr_str(outcome.error_code)}, CR2 {outcome.cr2 or 0:#x}"
            return f"the guest gets {EXCEPTIONS.get(outcome.vector or 0, f'vector {outcome.vector}')}{code}"
        case OutcomeKind.HOST:
            dirty = "" if outcome.dirty is None else f"; dirty pages: {_pages(outcome.dirty)}"
            ring = "" if outcome.ring is None else f"; dirty pages: {_ring(outcome.ring)}"
            return _returned(outcome.result or 0) + dirty + ring
        case OutcomeKind.VMEXIT:
            told = " ".join(f"{name} {value:#x}" for name, value in (outcome.vmexit or {}).items())
            return f"L1 gets an exit of L2: {told}"
        case OutcomeKind.HANG:
            if is_endless(outcome):
                return "the instruction exits again and again, until the VMM interrupts it"
            return f"KVM_RUN fails with {errno.errorcode.get(outcome.error or 0, 'an error')}"
    return _PLAIN_ENDS[outcome.kind]


def _returned(result: int) -> str:
    if result == 0:
        return "done"
    return f"fails with {error_str(result)}" if result < 0 else f"returns {result}"


_PLAIN_ENDS = {
    OutcomeKind.INTERNAL_ERROR: "KVM gives up: an internal error goes to the VMM",
    OutcomeKind.SHUTDOWN: "the vCPU shuts down (triple fault)",
    OutcomeKind.L2: "L2 runs",
    OutcomeKind.VMFAIL: "the VM entry fails its checks",
    OutcomeKind.HOST_DIED: "the host's kernel stops: an assertion fails that it does not go on from",
    OutcomeKind.DIRTY_RING_FULL: "the vCPU does not run: its dirty ring is all but full",
}


def _pages(dirty: list[int]) -> str:
    return ", ".join(f"{page:#x}" for page in dirty) or "none"


def _ring(taken: list[tuple[int, int]]) -> str:
    return ", ".join(f"{offset:#x} of memslot {slot:#x}" for slot, offset in taken) or "none"


def _ended_well(outcome: Outcome) -> list[str]:
    parts = []
    if outcome.hpa != -1:
        parts.append(f"reaches host address {outcome.hpa:#x}")
    parts += [_mmio(access) for access in outcome.mmio or ()]
    if outcome.rip is not None and outcome.hpa != -1:
        parts.append(f"the register holds {outcome.rax:#x}")
    if outcome.zf is not None:
        parts.append(f"ZF={outcome.zf}")
    return parts


def _mmio(access: Mmio) -> str:
    way = "writes" if access.write else "reads"
    return f"the VMM {way} {access.size} bytes of a device at gpa {access.gpa:#x}"


def event_sentence(event: ev.Event, design: RoleDesign) -> str:
    """Say what an event means.

    Parameters
    ----------
    event : Event
    design : RoleDesign
        Reads the role words.
    """
    wording = _EVENTS.get(type(event))
    return (type(event).__doc__ or "").splitlines()[0] if wording is None else wording(event, design)


def _page(e: Any, design: RoleDesign) -> str:
    facts = design.facts(e.role)
    width = "" if facts.direct else f", {4 if facts.has_4_byte_gpte else 8}-byte entries"
    quadrant = f", quadrant {facts.quadrant}" if facts.has_4_byte_gpte and not facts.direct else ""
    kind = "direct" if facts.direct else "passthrough" if facts.passthrough else "shadow"
    return f"the {kind} page of gfn {e.gfn:#x} (level {facts.level}{width}{quadrant})"


def _get_page(e: ev.kvm_mmu_get_page, design: RoleDesign) -> str:
    if e.created:
        return f"No page of this gfn and role exists: KVM creates {_page(e, design)}."
    return f"KVM finds {_page(e, design)} and takes it: same gfn, same role."


def _set_spte(e: ev.kvm_mmu_set_spte, design: RoleDesign) -> str:
    rights = "writable" if is_writable_pte(e.spte) else "read-only"
    size = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}[e.level]
    where = f"the spte at {e.sptep:#x} is now {e.spte:#x}"
    return f"KVM maps gfn {e.gfn:#x} with a {size} page, {rights}: {where}."


def _fast_page_fault(e: ev.fast_page_fault, design: RoleDesign) -> str:
    ended = {RetPf.FIXED: "fixed", RetPf.SPURIOUS: "spurious"}.get(RetPf(e.ret), "not possible")
    return f"KVM tries to fix the fault without the MMU lock: {ended}."


def _exit(e: ev.kvm_exit, design: RoleDesign) -> str:
    where = "" if e.address is None else f" at {e.address:#x}"
    code = "" if e.error_code is None else f": {error_code_sentence(e.error_code)}"
    return f"The processor leaves the guest ({e.reason}){where}{code}."


def _exception(e: ev.kvm_inj_exception, design: RoleDesign) -> str:
    name = EXCEPTIONS.get(e.exception, f"vector {e.exception}")
    code = "" if e.error_code is None else f" with error code {e.error_code:#x}"
    return f"KVM puts {name}{code} into the guest."


_EVENTS: dict[type, Callable[[Any, RoleDesign], str]] = {
    ev.kvm_mmu_pagetable_walk: lambda e, d: (
        f"KVM walks the guest's tables for {e.addr:#x} ({pferr_str(e.pferr) or 'a supervisor read'})."
    ),
    ev.kvm_mmu_paging_element: lambda e, d: f"At level {e.level} the guest's table holds {e.pte:#x}.",
    ev.kvm_mmu_set_accessed_bit: lambda e, d: f"KVM sets A in the guest's entry at {e.gpa:#x}.",
    ev.kvm_mmu_set_dirty_bit: lambda e, d: f"KVM sets D in the guest's entry at {e.gpa:#x}.",
    ev.kvm_mmu_walker_error: lambda e, d: (
        f"The guest's own tables forbid it: {error_code_sentence(e.pferr)}."
    ),
    ev.kvm_mmu_get_page: _get_page,
    ev.kvm_mmu_sync_page: lambda e, d: f"KVM brings {_page(e, d)} into sync again.",
    ev.kvm_mmu_unsync_page: lambda e, d: (
        f"KVM lets {_page(e, d)} go out of sync: the guest may write that table freely."
    ),
    ev.kvm_mmu_prepare_zap_page: lambda e, d: f"KVM zaps {_page(e, d)}.",
    ev.mark_mmio_spte: lambda e, d: (
        f"gfn {e.gfn:#x} is in no memslot: the spte at {e.sptep:#x} says so from now on."
    ),
    ev.check_mmio_spte: lambda e, d: (
        "The spte says that there is no memory, and "
        + ("it is current." if e.kvm_gen == e.spte_gen else "it is from before a change of the memslots.")
    ),
    ev.handle_mmio_page_fault: lambda e, d: f"An access to a device at gfn {e.gfn:#x}: it is emulated.",
    ev.fast_page_fault: _fast_page_fault,
    ev.kvm_mmu_zap_all_fast: lambda e, d: f"All {e.mmu_used_pages} shadow pages become obsolete at once.",
    ev.kvm_mmu_set_spte: _set_spte,
    ev.kvm_mmu_spte_requested: lambda e, d: (
        f"The fault wants gfn {e.gfn:#x} mapped to host frame {e.pfn:#x} at level {e.level}."
    ),
    ev.kvm_tdp_mmu_spte_changed: lambda e, d: (
        f"The TDP MMU changes the spte of gfn {e.gfn:#x} at level {e.level}"
        f" from {e.old_spte:#x} to {e.new_spte:#x}."
    ),
    ev.kvm_mmu_split_huge_page: lambda e, d: (
        f"The huge spte of gfn {e.gfn:#x} is split into smaller ones."
        if not e.errno
        else f"The huge spte of gfn {e.gfn:#x} is not split: {error_str(e.errno)}."
    ),
    ev.kvm_exit: _exit,
    ev.kvm_page_fault: lambda e, d: (
        f"KVM handles a page fault at {e.fault_address:#x}: {error_code_sentence(e.error_code)}."
    ),
    ev.kvm_inj_exception: _exception,
    ev.kvm_emulate_insn: lambda e, d: (
        f"KVM emulates the instruction at {e.rip:#x}{', and fails' if e.failed else ''}."
    ),
    ev.kvm_mmio: lambda e, d: f"The VMM handles a device access of {e.len} bytes at gpa {e.gpa:#x}.",
    ev.kvm_smm_transition: lambda e, d: (
        f"The vCPU {'enters' if e.entering else 'leaves'} system management mode (SMRAM at {e.smbase:#x})."
    ),
    ev.kvm_dirty_ring_push: lambda e, d: (
        f"Page {e.offset:#x} of memslot {e.slot:#x} is dirty: it goes into the ring of vCPU {e.ring}."
    ),
    ev.kvm_dirty_ring_reset: lambda e, d: (
        f"What the VMM took from the ring of vCPU {e.ring} is given back;"
        f" {e.dirty_index - e.reset_index} entries are left."
    ),
    ev.kvm_dirty_ring_exit: lambda e, d: f"The dirty ring of vCPU {e.vcpu_id} is all but full.",
    ev.kvm_mmu_load: lambda e, d: "The vCPU has no root: KVM sets one up.",
    ev.kvm_mmu_new_pgd: lambda e, d: f"KVM turns to the guest's root {e.new_pgd:#x}.",
    ev.kvm_mmu_free_roots: lambda e, d: "KVM lets go of roots.",
    ev.kvm_mmu_sync_roots: lambda e, d: "KVM brings everything below the current root into sync.",
    ev.kvm_mmu_sync_prev_roots: lambda e, d: "KVM frees kept roots with anything unsync below them.",
    ev.kvm_mmu_invlpg: lambda e, d: f"KVM drops the translations of {e.gva:#x}.",
    ev.kvm_mmu_unprotect_page: lambda e, d: (
        f"KVM zaps every page that shadows gfn {e.gfn:#x}, so that the guest may write it."
    ),
    ev.kvm_mmu_pte_write: lambda e, d: (
        f"A write of {e.bytes} bytes reaches the guest table at gpa {e.gpa:#x}; KVM updates what shadows it."
    ),
    ev.kvm_mmu_reset_context: lambda e, d: "The guest's paging changed: KVM configures its MMU anew.",
    ev.kvm_flush_remote_tlbs: lambda e, d: "Every processor must forget its translations.",
    ev.kvm_flush_remote_tlbs_with_address: lambda e, d: (
        f"Every processor must forget the translations of {e.pages} pages from gfn {e.start_gfn:#x}."
    ),
    ev.kvm_assertion: lambda e, d: (
        f"The kernel finds what must not be: {e.condition} ({e.severity} in {e.name.split(':')[1]})."
    ),
    ev.drop_spte: lambda e, d: f"KVM clears the spte at {e.sptep:#x}, which was {e.old_spte:#x}.",
}
