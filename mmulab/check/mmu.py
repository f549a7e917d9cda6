"""``check(kvm)``: every invariant of the MMU's own state, as flags and with the objects.

The invariants I1 to I16 of a shadow MMU are the flags of :class:`Invariant`, but for
three. That each translation was once the guest's, that a TLB holds nothing that is
owed a flush (:mod:`mmulab.check.tlb`), and that states which share a page translate
alike (:mod:`mmulab.check.oracle`) shows in no table: it needs the history.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.invariants.changes import Changes
from mmulab.check.invariants.checks import Checker, found
from mmulab.check.invariants.flags import Invariant, Violation
from mmulab.kvm.state import Kvm
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result

FULL_EVERY = 64
"""Ops between two full surveys."""
_MOVES_SLOTS = (ops.SetMemslot, ops.DeleteMemslot, ops.GetDirtyLog, ops.ClearDirtyLog, ops.ResetDirtyRings)
"""Ops that make entries wrong without a change of them."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a check of the whole MMU found.

    Attributes
    ----------
    status : Invariant
        Every invariant that is violated; ``Invariant.VALID``, which is false, if none is.
    violations : tuple of Violation
    """

    status: Invariant
    violations: tuple[Violation, ...]

    def __bool__(self) -> bool:
        """Whether the state is right."""
        return not self.violations

    def __repr__(self) -> str:
        lines = [str(violation) for violation in self.violations]
        return "\n".join([f"<Check {self.status.name or 'VALID'}, {len(lines)} violations>", *lines])


def check(kvm: Kvm) -> Check:
    """Check everything.

    >>> from mmulab.machine.config import MachineConfig
    >>> check(Machine(MachineConfig()).kvm)
    <Check VALID, 0 violations>
    """
    violations = found(kvm)
    status = Invariant.VALID
    for violation in violations:
        status |= violation.flag
    return Check(status, tuple(violations))


class Invariants:
    """Checks the invariants after each op: those of what changed, and now and then all.

    Cheap, after each op: the checks of single entries and pages, asked for the entries and
    headers that the op changed, the counts of pages, and the links that were made to
    unsynced tables. Full, every :data:`FULL_EVERY` ops, after an op on memslots or
    dirty logs and at the end: all that :func:`check` looks at. So a wrong reverse map,
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
