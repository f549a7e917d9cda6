"""Judging a recording under another sync policy than the recorded kernel's.

Until the guest flushes, the processor may use a translation that is gone or the one
that is there, and policies differ in which. So an access is right if it did what the
real guest's did, or if the oracle (:mod:`mmulab.check.oracle`) allows it. Once one has
rightly gone otherwise than recorded, the guests have parted: memory may differ, and
the oracle alone judges on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from mmulab.check.access import WrongAccess
from mmulab.check.failure import FAILURES
from mmulab.check.oracle import Oracle, Verdict, wrong_access
from mmulab.conform.outcome import Decoded, encode_outcome, outcome_str
from mmulab.conform.recording import KernelRecording, is_around
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.cases.run import failure_str, runner_of
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class Judged(NamedTuple):
    """What came of a recording.

    Attributes
    ----------
    wrong : WrongAccess or None
        The first outcome that is neither the recorded one nor allowed.
    judged, ops : int
        How many of the ops could be judged, up to the first wrong one. Undecided is what a guest
        does that executes what is no instruction of the scenario, or that no recording tells of.
    machine : Machine
        After the last op that ran.
    """

    wrong: WrongAccess | None
    judged: int
    ops: int
    machine: Machine


def judge_recorded(recording: KernelRecording, kernel: Kernel, *, as_recorded: bool = True) -> Judged:
    """Run a recording's scenario under a kernel up to the first outcome that is not right.

    Parameters
    ----------
    recording : KernelRecording
        Of one vCPU.
    kernel : Kernel
    as_recorded : bool
        What the real guest saw is right, if the access also went where that one's did.
        False: the oracle alone decides of each access.

    Raises
    ------
    InputError
        An op is not modelled yet.
    """
    runner = runner_of(recording.scenario, kernel.design, kernel=kernel)
    machine, total = runner.machine, len(recording.ops)
    oracle = Oracle(machine)
    told, numbers = _told(recording)
    running = runner.results()
    parted, judged = False, 0
    reached: dict[tuple[int, str], int] | None = None
    while True:
        try:
            result = next(running)
        except FAILURES as error:
            if isinstance(error, NotImplementedError):
                raise
            index, text = runner.at
            wrong = WrongAccess(numbers.get(index, index), text, None, None, failure_str(error))
            return Judged(None if parted else wrong, judged, total, machine)
        at = numbers.get(result.index, result.index), result.text
        if isinstance(result.op, ops.Teardown):
            return Judged(None, judged + 1, total, machine)
        verdict, walks, _ = oracle.judge(result)
        known = told.get(_place(result.index, result.text))
        wanted = known.pop(0) if known else None
        same = wanted == encode_outcome(result.outcome)
        place = _place(result.index, result.text)
        if same and not parted and as_recorded:
            if verdict is Verdict.WRONG and reached is None:
                reached = _reached(recording)
            if verdict is not Verdict.WRONG or (reached or {}).get(place) == result.outcome.hpa:
                judged += 1
                continue
        if verdict is Verdict.NO_ACCESS and not same and not parted:
            verdict = Verdict.ALLOWED if _ends_alike(result, wanted) else Verdict.WRONG
        parted |= not same
        if verdict is Verdict.WRONG:
            text = "" if wanted is None else outcome_str(wanted)
            found = wrong_access(machine, replace(result, index=at[0]), walks, text)
            return Judged(found, judged, total, machine)
        judged += verdict is Verdict.ALLOWED or same


def _told(recording: KernelRecording) -> tuple[dict[tuple[int, str], list[Decoded]], dict[int, int]]:
    """Return the recorded outcomes by the place of their op in a run, and the recorded number of each step.

    Steps that the real guest skipped have a number, but are not in the recording's scenario.
    """
    told: dict[tuple[int, str], list[Decoded]] = defaultdict(list)
    numbers = {-1: -1}
    step = {-1: -1}
    for recorded in recording.ops:
        index = step.setdefault(recorded.index, len(step) - 1)
        numbers[index] = recorded.index
        told[_place(index, recorded.text)].append(recorded.outcome)
    return told, numbers


def _reached(recording: KernelRecording) -> dict[tuple[int, str], int]:
    """Return where each op's access ended in the recorded kernel's own model; no outcome tells."""
    kernel = find_kernel(recording.scenario.header.kernel)
    results = runner_of(recording.scenario, kernel.design, kernel=kernel).results()
    return {_place(result.index, result.text): result.outcome.hpa for result in results}


def _place(index: int, text: str) -> tuple[int, str]:
    """Return what names an op in a recording and in a run: its step, and of a helper also its text."""
    return index, text if is_around(text) else ""


def _ends_alike(result: Result, wanted: Decoded | None) -> bool:
    """Whether an op that is no access ended as recorded; a dirty log may name more pages."""
    seen = encode_outcome(result.outcome)
    if wanted is None or seen["out"] != wanted["out"]:
        return False
    return not {*wanted.get("dirty", ())} - {*seen.get("dirty", ())}
