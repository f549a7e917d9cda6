"""Records of accesses that are judged: the walks behind one, and what went wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.op import Outcome
from mmulab.x86.walk import Walk

DATA = (ops.Read, ops.Write, ops.Exchange, ops.CompareExchange)
"""Accesses of one operand."""
ENDLESS = "the access faults again and again, and KVM never mends it"
Access = ops.Read | ops.Write | ops.Execute


def seen_str(outcome: Outcome) -> str:
    """Say in a few words what the guest saw of an access."""
    return ENDLESS if is_endless(outcome) else outcome_str(encode_outcome(outcome))


class TwoWalks(NamedTuple):
    """A walk of the guest's tables, and where there are nested ones, a walk of those for each step.

    Attributes
    ----------
    outer : Walk
        L2's walk, or the only guest's. Addresses of its tables are L2's
        guest-physical ones.
    inner : tuple of Walk
        Of L1's nested tables: for each entry that `outer` read in memory, root
        first, and for the address it arrived at. Empty without nested tables.
    gpa : int or None
        L1's guest-physical address; None if either walk faults.
    ept : bool
        The nested tables are EPT: U in the codes of `inner` stands for a read.
    hole : bool
        An entry lay where no memory is; what a processor reads there, nobody says.
    """

    outer: Walk
    inner: tuple[Walk, ...]
    gpa: int | None
    ept: bool = False
    hole: bool = False


class WrongAccess(NamedTuple):
    """An access, or a change of world, that did not do what the guest's own state says.

    Attributes
    ----------
    op : int
        Index of the step.
    text : str
    expected, reached : int or None
        Guest-physical addresses; None where there is no translation.
    seen : str
        The outcome in words.
    wanted : str
        What should have been seen instead, where that is no translation.
    gva : int or None
        Of an access.
    """

    op: int
    text: str
    expected: int | None
    reached: int | None
    seen: str
    wanted: str = ""
    gva: int | None = None

    def __str__(self) -> str:
        return f"op {self.op} '{self.text}': {self.said}"

    @property
    def said(self) -> str:
        """What was expected and what was seen."""
        return "; ".join([*self._ends(), self.seen])

    def _ends(self) -> Iterator[str]:
        if self.expected is not None:
            yield f"expected gpa {self.expected:#x}"
        elif self.wanted:
            yield f"expected {self.wanted}"
        if self.reached is not None:
            yield f"reached gpa {self.reached:#x}"
