"""The kernel's own assertions as a watcher: each that fires in an op is a finding."""

from __future__ import annotations

from mmulab.check.finding import Finding, FindingKind
from mmulab.kvm.assertions import assertions
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class Asserted:
    """Tells of assertions that fire.

    Parameters
    ----------
    machine : Machine
    """

    def __init__(self, machine: Machine) -> None:
        self._kvm = machine.kvm
        self._seen = dict(machine.kvm.fired)

    def after(self, result: Result) -> Finding | None:
        """Return the first assertion that fired in an op."""
        fired = self._kvm.fired
        if fired == self._seen:
            return None
        name = next(name for name, times in fired.items() if times != self._seen.get(name))
        self._seen = dict(fired)
        assertion = assertions()[name]
        said = f"{assertion.severity}({assertion.condition})"
        return Finding(FindingKind.ASSERTION, name, result.index, result.text, said)

    def save(self) -> dict[str, int]:
        """Return what has fired so far."""
        return self._seen

    def restore(self, saved: dict[str, int]) -> None:
        """Follow a machine that was put back."""
        self._seen = saved

    def key(self) -> None:
        """Return the one name: what has fired changes nothing that comes."""
