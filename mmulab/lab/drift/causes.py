"""Which changes between two kernels explain the differences between two recordings of a scenario.

The model runs the second recording's scenario on its kernel without one change.
The ops that then differ from the recording are those that the change explains,
its consequences in later ops among them. An op may need several changes, so the
numbers do not add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmulab.conform.classify import Kind
from mmulab.conform.compare import Level
from mmulab.conform.diff import Run, diff_runs, model_run, only
from mmulab.conform.recording import KernelRecording
from mmulab.conform.tally import Diff, OpDiff
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.kernel import Kernel
from mmulab.lab.drift.drift import parts
from mmulab.lab.drift.track import Asked

__all__ = ["Causes", "find_causes"]


@dataclass(slots=True)
class Causes:
    """What explains the differences.

    Attributes
    ----------
    changes : dict of str to Diff
        By change: the second kernel without it against the second side.
    unexplained : Diff
        The ops that differ although none of the changes alone makes one: they need several, or are on the
        first side only, or something else than the kernel is different.
    not_modelled : Diff
        The model's run of the second kernel against the second side; nothing differs if the model is right.
    """

    changes: dict[str, Diff]
    unexplained: Diff
    not_modelled: Diff

    @classmethod
    def empty(cls, limit: int) -> Causes:
        """Return what begins a sum; `limit` examples are kept of each kind."""
        return cls({}, Diff(limit), Diff(limit))

    def add(self, other: Causes) -> None:
        """Count what was found in other scenarios too."""
        for name, found in other.changes.items():
            self.changes.setdefault(name, Diff(found.limit)).add(found)
        self.unexplained.add(other.unexplained)
        self.not_modelled.add(other.not_modelled)


def find_causes(
    name: str,
    theirs: KernelRecording,
    differ: list[OpDiff],
    kernels: tuple[Kernel, Kernel],
    level: Level,
    wanted: Callable[[Kind], bool],
    limit: int = 1,
) -> Causes:
    """Explain what differs between two runs of a scenario on two kernels.

    Parameters
    ----------
    name : str
        Of the scenario, for examples.
    theirs : KernelRecording
        The second side.
    differ : list of OpDiff
        Against the first side.
    kernels : tuple of Kernel
        Of the first and of the second side.
    level : Level
    wanted : callable
        Kinds that count.
    limit : int
        Examples that are kept of each kind.

    Raises
    ------
    InputError
        The kernels are the same, or the scenario is more than the model knows.
    """
    ours, other = kernels
    asking = Asked.of(other.behaviours)
    whole = model_run(theirs, other.with_(behaviours=asking))
    count, wrong = _diff(whole, theirs, level, wanted)
    explained = set[tuple[int, str]]()
    changes = {}
    for part in parts(ours, other):
        without: list[OpDiff] = []
        if part.name not in CHANGES or part.name in asking.asked:
            _, without = _diff(model_run(theirs, part.without), theirs, level, wanted)
            without = _not_in(without, _ids(wrong))
        explained |= _ids(without)
        changes[part.name] = Diff.of(name, count, without, limit)
    unexplained = Diff.of(name, count, _not_in(differ, explained), limit)
    return Causes(changes, unexplained, Diff.of(name, count, wrong, limit))


def _diff(
    ours: Run, theirs: KernelRecording, level: Level, wanted: Callable[[Kind], bool]
) -> tuple[int, list[OpDiff]]:
    count, differ = diff_runs(ours, Run.of(theirs), level)
    return count, only(differ, wanted)


def _ids(ops: list[OpDiff]) -> set[tuple[int, str]]:
    return {(op.number, op.text) for op in ops}


def _not_in(ops: list[OpDiff], known: set[tuple[int, str]]) -> list[OpDiff]:
    """Return the other ops: what the model gets wrong anyway no change explains."""
    return [op for op in ops if (op.number, op.text) not in known]
