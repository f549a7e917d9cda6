"""The MMU's invariants, for a search that goes back: all in a new state, of a step what none shows."""

from __future__ import annotations

from typing import Any

from mmulab.check.finding import Finding, FindingKind
from mmulab.kvm.invariants.changes import Changes
from mmulab.kvm.invariants.checks import Checker
from mmulab.kvm.invariants.flags import Violation
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class StateChecks:
    """The checks of one machine.

    What is wrong with an entry, a page or a list shows in the state that an op led to
    (:meth:`everything`). That a link was made to what lay unsynced shows only in the op, and only
    where something was unsync before it: nowhere else is a step followed.

    Parameters
    ----------
    machine : Machine
    """

    def __init__(self, machine: Machine) -> None:
        self._kvm = machine.kvm
        self._checker = Checker(machine.kvm)
        self._changes: Changes | None = None
        self.follow()

    def after(self, result: Result) -> Finding | None:
        """Return what is wrong with what an op changed, where something was unsync."""
        if self._changes is None:
            self.follow()
            return None
        violation = self._changes.first_wrong(self._kvm, self._checker, result.events)
        return None if violation is None else _finding(violation, result.index, result.text)

    def everything(self, index: int, text: str) -> Finding | None:
        """Return what is wrong with the state that an op led to."""
        violation = next(self._checker.everything(self._kvm), None)
        return None if violation is None else _finding(violation, index, text)

    def save(self) -> None:
        """Return nothing: what an op is compared with is read from the machine that is put back."""

    def restore(self, saved: Any) -> None:
        """Follow nothing: a machine that was put back may go on without an op, where that is known."""
        self._changes = None
        self._checker.refreshed.clear()

    def key(self) -> None:
        """Return the one name: it knows nothing but the state."""

    def follow(self) -> None:
        """Follow the tables from here on, if one is unsync; an op is about to be executed."""
        if self._changes is None and any(sp.unsync for sp in self._kvm.pages.values()):
            self._changes = Changes(self._kvm)


def _finding(violation: Violation, index: int, text: str) -> Finding:
    return Finding(FindingKind.INVARIANT, violation.flag.name or "", index, text, violation.said)
