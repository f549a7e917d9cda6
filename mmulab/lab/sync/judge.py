"""Judging a recording under another sync policy than the recorded kernel's.

Until the guest flushes, the processor may use a translation that is gone or the one
that is there, and policies differ in which. So an access is right if it did what the
real guest's did, or if the oracle (:mod:`mmulab.check.allowed`) allows it. Once one has
rightly gone otherwise than recorded, the guests have parted: memory may differ, and
the oracle alone judges on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from mmulab.check.allowed import FoundWalk, World, allowed_walks
from mmulab.check.remembered import Forgotten, TableHistory
from mmulab.conform.outcome import Decoded, encode_outcome, outcome_str
from mmulab.conform.recording import Recording, is_around
from mmulab.kvm.inject import GP_VECTOR
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.svm.nested import SVM_EXITS
from mmulab.kvm.vmx.nested import EXIT_REASONS
from mmulab.lab.cases.judge import TwoWalks, WrongAccess, judge_fault, seen_str
from mmulab.lab.cases.run import FAILURES, failure_str, runner_of
from mmulab.lab.sync.world import forget, world_of
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, OutcomeKind
from mmulab.machine.stubs import instruction_of
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.trace.judge import access_kind
from mmulab.trace.view import gpa_of
from mmulab.x86.ept import EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE
from mmulab.x86.insn import Instruction
from mmulab.x86.mode import is_canonical
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK
from mmulab.x86.regs import EFER_LMA

DATA = (ops.Read, ops.Write, ops.Exchange, ops.CompareExchange)
NOP = 0x90
_NESTED_FAULTS = (EXIT_REASONS["ept_violation"], EXIT_REASONS["ept_misconfig"], SVM_EXITS["npf"])


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


class Verdict(Enum):
    """What the oracle says of an op."""

    ALLOWED = "allowed"
    WRONG = "wrong"
    NO_ACCESS = "no access"
    """Nothing was accessed that it knows of; the op must end as recorded."""
    UNDECIDED = "undecided"
    """The guest executes what is no instruction of the scenario's."""


class Oracle:
    """What the architecture says of a machine's ops, one after another.

    Parameters
    ----------
    machine : Machine
        With one vCPU, before its first op.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._history = TableHistory(machine.memory)
        self._forgotten = Forgotten()
        self._before = world_of(machine)
        self._guest: World | None = None
        self._now = 0

    def judge(self, result: Result) -> tuple[Verdict, FoundWalk | None]:
        """Judge an op that has run, and take note of it; the walk is what memory alone says of its access."""
        self._now += 1
        verdict, walks = self._judge(result)
        self._history.note(self._now, behind=isinstance(result.op, ops.HostWrite))
        forget(self._forgotten, self._machine, result.op, result.outcome, self._before, self._now)
        self._before = world_of(self._machine)
        if self._before.nested_guest:
            self._guest = self._before
        return verdict, walks

    def _judge(self, result: Result) -> tuple[Verdict, FoundWalk | None]:
        op = result.op
        if isinstance(op, ops.Vmrun):
            return self._entered(result), None
        if isinstance(op, (*HOST_OPS, ops.Teardown)) or _other_exit(result) or _delivery_exit(result):
            return Verdict.NO_ACCESS, None
        mode, insn = instruction_of(op, self._machine.config.stubs)
        if isinstance(op, ops.Execute):
            return self._execute(op, result)
        fetched = None if insn.rip is None else self._fetch(insn.rip, mode, result)
        if fetched is not None:
            return fetched, None
        return self._data(op, insn, result) if isinstance(op, DATA) else (Verdict.NO_ACCESS, None)

    def _entered(self, result: Result) -> Verdict:
        """Judge an entry that L2 left at once, at its first fetch, by L2's registers of the last time."""
        told = result.outcome.vmexit
        if told is None or "gla" not in told or self._guest is None:
            return Verdict.NO_ACCESS
        fetches = allowed_walks(self._guest, self._history, self._forgotten, told["gla"], PFERR_FETCH_MASK)
        seen = any(walks.gpa is None and _fault_seen(walks, result) for walks in fetches)
        return Verdict.ALLOWED if seen else Verdict.NO_ACCESS

    def _walks(self, gva: int, pfec: int, mode: Mode) -> Iterator[FoundWalk]:
        if not self._before.control[2] & EFER_LMA:
            gva &= 0xFFFFFFFF
        ac = mode is Mode.SUPERVISOR_AC
        return allowed_walks(self._before, self._history, self._forgotten, gva, pfec, not_smap=ac)

    def _canonical(self, gva: int) -> bool:
        return not self._before.control[2] & EFER_LMA or is_canonical(gva, self._before.paging[0].mode)

    def _fetch(self, rip: int, mode: Mode, result: Result) -> Verdict | None:
        """Judge by the fetch of the stub; None: the instruction is the op's, and the rest decides."""
        kind = PFERR_FETCH_MASK | (PFERR_USER_MASK if mode is Mode.USER else 0)
        elsewhere = False
        for walks in self._walks(rip, kind, mode):
            if walks.gpa is None and _fault_seen(walks, result):
                return Verdict.ALLOWED
            elsewhere |= walks.gpa is not None and walks.gpa != rip
        return Verdict.UNDECIDED if elsewhere else None

    def _execute(self, op: ops.Execute, result: Result) -> tuple[Verdict, FoundWalk | None]:
        first, other = None, False
        for walks in self._walks(op.gva, access_kind(op), op.mode):
            first = first or walks
            if walks.gpa is None:
                if _fault_seen(walks, result):
                    return Verdict.ALLOWED, first
                continue
            hpa = self._before.hpa_of(walks.gpa)
            if hpa is None or self._history.read(hpa, 1) != NOP:
                other = True
            elif result.outcome.kind is OutcomeKind.OK:
                return Verdict.ALLOWED, first
        if result.outcome.vector == GP_VECTOR and not self._canonical(op.gva):
            return Verdict.ALLOWED, first
        return (Verdict.UNDECIDED if other else Verdict.WRONG), first

    def _data(self, op: Op, insn: Instruction, result: Result) -> tuple[Verdict, FoundWalk | None]:
        assert isinstance(op, DATA)
        first = None
        over = max(0, (op.gva & 0xFFF) + insn.size - 0x1000)
        done = result.outcome.kind is OutcomeKind.OK
        for kind in self._kinds(op):
            for walks in self._walks(op.gva, kind, op.mode):
                first = first or walks
                arrived = done and (over or (walks.gpa is not None and self._arrived(op, walks.gpa, result)))
                if arrived if walks.gpa is not None else _fault_seen(walks, result):
                    return Verdict.ALLOWED, first
            second = self._walks(op.gva + insn.size - over, kind, op.mode) if over else iter(())
            if any(walks.gpa is None and _fault_seen(walks, result) for walks in second):
                return Verdict.ALLOWED, first
        if result.outcome.vector == GP_VECTOR and not self._canonical(op.gva):
            return Verdict.ALLOWED, first
        return Verdict.WRONG, first

    @staticmethod
    def _kinds(op: Op) -> list[int]:
        """Return the accesses that the operand may be: what is exchanged may be read before."""
        kind = access_kind(op)
        exchanges = isinstance(op, ops.Exchange | ops.CompareExchange)
        return [kind, kind & PFERR_USER_MASK] if exchanges else [kind]

    def _arrived(self, op: Op, gpa: int, result: Result) -> bool:
        """Whether a data access ended at an address, and saw or left what it must there."""
        outcome, hpa = result.outcome, self._before.hpa_of(gpa)
        if outcome.mmio:
            return outcome.mmio[0].gpa == gpa
        if hpa is None or outcome.hpa not in (-1, hpa):
            return False
        memory = self._machine.memory
        match op:
            case ops.Read(size=size):
                seen = outcome.rax & (1 << 8 * size) - 1
                return seen in (self._history.read(hpa, size), memory.read(hpa, size))
            case ops.Write(size=size, value=value):
                return memory.read(hpa, size) == value & (1 << 8 * size) - 1
        return True


def _fault_seen(walks: FoundWalk, result: Result) -> bool:
    """Whether the guest, or L1, was told of a walk's fault.

    The exit of an emulated write may call it a read too, as that of an atomic access does.
    """
    found, outcome = TwoWalks(*walks), result.outcome
    if judge_fault(found, outcome)[1]:
        return True
    told = outcome.vmexit
    if not walks.ept or told is None or not told.get("qual", 0) & EPT_VIOLATION_ACC_WRITE:
        return False
    plain = replace(outcome, vmexit={**told, "qual": told["qual"] & ~EPT_VIOLATION_ACC_READ})
    return judge_fault(found, plain)[1]


def _delivery_exit(result: Result) -> bool:
    """Whether L2 was left while an exception was delivered: to a place that is no operand's."""
    told = result.outcome.vmexit or {}
    return bool(told.get("idtv") or told.get("intinfo"))


def _other_exit(result: Result) -> bool:
    """Whether L2 was left for something else than a fault of its nested tables."""
    told = result.outcome.vmexit
    return told is not None and told.get("reason", told.get("code")) not in _NESTED_FAULTS


def judge_recorded(recording: Recording, kernel: Kernel, *, as_recorded: bool = True) -> Judged:
    """Run a recording's scenario under a kernel up to the first outcome that is not right.

    Parameters
    ----------
    recording : Recording
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
        verdict, walks = oracle.judge(result)
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
            return Judged(_wrong(machine, at, result, walks, wanted), judged, total, machine)
        judged += verdict is Verdict.ALLOWED or same


def _told(recording: Recording) -> tuple[dict[tuple[int, str], list[Decoded]], dict[int, int]]:
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


def _reached(recording: Recording) -> dict[tuple[int, str], int]:
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


def _wrong(
    machine: Machine,
    at: tuple[int, str],
    result: Result,
    walks: FoundWalk | None,
    wanted: Decoded | None,
) -> WrongAccess:
    outcome, op = result.outcome, result.op
    address_space = machine.kvm.vcpus[op.vcpu].smm
    reached = None if outcome.hpa == -1 else gpa_of(machine, outcome.hpa, as_id=address_space)
    if walks is None:
        text = "" if wanted is None else outcome_str(wanted)
        return WrongAccess(*at, None, reached, seen_str(outcome), text)
    text = judge_fault(TwoWalks(*walks), outcome)[0] if walks.gpa is None else ""
    gva = getattr(op, "gva", None)
    return WrongAccess(*at, walks.gpa, reached, seen_str(outcome), text, gva)
