"""The kernel's assertions: what KVM checks of itself, at the places where it does.

``assertions.csv`` beside this file has a row for each. A name is
``FILE:FUNCTION:WORD``, file and function those of Linux 6.1.192. At its place
in the model stands one call, which returns the truth of the condition as the
kernel's macro does::

    if warn_on(kvm, "mmu.c:mmu_sync_children:level", bad):

Where the way is hot, nothing is called unless the condition holds or somebody counts::

    if bad or kvm.assertion_counts is not None:
        warn_on(kvm, "mmu.c:mmu_sync_children:level", bad)

Source: Linux 6.1 ``include/asm-generic/bug.h``, ``include/linux/kvm_host.h`` (``KVM_BUG_ON``).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from mmulab import events as ev

if TYPE_CHECKING:  # whatever a VM consists of may assert something
    from mmulab.kvm.state import Kvm


class Severity(StrEnum):
    """The macro of an assertion, which says what follows when its condition holds."""

    BUG = "BUG"
    """The host dies, whatever the condition: the place is never to be reached."""
    BUG_ON = "BUG_ON"
    """The host dies."""
    VM_BUG_ON = "VM_BUG_ON"
    """Only a kernel with ``CONFIG_DEBUG_VM`` looks, and dies; the model says it and goes on."""
    KVM_BUG_ON = "KVM_BUG_ON"
    """The kernel warns, and the VM runs no more."""
    WARN_ON = "WARN_ON"
    WARN_ON_ONCE = "WARN_ON_ONCE"
    """Said the first time alone."""
    WARN_ONCE = "WARN_ONCE"
    """Said the first time alone, with a text."""
    MMU_WARN_ON = "MMU_WARN_ON"
    """Only a kernel with ``MMU_DEBUG`` looks; the model says it and goes on."""
    WARN = "WARN"
    """Said with a text."""
    KVM_BUG = "KVM_BUG"
    """``KVM_BUG_ON`` with a text."""
    BUILD_BUG_ON = "BUILD_BUG_ON"
    """The compiler looks."""
    LOCKDEP_HELD = "lockdep_assert_held"
    LOCKDEP_READ = "lockdep_assert_held_read"
    LOCKDEP_WRITE = "lockdep_assert_held_write"
    """Only a kernel with ``CONFIG_LOCKDEP`` looks whether a lock is held, and how."""

    @property
    def once(self) -> bool:
        """Whether the kernel says it the first time alone."""
        return self in (Severity.WARN_ON_ONCE, Severity.WARN_ONCE, Severity.KVM_BUG_ON)

    @property
    def fatal(self) -> bool:
        """Whether the host dies of it."""
        return self in (Severity.BUG, Severity.BUG_ON)


@dataclass(frozen=True, slots=True)
class Assertion:
    """One assertion of the kernel.

    Attributes
    ----------
    name : str
        ``FILE:FUNCTION:WORD``.
    file : str
        Below ``arch/x86/kvm`` of the kernel's source.
    line : int
        In Linux 6.1.192.
    severity : Severity
    condition : str
        What must not be, in the kernel's terms.
    modelled : bool
        Whether the model has it.
    note : str
        Why it is not modelled; of a modelled one, why nothing can make it fire, if so.
    """

    name: str
    file: str
    line: int
    severity: Severity
    condition: str
    modelled: bool
    note: str

    @property
    def function(self) -> str:
        """The kernel's function that it stands in."""
        return self.name.split(":")[1]

    def __str__(self) -> str:
        """Word it in one line.

        >>> str(assertions()["mmu.c:pte_list_remove:empty"])
        'BUG(the reverse map is empty) in mmu.c:pte_list_remove'
        """
        return f"{self.severity}({self.condition}) in {self.name.rpartition(':')[0]}"


@cache
def assertions() -> dict[str, Assertion]:
    """Return the table of assertions by name, in the order of the kernel's files and lines."""
    text = resources.files(__package__).joinpath("assertions.csv").read_text("ascii")
    table = {}
    for row in csv.DictReader(text.splitlines()):
        table[row["name"]] = Assertion(
            name=row["name"],
            file=row["file"],
            line=int(row["line"]),
            severity=Severity(row["severity"]),
            condition=row["condition"],
            modelled=row["modelled"] == "yes",
            note=row["note"],
        )
    return table


class HostDiedError(Exception):
    """An assertion stopped the host (``BUG_ON``).

    Attributes
    ----------
    assertion : Assertion
    """

    def __init__(self, assertion: Assertion) -> None:
        super().__init__(str(assertion))
        self.assertion = assertion


def bug_on(kvm: Kvm, name: str, bad: bool) -> None:
    """Assert that a condition does not hold, on pain of death.

    Raises
    ------
    HostDiedError
    """
    if kvm.assertion_counts is not None:
        _count(kvm.assertion_counts, name, bad)
    if bad:
        raise HostDiedError(_fire(kvm, name))


def warn_on(kvm: Kvm, name: str, bad: bool) -> bool:
    """Assert that a condition does not hold, and go on; return whether it does."""
    if kvm.assertion_counts is not None:
        _count(kvm.assertion_counts, name, bad)
    if bad:
        _fire(kvm, name)
    return bad


def kvm_bug_on(kvm: Kvm, name: str, bad: bool) -> bool:
    """Assert that a condition does not hold, or else the VM is dead; return whether it does."""
    if kvm.assertion_counts is not None:
        _count(kvm.assertion_counts, name, bad)
    if bad:
        _fire(kvm, name)
        kvm.bug()
    return bad


def host_died(kvm: Kvm) -> bool:
    """Whether an assertion stopped the host, so that nothing runs any more."""
    return any(assertions()[name].severity.fatal for name in kvm.fired)


def _count(counts: dict[str, tuple[int, int]], name: str, bad: bool) -> None:
    reached, held = counts.get(name, (0, 0))
    counts[name] = reached + 1, held + bad


def _fire(kvm: Kvm, name: str) -> Assertion:
    """Note that a condition held, and say it as the kernel's log does."""
    fired = assertions()[name]
    said = kvm.fired.get(name, 0)
    kvm.fired[name] = said + 1
    if kvm.emit is not None and not (said and fired.severity.once):
        kvm.emit(ev.kvm_assertion(name, str(fired.severity), fired.condition))
    return fired
