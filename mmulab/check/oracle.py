"""The architectural oracle: of each access, whether the guest's own tables and registers allow its outcome.

It knows no shadow page. Until the guest flushes, the processor may use a
translation that is gone or the one that is there; what an op does is right if
a walk that is allowed (:mod:`mmulab.check.allowed`) leads there.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from mmulab.check.access import DATA, ENDLESS, TwoWalks, WrongAccess, seen_str
from mmulab.check.allowed import allowed_walks
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.obligations import forget
from mmulab.check.remembered import Forgotten, TableHistory
from mmulab.check.told import delivery_exit, fault_seen, judge_fault, other_exit
from mmulab.check.world import World, world_of
from mmulab.kvm.inject import GP_VECTOR
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, OutcomeKind
from mmulab.machine.stubs import instruction_of
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.trace.judge import access_kind
from mmulab.trace.view import gpa_of
from mmulab.x86.insn import Instruction
from mmulab.x86.mode import is_canonical
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK
from mmulab.x86.regs import EFER_LMA

NOP = 0x90


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

    def after(self, result: Result) -> Finding | None:
        """Judge an op as :meth:`judge` does; return what is wrong with it."""
        wrong = self.judge(result)[2]
        if wrong is None:
            return None
        return Finding(FindingKind.OUTCOME, _name(wrong), result.index, result.text, wrong.said)

    def judge(self, result: Result) -> tuple[Verdict, TwoWalks | None, WrongAccess | None]:
        """Judge an op that has run, and take note of it.

        Returns
        -------
        verdict : Verdict
        walks : TwoWalks or None
            What memory alone said of its access, before it.
        wrong : WrongAccess or None
            Of a wrong one.
        """
        self._now += 1
        verdict, walks = self._judge(result)
        self._history.note(self._now, behind=isinstance(result.op, ops.HostWrite))
        forget(self._forgotten, self._machine, result.op, result.outcome, self._before, self._now)
        self._before = world_of(self._machine)
        if self._before.nested_guest:
            self._guest = self._before
        wrong = wrong_access(self._machine, result, walks) if verdict is Verdict.WRONG else None
        return verdict, walks, wrong

    def _judge(self, result: Result) -> tuple[Verdict, TwoWalks | None]:
        op = result.op
        if isinstance(op, ops.Vmrun):
            return self._entered(result), None
        if isinstance(op, (*HOST_OPS, ops.Teardown)):
            return Verdict.NO_ACCESS, None
        if other_exit(result.outcome) or delivery_exit(result.outcome):
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
        seen = any(walks.gpa is None and fault_seen(walks, result.outcome) for walks in fetches)
        return Verdict.ALLOWED if seen else Verdict.NO_ACCESS

    def _walks(self, gva: int, pfec: int, mode: Mode) -> Iterator[TwoWalks]:
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
            if walks.gpa is None and fault_seen(walks, result.outcome):
                return Verdict.ALLOWED
            elsewhere |= walks.gpa is not None and walks.gpa != rip
        return Verdict.UNDECIDED if elsewhere else None

    def _execute(self, op: ops.Execute, result: Result) -> tuple[Verdict, TwoWalks | None]:
        first, other = None, False
        for walks in self._walks(op.gva, access_kind(op), op.mode):
            first = first or walks
            if walks.gpa is None:
                if fault_seen(walks, result.outcome):
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

    def _data(self, op: Op, insn: Instruction, result: Result) -> tuple[Verdict, TwoWalks | None]:
        assert isinstance(op, DATA)
        first = None
        over = max(0, (op.gva & 0xFFF) + insn.size - 0x1000)
        done = result.outcome.kind is OutcomeKind.OK
        for kind in self._kinds(op):
            for walks in self._walks(op.gva, kind, op.mode):
                first = first or walks
                arrived = done and (over or (walks.gpa is not None and self._arrived(op, walks.gpa, result)))
                if arrived if walks.gpa is not None else fault_seen(walks, result.outcome):
                    return Verdict.ALLOWED, first
            second = self._walks(op.gva + insn.size - over, kind, op.mode) if over else iter(())
            if any(walks.gpa is None and fault_seen(walks, result.outcome) for walks in second):
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


def wrong_access(machine: Machine, result: Result, walks: TwoWalks | None, wanted: str = "") -> WrongAccess:
    """Say what is wrong with an op that is.

    Parameters
    ----------
    machine : Machine
        After the op.
    result : Result
    walks : TwoWalks or None
        Of its access, by which it should have gone.
    wanted : str
        How an op without one should have ended, if that is known.
    """
    outcome, op = result.outcome, result.op
    at, seen = (result.index, result.text), seen_str(outcome)
    reached = None
    if outcome.hpa != -1:
        reached = gpa_of(machine, outcome.hpa, as_id=machine.kvm.vcpus[op.vcpu].smm)
    if walks is None:
        return WrongAccess(*at, None, reached, seen, wanted)
    wanted = judge_fault(walks, outcome)[0] if walks.gpa is None else ""
    return WrongAccess(*at, walks.gpa, reached, seen, wanted, getattr(op, "gva", None))


def _name(wrong: WrongAccess) -> str:
    """Return what tells kinds of wrong accesses apart, whatever the addresses."""
    if wrong.seen == ENDLESS:
        return "endless"
    wanted = "page" if wrong.expected is not None else "fault" if wrong.gva is not None else "end"
    return f"{wanted}-{'reached' if wrong.reached is not None else 'not-reached'}"
