"""Judging a recording under another sync policy than the recorded kernel's.

Until the guest flushes, the processor may use a translation that is gone or the
one that is there (SDM 3, 4.10.2.3; APM 2, 5.5.2), and policies differ in which. So
an access is right if the real guest saw the same of it, or if the guest's own
tables say what is seen now.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.recording import RecordedOp, Recording, is_around
from mmulab.kvm.kernel import Kernel
from mmulab.lab.cases.judge import Access, WrongAccess, judge, walks_of
from mmulab.lab.cases.run import FAILURES, failure_str, runner_of
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result


class Judged(NamedTuple):
    """What came of a recording.

    Attributes
    ----------
    wrong : WrongAccess or None
        The first outcome that is neither the recorded one nor what the guest's tables say.
    judged, ops : int
        How many of the ops could be judged. Once an access has rightly gone otherwise than
        recorded the guest's memory may differ, and what later agrees with neither is undecided.
    machine : Machine
        After the last op that ran.
    """

    wrong: WrongAccess | None
    judged: int
    ops: int
    machine: Machine


def judge_recorded(recording: Recording, kernel: Kernel) -> Judged:
    """Run a recording's scenario under a kernel up to the first outcome that is not right.

    Raises
    ------
    InputError
        An op is not modelled yet.
    """
    runner = runner_of(recording.scenario, kernel.design, kernel=kernel)
    running, steps = runner.results(), iter(recording.scenario.steps)
    machine, total = runner.machine, len(recording.ops)
    parted = False
    for number, recorded in enumerate(recording.ops):
        step = None if is_around(recorded.text) else next(steps, None)
        access = step.op if step is not None and isinstance(step.op, Access) else None
        walks = None if access is None else walks_of(machine, access)
        try:
            result = next(running)
        except FAILURES as error:
            if isinstance(error, NotImplementedError):
                raise
            failed = WrongAccess(recorded.index, recorded.text, None, None, failure_str(error))
            return Judged(None if parted else failed, number, total, machine)
        if isinstance(result.op, ops.Teardown):
            return Judged(None, total, total, machine)
        seen = encode_outcome(result.outcome)
        if seen == recorded.outcome:
            continue
        if access is None:
            wrong = _host_op(recorded, result)
        else:
            wrong = judge(machine, result, access, walks)
            parted |= wrong is None
        if wrong is not None:
            return Judged(None if parted else wrong, number, total, machine)
    return Judged(None, total, total, machine)


def _host_op(recorded: RecordedOp, result: Result) -> WrongAccess | None:
    """Compare an op that is no access: it must end in the same way, and a dirty log may name more pages."""
    seen = encode_outcome(result.outcome)
    if seen.get("out") == recorded.outcome.get("out"):
        missing = {*recorded.outcome.get("dirty", ())} - {*seen.get("dirty", ())}
        if not missing:
            return None
    wanted = outcome_str(recorded.outcome)
    return WrongAccess(result.index, result.text, None, None, outcome_str(seen), wanted)
