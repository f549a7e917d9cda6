"""Who judges the ops of a run: the oracle, and the registers that a #VMEXIT restores."""

from __future__ import annotations

from mmulab.check.access import TwoWalks, WrongAccess
from mmulab.check.oracle import Oracle, Verdict
from mmulab.check.restored import Restored
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result

__all__ = ["Judge"]


class Judge:
    """Says of each op of a machine what is wrong with it.

    Parameters
    ----------
    machine : Machine
        Before its first op.

    Attributes
    ----------
    oracle : Oracle
    """

    def __init__(self, machine: Machine) -> None:
        self.oracle, self._restored = Oracle(machine), Restored(machine)

    def judge(self, result: Result) -> tuple[Verdict, TwoWalks | None, WrongAccess | None]:
        """Judge an op that has run, each in its order; see :meth:`mmulab.check.oracle.Oracle.judge`.

        What is wrong may be the registers alone: the verdict is the oracle's.
        """
        lost = self._restored.after(result)
        verdict, walks, wrong = self.oracle.judge(result)
        return verdict, walks, wrong or lost
