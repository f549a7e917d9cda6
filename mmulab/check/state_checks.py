"""The MMU's invariants, for a search that goes back: of a step what it changed, of a new state all."""

from __future__ import annotations

from typing import Any

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.invariants.changes import Changes
from mmulab.check.invariants.checks import Checker
from mmulab.check.invariants.flags import Violation
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class StateChecks:
    """The checks of one machine; what it keeps of the tables follows them when they are put back.

    Parameters
    ----------
    machine : Machine
    """

    def __init__(self, machine: Machine) -> None:
        self._kvm = machine.kvm
        self._checker = Checker(machine.kvm)
        self._changes: Any = Changes(machine.kvm)

    def after(self, result: Result) -> Finding | None:
        """Return what is wrong with what an op changed."""
        violation = self._changes.first_wrong(self._kvm, self._checker, result.events)
        return None if violation is None else _finding(violation, result.index, result.text)

    def everything(self, index: int, text: str) -> Finding | None:
        """Return what is wrong with the state that an op led to."""
        violation = next(self._checker.everything(self._kvm), None)
        return None if violation is None else _finding(violation, index, text)

    def save(self) -> tuple[dict[int, bytes], dict[int, Any]]:
        """Return what the tables and headers were at the last look."""
        tables = {frame: held for frame, (_, held) in self._changes._snapshot.tables.items()}
        return tables, self._changes._headers

    def restore(self, saved: tuple[dict[int, bytes], dict[int, Any]]) -> None:
        """Follow a machine that was put back."""
        changes, pages = self._changes, self._kvm.pages
        tables, changes._headers = saved
        changes._snapshot.tables = {frame: (pages[frame], held) for frame, held in tables.items()}
        changes._unsync = {frame: sp for frame, sp in pages.items() if sp.unsync}

    def key(self) -> None:
        """Return the one name: it knows nothing but the state."""


def _finding(violation: Violation, index: int, text: str) -> Finding:
    return Finding(FindingKind.INVARIANT, violation.flag.name or "", index, text, violation.said)
