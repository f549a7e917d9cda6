"""What a watcher of a run says: something is wrong at this op.

A watcher is made for a machine before its first op, looks at each op's result,
and says the first thing that is wrong with it. The searches know no more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class FindingKind(Enum):
    """How something wrong was noticed."""

    OUTCOME = "outcome"
    """An access did what the architecture does not allow (:mod:`mmulab.check.oracle`)."""
    STALE = "stale"
    """A translation that a processor may still keep leads where it must not (:mod:`mmulab.check.tlb`)."""
    INVARIANT = "invariant"
    """The MMU's own books do not agree (:mod:`mmulab.check.mmu`)."""
    ASSERTION = "assertion"
    """The kernel warns or dies (:mod:`mmulab.kvm.assertions`)."""
    FAILURE = "failure"
    """The model itself came to a stop."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, first seen at an op.

    Attributes
    ----------
    kind : FindingKind
    name : str
        What tells this fault from others of its kind, whatever the addresses: an
        invariant's or an assertion's name, a verdict's.
    op : int
        Index of the step, as :attr:`mmulab.scenario.runner.Result.index`.
    text : str
        The op.
    said : str
        One sentence: what was wanted and what was seen.
    """

    kind: FindingKind
    name: str
    op: int
    text: str
    said: str

    def __str__(self) -> str:
        return f"op {self.op} '{self.text}': {self.kind.value} {self.name}: {self.said}"


class Watcher(Protocol):
    """Looks at each op of one machine, right after it ran."""

    def after(self, result: Result) -> Finding | None:
        """Return the first thing that is wrong with the op, or None."""


MakeWatcher = Callable[[Machine], Watcher]
"""Makes a watcher for a machine that has run no op yet."""
