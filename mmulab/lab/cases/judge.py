"""Judging accesses: what the guest's own tables say, and what the guest got.

The judge knows no shadow page. Before an access it walks the guest's own
tables, through L1's nested ones where there are some, and afterwards compares
what the guest sees. It holds for scenarios that flush before each judged
access, so that no stale translation is allowed; a recording has its own judge,
the outcomes of the real guest.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmulab.check import allowed
from mmulab.check.access import TwoWalks, WrongAccess, seen_str
from mmulab.check.told import judge_fault
from mmulab.check.world import world_of
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, OutcomeKind
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.trace.judge import access_kind
from mmulab.trace.view import gpa_of

Access = ops.Read | ops.Write | ops.Execute


def two_walks(machine: Machine, gva: int, pfec: int = 0, *, vcpu: int = 0) -> TwoWalks:
    """Walk the running guest's tables as they are now, without setting A or D."""
    return allowed.two_walks(world_of(machine, vcpu), machine.memory.read, gva, pfec)


_ENDS: dict[type[Op], OutcomeKind] = {
    ops.Vmrun: OutcomeKind.L2,
    ops.Vmmcall: OutcomeKind.VMEXIT,
    ops.Vmcall: OutcomeKind.VMEXIT,
}


def judge(
    machine: Machine, result: Result, access: Access | None, walks: TwoWalks | None
) -> WrongAccess | None:
    """Compare an outcome with what the guest's state said before the op.

    Parameters
    ----------
    machine : Machine
        After the op.
    result : Result
    access : Read, Write, Execute or None
        None: the op must only end as such ops do.
    walks : TwoWalks or None
        Of the access, before it.
    """
    outcome = result.outcome
    seen = seen_str(outcome)
    if access is None or walks is None:
        ends = _ENDS.get(type(result.op), OutcomeKind.OK)
        ends = OutcomeKind.HOST if isinstance(result.op, HOST_OPS) else ends
        right = outcome.kind is ends
        return None if right else WrongAccess(result.index, result.text, None, None, seen, str(ends))
    as_id = machine.kvm.vcpus[access.vcpu].smm
    reached = None if outcome.hpa == -1 else gpa_of(machine, outcome.hpa, as_id=as_id)
    if walks.gpa is None:
        wanted, right = judge_fault(walks, outcome)
        return (
            None if right else WrongAccess(result.index, result.text, None, reached, seen, wanted, access.gva)
        )
    right = outcome.kind is OutcomeKind.OK and reached in (None, walks.gpa)
    if right and not isinstance(access, ops.Execute):
        held = machine.kvm.slots[as_id].read(machine.memory.bytes, walks.gpa, access.size)
        right = held == (access.value if isinstance(access, ops.Write) else outcome.rax)
    return None if right else WrongAccess(result.index, result.text, walks.gpa, reached, seen, gva=access.gva)


def judge_dirty_log(machine: Machine, result: Result, written: Iterable[int]) -> WrongAccess | None:
    """Compare a dirty log with what was written since the one before it; it may name more pages.

    Parameters
    ----------
    machine : Machine
    result : Result
        Of a :class:`~mmulab.machine.op.GetDirtyLog`.
    written : iterable of int
        gfns that judged writes went to.
    """
    assert isinstance(result.op, ops.GetDirtyLog)
    slot = machine.kvm.slots[result.op.id >> 16].by_id(result.op.id & 0xFFFF)
    assert slot is not None
    logged = {slot.base_gfn + page for page in result.outcome.dirty or ()}
    missing = sorted(gfn for gfn in written if slot.base_gfn <= gfn < slot.base_gfn + slot.npages)
    missing = [gfn for gfn in missing if gfn not in logged]
    if not missing:
        return None
    wanted = "in the log: gfn " + " ".join(f"{gfn:x}" for gfn in missing)
    seen = seen_str(result.outcome)
    return WrongAccess(result.index, result.text, None, None, seen, wanted)


def walks_of(machine: Machine, access: Access) -> TwoWalks:
    """Walk for an access that is about to happen."""
    return two_walks(machine, access.gva, access_kind(access), vcpu=access.vcpu)
