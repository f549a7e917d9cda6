"""Sync policies on the same work: who is wrong where, and what each costs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mmulab import pool
from mmulab.check.access import WrongAccess
from mmulab.check.failure import FAILURES
from mmulab.errors import DesignError, InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.sync.counts import SyncCounts, sync_counts
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.run import failure_str, run_case
from mmulab.lab.cases.table import Case, read_boot, read_case, scenario_of
from mmulab.lab.sync.judge import judge_recorded
from mmulab.lab.sync.witnesses import foretold
from mmulab.machine.machine import Machine
from mmulab.pool import Jobs
from mmulab.scenario.scenario import Scenario
from mmulab.workload.replay import Replay
from mmulab.workload.stream import Kind

__all__ = ["SyncCell", "compare_syncs", "syncs_each"]


@dataclass(frozen=True, slots=True)
class SyncCell:
    """A policy on a piece of work.

    Attributes
    ----------
    policy : SyncPolicy
    case : Case
    wrong : WrongAccess or None
        The first access that the architecture does not allow.
    judged, ops : int
        Ops of a recording, accesses of a boot, judged accesses of a case: how many
        were judged, and of how many.
    page_faults, invlpgs, flushes, pages_made, pages_zapped : int
        KVM's statistics ``pf_taken``, ``invlpg``, ``tlb_flush`` with ``remote_tlb_flush``,
        ``mmu_cache_miss`` and ``mmu_shadow_zapped``.
    counts : SyncCounts
    """

    policy: SyncPolicy
    case: Case
    wrong: WrongAccess | None
    judged: int
    ops: int
    page_faults: int
    invlpgs: int
    flushes: int
    pages_made: int
    pages_zapped: int
    counts: SyncCounts

    @property
    def verdict(self) -> str:
        """``correct`` or ``wrong``."""
        return "correct" if self.wrong is None else "wrong"

    def record(self) -> dict[str, Any]:
        """Return the cell as JSON holds it."""
        return {
            "sync": str(self.policy),
            "case": self.case.name,
            "verdict": self.verdict,
            "first_wrong": self.wrong._asdict() if self.wrong else None,
            "judged": self.judged,
            "ops": self.ops,
            "page_faults": self.page_faults,
            "invlpgs": self.invlpgs,
            "flushes": self.flushes,
            "pages_made": self.pages_made,
            "pages_zapped": self.pages_zapped,
            "counts": self.counts.record(),
        }


class _Work(NamedTuple):
    case: Case
    policies: Sequence[SyncPolicy]
    kernel: Kernel | None


def compare_syncs(
    policies: Sequence[SyncPolicy | str],
    works: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    jobs: Jobs = 1,
) -> list[SyncCell]:
    """Run each policy on each piece of work; cells by work, then by policy.

    Parameters
    ----------
    policies : sequence of SyncPolicy or str
        Policies, or texts of some.
    works : sequence of Case
        See :func:`mmulab.lab.cases.works.find_works`.
    kernel : Kernel, optional
        Instead of each work's own; a policy takes the place of its own.
    jobs : int or Workers
        Processes, or others (:mod:`mmulab.pool`).

    Raises
    ------
    InputError
        A policy is unknown or named twice, or a work cannot be read.
    """
    chosen = [find_sync(policy) if isinstance(policy, str) else policy for policy in policies]
    return [cell for row in syncs_each(chosen, works, kernel=kernel, jobs=jobs) for cell in row]


def syncs_each(
    policies: Sequence[SyncPolicy],
    works: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    jobs: Jobs = 1,
) -> Generator[list[SyncCell], None, None]:
    """Yield the cells of each piece of work as soon as it is done; else as :func:`compare_syncs`."""
    texts = [str(policy) for policy in policies]
    for text in texts:
        if texts.count(text) > 1:
            raise InputError(f"sync policy '{text}' is there {texts.count(text)} times; name it once")
    if jobs == 1 or any(type(policy).__module__ == "__main__" for policy in policies):
        for case in works:
            yield _cells(_Work(case, policies, kernel))
        return
    with closing(pool.each(_cells, [_Work(case, policies, kernel) for case in works], jobs)) as rows:
        yield from rows


def _cells(work: _Work) -> list[SyncCell]:
    return [run_policy(policy, work.case, kernel=work.kernel) for policy in work.policies]


def run_policy(policy: SyncPolicy, case: Case, *, kernel: Kernel | None = None) -> SyncCell:
    """Run a piece of work under a policy."""
    if case.kind is CaseKind.BOOT:
        return _boot(policy, case, (kernel or LINUX_6_1).with_(sync=policy))
    work = read_case(case)
    base = kernel or find_kernel(scenario_of(work).header.kernel)
    under = base.with_(sync=policy)
    if isinstance(work, Scenario):
        run = run_case(work, under.design, kernel=under)
        return _cell(policy, case, run.wrong, run.judged, run.judged, run.machine)
    judged = judge_recorded(work, under)
    if judged.wrong is not None:
        case = replace(case, note=foretold(case.recording, judged.wrong.op))
    return _cell(policy, case, judged.wrong, judged.judged, judged.ops, judged.machine)


def _boot(policy: SyncPolicy, case: Case, kernel: Kernel) -> SyncCell:
    stream = read_boot(case)
    replay = Replay(stream, limit=case.records, kernel=kernel)
    wrong = None
    try:
        result = replay.run()
        found = result.mismatch
        if found is not None:
            text = f"{found.kind} {found.gva:x}"
            wrong = WrongAccess(found.record, text, found.gpa, found.reached, found.what, gva=found.gva)
        agree = result.agree
    except FAILURES as error:
        if isinstance(error, InputError | NotImplementedError) and not isinstance(error, DesignError):
            raise
        at, agree = replay.record, 0
        gva, gpa = int(stream.gva[at]), int(stream.gpa[at])
        text = f"{Kind(int(stream.kind[at])).letter} {gva:x}"
        wrong = WrongAccess(at, text, gpa, None, failure_str(error), gva=gva)
    return _cell(policy, case, wrong, agree, len(replay.plan.record), replay.machine)


def _cell(
    policy: SyncPolicy, case: Case, wrong: WrongAccess | None, judged: int, ops: int, machine: Machine
) -> SyncCell:
    stat = machine.stats
    return SyncCell(
        policy,
        case,
        wrong,
        judged,
        ops,
        page_faults=stat["pf_taken"],
        invlpgs=stat["invlpg"],
        flushes=stat["tlb_flush"] + stat["remote_tlb_flush"],
        pages_made=stat["mmu_cache_miss"],
        pages_zapped=stat["mmu_shadow_zapped"],
        counts=sync_counts(machine.kvm),
    )
