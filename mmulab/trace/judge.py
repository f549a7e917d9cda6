"""A first look at whether accesses went where they should."""

from __future__ import annotations

from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome
from mmulab.machine.view import gpa_of, guest_walk
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK

DATA_ACCESSES = (ops.Read, ops.Write, ops.Exchange, ops.CompareExchange, ops.Touch)


def access_kind(op: Op) -> int:
    """Return the kind of a guest op's access as error-code bits (W, U, F)."""
    kind = PFERR_USER_MASK if getattr(op, "mode", None) is Mode.USER else 0
    if isinstance(op, (ops.Write, ops.Exchange, ops.CompareExchange)) or getattr(op, "write", False):
        kind |= PFERR_WRITE_MASK
    if isinstance(op, ops.Execute) or getattr(op, "fetch", False):
        kind |= PFERR_FETCH_MASK
    return kind


def against_tables(machine: Machine, op: Op, outcome: Outcome) -> str | None:
    """Say where a data access should have gone by the guest's tables as they are now.

    A difference is not always an error: until the guest executes INVLPG a
    processor may use what a table held before. Accesses of L2 are not judged.
    """
    if not isinstance(op, DATA_ACCESSES) or outcome.hpa == -1 or machine.kvm.vcpus[op.vcpu].guest_mode:
        return None
    reached = gpa_of(machine, outcome.hpa)
    not_smap = op.mode is Mode.SUPERVISOR_AC
    walk = guest_walk(machine, op.gva, vcpu=op.vcpu, pfec=access_kind(op), not_smap=not_smap)
    if walk.gpa == reached:
        return None
    found = "no memory of the guest's" if reached is None else f"gpa {reached:#x}"
    wanted = "give a fault" if walk.gpa is None else f"lead to gpa {walk.gpa:#x}"
    return f"reached {found}, the guest's tables {wanted}"
