"""One scenario on two kernels, the model as the first and a recording of the second, and why they differ."""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.conform.classify import Kind
from mmulab.conform.compare import Level
from mmulab.conform.diff import Run, diff_runs, model_run
from mmulab.conform.recording import KernelRecording
from mmulab.conform.tally import Diff
from mmulab.errors import InputError
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.drift.causes import Causes, find_causes
from mmulab.lab.drift.sides import Side
from mmulab.lab.side_by_side import SideBySide, model_at
from mmulab.report.results import Table

__all__ = ["TwoKernels", "two_kernels"]

MOST_KINDS = 3
"""Kinds that are named beside a change, those of the most ops."""


@dataclass(frozen=True, slots=True)
class TwoKernels:
    """A scenario on two kernels.

    Attributes
    ----------
    both : SideBySide
    diff : Diff
        What ``mmulab diff`` finds between them.
    causes : Causes
        Which changes between the kernels explain it.
    model : Kernel
        The first kernel.
    recording : KernelRecording
        Of the scenario on the first kernel.
    """

    both: SideBySide
    diff: Diff
    causes: Causes
    model: Kernel
    recording: KernelRecording

    @property
    def kinds(self) -> Table:
        """Each kind of difference, with its smallest example's place."""
        rows = [
            [str(kind), tally.ops, tally.times, "; ".join(f"{e.number} {e.text}" for e in tally.examples)]
            for kind, tally in self.diff.kinds
        ]
        return Table("kinds", ["kind", "ops", "times", "the smallest op"], rows, "What differs, by kind.")

    @property
    def changes(self) -> Table:
        """Each change that explains a difference."""
        rows = []
        for name, diff in self.causes.changes.items():
            if diff.ops_differ:
                most = ", ".join(str(kind) for kind, _ in diff.kinds[:MOST_KINDS])
                known = CHANGES.get(name)
                told = ("", "") if known is None else (known.commit, known.summary)
                more = ", .." if diff.kinds[MOST_KINDS:] else ""
                rows.append([name, *told, diff.ops_differ, most + more])
        unexplained = self.causes.unexplained.ops_differ
        return Table(
            "changes",
            ["change", "commit", "what KVM does with it", "ops", "kinds"],
            rows,
            "Commits between the two kernels: so many ops would be other ones without each. "
            f"Ops that none of them explains alone: {unexplained}.",
        )

    def side(self) -> Side:
        """Return the first kernel's way through the op that stands open."""
        return model_at(self.both, 0, self.recording.scenario, self.model)


def two_kernels(name: str, first: KernelRecording, second: KernelRecording, *, at: str) -> TwoKernels:
    """Lay the model's run as the first kernel beside the recording of the second one.

    Parameters
    ----------
    name : str
        Of the results table.
    first, second : KernelRecording
        Of one scenario on two kernels.
    at : str
        The op that stands open, as :meth:`SideBySide.position` takes it.

    Raises
    ------
    InputError
        The kernels are the same, or the scenario is more than the model knows.
    """
    model, other = (find_kernel(recording.scenario.header.kernel) for recording in (first, second))
    if model == other:
        raise InputError(f"kernels {model} and {other} are the same; name two that differ")
    runs = model_run(first, model), Run.of(second)
    both = SideBySide.of(name, (f"the model of {model}", f"Linux {other}"), runs, at=at)
    count, differ = diff_runs(*runs, Level.FULL)
    scenario = first.scenario.source.rpartition("/")[2].partition(".jsonl")[0]
    causes = find_causes(scenario, second, differ, (model, other), Level.FULL, _any)
    return TwoKernels(both, Diff.of(scenario, count, differ), causes, model, first)


def _any(kind: Kind) -> bool:
    return True
