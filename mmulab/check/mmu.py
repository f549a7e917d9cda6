"""The watcher of the MMU's own state: asks the invariants after each op (:mod:`mmulab.kvm.invariants`)."""

from __future__ import annotations

import weakref

from mmulab.check.finding import Finding, FindingKind
from mmulab.kvm.invariants.changes import Changes
from mmulab.kvm.invariants.checks import Checker
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result

FULL_EVERY = 64
"""Ops between two full surveys."""
_MOVES_SLOTS = (ops.SetMemslot, ops.DeleteMemslot, ops.GetDirtyLog, ops.ClearDirtyLog, ops.ResetDirtyRings)
"""Ops that make entries wrong without a change of them."""


class Invariants:
    """Checks the invariants after each op: those of what changed, and now and then all.

    Cheap, after each op: the checks of single entries and pages, asked for the entries and
    headers that the op changed, the counts of pages, and the links that were made to
    unsynced tables. Full, every :data:`FULL_EVERY` ops, after an op on memslots or
    dirty logs and at the end: all that :func:`mmulab.kvm.invariants.check` looks at. So a wrong reverse map,
    list or statistic is found, but perhaps some ops late.

    Parameters
    ----------
    machine : Machine
        Not kept alive.
    full_every : int
        Ops between two full surveys; 1 makes each op's check a full one.
    """

    def __init__(self, machine: Machine, *, full_every: int = FULL_EVERY) -> None:
        self._machine = weakref.ref(machine)
        self._checker = Checker(machine.kvm)
        self._changes = Changes(machine.kvm)
        self._full_every = full_every
        self._left = full_every

    def after(self, result: Result) -> Finding | None:
        """Return the first invariant that does not hold after the op, or None."""
        machine = self._machine()
        assert machine is not None
        kvm = machine.kvm
        violation = self._changes.first_wrong(kvm, self._checker, result.events)
        self._left -= 1
        if violation is None and (self._left <= 0 or isinstance(result.op, (*_MOVES_SLOTS, ops.Teardown))):
            self._left = self._full_every
            violation = next(self._checker.everything(kvm), None)
        if violation is None:
            return None
        name = violation.flag.name or ""
        return Finding(FindingKind.INVARIANT, name, result.index, result.text, violation.said)
