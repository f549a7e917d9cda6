"""A machine's guest as the oracle sees it: its registers, and what its ops make the processor forget.

Only what the guest itself could know is read: registers, L1's control block or
VMCS, the memslots; no shadow page and nothing of a sync policy.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import partial

from mmulab.check.allowed import Nested, World
from mmulab.check.remembered import Forgotten
from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import SvmNested
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VPID
from mmulab.lab.cases.judge import nested_tables
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome, OutcomeKind
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.regs import (
    EFER_LMA,
    X86_CR0_PG,
    X86_CR3_PCID_MASK,
    X86_CR3_PCID_NOFLUSH,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
    X86_CR4_PGE,
)

HOST_SPACE = "L1"
"""The space of whoever runs on the processor itself, as far as it can know: ASID or VPID 0."""
FLUSHING_CR4 = X86_CR4_PGE | X86_CR4_PAE | X86_CR4_LA57 | X86_CR4_PCIDE
"""A change of one of these makes every processor forget everything (SDM 3, 4.10.4.1; APM 2, 5.5.2)."""
_ASID, _TLB_CONTROL = 0x58, 0x5C
_INVEPT_SINGLE, _INVVPID_ADDRESS, _INVVPID_KEEP_GLOBAL = 1, 0, 3
_INVPCID_ADDRESS, _INVPCID_SINGLE, _INVPCID_ALL = 0, 1, 2


def world_of(machine: Machine, vcpu: int = 0) -> World:
    """Return how the vCPU's running guest translates addresses now."""
    v = machine.kvm.vcpus[vcpu]
    processor = machine.processor
    own = replace(processor.walker, sets_ad=False)
    models = [(v.cpu, KVM_WALK), (v.cpu, own)]
    if machine.kvm.config.tdp:  # then the processor walks alone, with its own limits
        models.append((replace(v.cpu, maxphyaddr=processor.cpu.maxphyaddr), own))
    forms = [make_paging(v.cr0, v.cr4, v.efer, cpu, walker) for cpu, walker in models]
    found = nested_tables(v)
    nested = None
    if found is not None:
        nested = Nested(found.paging, found.root, _tables(v), found.table_kind, found.final_kind)
    return World(
        paging=tuple(dict.fromkeys(replace(form, marks_pdptes=False) for form in forms)),
        control=(v.cr0 & X86_CR0_PG, v.cr4 & FLUSHING_CR4, v.efer & EFER_LMA),
        cr3=v.cr3,
        pcid=v.cr3 & X86_CR3_PCID_MASK if v.cr4 & X86_CR4_PCIDE else 0,
        space=_space(machine, v),
        hpa_of=partial(_hpa_of, machine, v.smm),
        pdptes=_pdptes(machine, v),
        nested=nested,
        pkru=v.pkru,
        nested_guest=bool(v.guest_mode),
    )


def _hpa_of(machine: Machine, address_space: int, gpa: int) -> int | None:
    slot = machine.kvm.slots[address_space].lookup(gpa >> 12)
    return None if slot is None else slot.frame(gpa >> 12) << 12 | gpa & 0xFFF


def _pdptes(machine: Machine, v: Vcpu) -> tuple[int, ...] | None:
    """Return the PDPTE registers; under AMD's nested paging there are none (APM 2, 15.25.10)."""
    amd = machine.kvm.config.vendor == "amd"
    npt = isinstance(v.nested, SvmNested) and v.nested.npt if v.guest_mode else machine.kvm.config.tdp
    return None if amd and npt else tuple(v.walk_mmu.pdptrs)


def _space(machine: Machine, v: Vcpu) -> Hashable:
    if not v.guest_mode:
        return HOST_SPACE
    if isinstance(v.nested, SvmNested):
        return "asid", machine.kvm.slots[0].read(machine.memory.bytes, v.nested.vmcb12_gpa + _ASID, 4)
    if v.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID):
        return "vpid", v.vmx.get("virtual_processor_id")
    return HOST_SPACE


def _tables(v: Vcpu) -> Hashable:
    """Return what names L1's nested tables: their root, under which INVEPT and KVM know them."""
    return None if v.nested is None else v.nested.nested_pgd >> 12


def forget(forgotten: Forgotten, machine: Machine, op: Op, outcome: Outcome, before: World, now: int) -> None:
    """Note what an op made the processor forget.

    Parameters
    ----------
    forgotten : Forgotten
    machine : Machine
        After the op.
    op : Op
    outcome : Outcome
    before : World
        Before the op.
    now : int
        Number of the op.
    """
    v = machine.kvm.vcpus[op.vcpu]
    after = world_of(machine, op.vcpu)
    if after.nested_guest == before.nested_guest and after.control != before.control:
        forgotten.space(after.space, now)
    elif after.nested_guest == before.nested_guest and after.paging != before.paging:
        forgotten.form(after.space, before.paging, now)
    if isinstance(op, ops.SetSregs) and outcome.result is None and after.cr3 != before.cr3:
        forgotten.pcid(after.space, after.pcid, now)
    entered = isinstance(op, ops.Vmrun | ops.Vmlaunch)
    if entered and machine.kvm.config.vendor == "amd":
        _run_with_control_block(forgotten, machine, op, now)
    elif (entered or after.nested_guest != before.nested_guest) and _without_vpid(machine, v):
        forgotten.space(HOST_SPACE, now)  # SDM 3, 28.3.3.1
    if outcome.kind is OutcomeKind.OK and not (outcome.cf or outcome.zf):
        _instruction(forgotten, op, before, after, now)


def _without_vpid(machine: Machine, v: Vcpu) -> bool:
    intel = machine.kvm.config.vendor == "intel"
    return intel and not v.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID)


def _run_with_control_block(forgotten: Forgotten, machine: Machine, op: Op, now: int) -> None:
    assert isinstance(op, ops.Vmrun)
    block = machine.kvm.slots[0].read(machine.memory.bytes, op.gpa + _ASID, 5)
    if block is not None and block >> 32:
        forgotten.space(("asid", block & 0xFFFFFFFF), now)
        forgotten.tables(None, now)


def _instruction(forgotten: Forgotten, op: Op, before: World, after: World, now: int) -> None:
    space = before.space
    match op:
        case ops.WriteCr(cr=3, value=value):
            if not (value & X86_CR3_PCID_NOFLUSH and before.control[1] & X86_CR4_PCIDE):
                forgotten.pcid(space, after.pcid, now)
        case ops.Invlpg(gva=gva):
            forgotten.page(space, before.pcid, gva, now)
        case ops.Invpcid(type=kind, pcid=pcid, gva=gva):
            if kind == _INVPCID_ADDRESS:
                forgotten.page(space, pcid, gva, now, keep_global=True)
            elif kind == _INVPCID_SINGLE:
                forgotten.pcid(space, pcid, now)
            else:
                forgotten.space(space, now, keep_global=kind != _INVPCID_ALL)
        case ops.Invept(type=kind, eptp=eptp):
            forgotten.tables(eptp >> 12 if kind == _INVEPT_SINGLE else None, now)
        case ops.Invvpid(type=kind, vpid=vpid):
            if kind != _INVVPID_ADDRESS:
                forgotten.space(("vpid", vpid), now, keep_global=kind == _INVVPID_KEEP_GLOBAL)
