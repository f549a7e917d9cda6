"""A run that went wrong, once more and recorded, so that it can be stepped through."""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.check.access import WrongAccess
from mmulab.check.failure import FAILURES
from mmulab.check.judged import record_judged
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import Case, read_boot, read_case, scenario_of
from mmulab.trace.recording import Recording
from mmulab.workload.record import record_boot

__all__ = ["Ran", "Wrong", "kernel_of", "record_again"]


@dataclass(frozen=True, slots=True)
class Wrong:
    """The recording of a run that went wrong, and the moments that tell how.

    Attributes
    ----------
    recording : Recording
    moments : list of (int, str)
        Number and title of each, in order; the last is the end of the wrong op, or where the
        model stopped, the end of the op before it.
    """

    recording: Recording
    moments: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Ran:
    """A recording with the places of a case's own ops in it.

    Attributes
    ----------
    recording : Recording
    ops : dict of int to int
        Number of an op of a scenario, or of a record of a boot, to that of the recording's op. Of a
        boot it holds the last record alone.
    what : str
        ``op`` or ``record``.
    """

    recording: Recording
    ops: dict[int, int]
    what: str


def kernel_of(case: Case, kernel: Kernel | None) -> Kernel:
    """Return `kernel`, or without one the kernel that a case names."""
    if kernel is not None or case.kind is CaseKind.BOOT:
        return kernel or LINUX_6_1
    return find_kernel(scenario_of(read_case(case)).header.kernel)


def record_again(case: Case, kernel: Kernel, wrong: WrongAccess, *, under: str) -> Ran:
    """Run a case that went wrong once more, recorded as far as it goes.

    A scenario is recorded to its end; if the MMU fails somewhere, up to the wrong op; if in that, up to the
    one before, for inside an op that never ended nothing can be visited.

    Parameters
    ----------
    case : Case
    kernel : Kernel
        The one that it ran with, see :func:`kernel_of`.
    wrong : WrongAccess
    under : str
        What the case is wrong under.

    Raises
    ------
    InputError
        The MMU fails before anything can be looked at.
    """
    found = _record_boot if case.kind is CaseKind.BOOT else _record_scenario
    ran = found(case, kernel, wrong.op)
    if ran is None:
        raise InputError(f"{case.name} under {under}: nothing before the failure can be shown: {wrong.seen}")
    return ran


def _record_scenario(case: Case, kernel: Kernel, wrong: int) -> Ran | None:
    scenario = scenario_of(read_case(case))
    for until in (None, wrong, wrong - 1):
        try:
            return Ran(*record_judged(scenario, kernel=kernel, until=until), "op")
        except FAILURES:
            continue
    return None


def _record_boot(case: Case, kernel: Kernel, wrong: int) -> Ran | None:
    stream = read_boot(case)
    for limit in (wrong + 1, wrong) if wrong else (1,):
        try:
            recording, last = record_boot(stream, limit, kernel)
        except FAILURES:
            continue
        return Ran(recording, {limit - 1: last}, "record")
    return None
