"""What an op obliges its processor to forget: SDM 3, 4.10.4 and 28.3.3; APM 2, 5.5 and 15.16."""

from __future__ import annotations

from mmulab.check.remembered import ALL_PCIDS, Forgotten
from mmulab.check.world import ASID, HOST_SPACE, World
from mmulab.kvm.state import Vcpu
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VPID
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome, OutcomeKind
from mmulab.x86.regs import X86_CR3_PCID_NOFLUSH, X86_CR4_PCIDE

_INVEPT_SINGLE, _INVVPID_ADDRESS, _INVVPID_KEEP_GLOBAL = 1, 0, 3
_INVPCID_ADDRESS, _INVPCID_SINGLE, _INVPCID_ALL = 0, 1, 2
WORLD_OPS = (ops.SetCpuid, ops.Vmrun, ops.Vmlaunch, ops.Vmptrld, ops.Vmclear, ops.Vmwrite, ops.Vmfunc)
"""Ops that may change a guest's world though no register tells."""
OBLIGING = (*WORLD_OPS, ops.WriteCr, ops.SetSregs, ops.Invlpg, ops.Invpcid, ops.Invept, ops.Invvpid)
"""Ops that may oblige though no register tells."""


def forget(
    forgotten: Forgotten, machine: Machine, op: Op, outcome: Outcome, before: World, after: World, now: int
) -> None:
    """Note what an op made the processor forget.

    Parameters
    ----------
    forgotten : Forgotten
    machine : Machine
        After the op.
    op : Op
    outcome : Outcome
    before, after : World
        Of its vCPU, before and after the op.
    now : int
        Number of the op.
    """
    v = machine.kvm.vcpus[op.vcpu]
    if isinstance(op, ops.SetCpuid) and after.paging != before.paging:
        # It is another processor now, which knows nothing.
        forgotten.space(after.space, now)
        forgotten.tables(None, now)
        return
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
    block = machine.kvm.slots[0].read(machine.memory.bytes, op.gpa + ASID, 5)
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
        case ops.Invvpid(type=kind, vpid=vpid, gva=gva):
            if kind == _INVVPID_ADDRESS:
                forgotten.page(("vpid", vpid), ALL_PCIDS, gva, now)  # of upper levels less is known
            else:
                forgotten.space(("vpid", vpid), now, keep_global=kind == _INVVPID_KEEP_GLOBAL)
