"""The architectural oracle: of each access, whether the guest's own tables and registers allow its outcome.

It knows no shadow page. Until the guest flushes, a processor may use a
translation that is gone or the one that is there; what an op does is right if
a walk that is allowed (:mod:`mmulab.check.allowed`) leads there. Each vCPU has
obligations of its own; memory, and what its words have held, is one. Where
guest-physical memory lies is the host's to say, and holds at once.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from mmulab.check.access import DATA, ENDLESS, TwoWalks, WrongAccess, seen_str
from mmulab.check.allowed import Reading, allowed_walks, walk_memory
from mmulab.check.dirty_log import LOG_OPS, DirtyLog
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.host_state import l1_cannot_run
from mmulab.check.obligations import OBLIGING, WORLD_OPS, forget
from mmulab.check.reached import Operand, Piece, Seen, arrived, marked
from mmulab.check.remembered import Forgotten, TableHistory
from mmulab.check.rsm import rsm_may_shut_down
from mmulab.check.told import delivery_exit, fault_seen, judge_fault, other_exit
from mmulab.check.world import World, registers, world_of
from mmulab.kvm.inject import GP_VECTOR
from mmulab.kvm.svm.nested import SvmNested
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.machine.stubs import instruction_of
from mmulab.machine.view import gpa_of
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.trace.judge import access_kind
from mmulab.x86.mode import is_canonical
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import EFER_LMA

NOP = 0x90
_HOST = frozenset((*HOST_OPS, ops.GuestStore, ops.Teardown))
_SLOT_OPS = (ops.SetMemslot, ops.DeleteMemslot)
_OBLIGING, _WORLD_OPS = frozenset(OBLIGING), frozenset(WORLD_OPS)
_LOG_OPS = frozenset(LOG_OPS)
_EXCHANGES = (ops.Exchange, ops.CompareExchange)


class Verdict(Enum):
    """What the oracle says of an op."""

    ALLOWED = "allowed"
    WRONG = "wrong"
    NO_ACCESS = "no access"
    """Nothing was accessed that it knows of; how such an op ends is not its business."""
    UNDECIDED = "undecided"
    """The guest executes what is no instruction of the scenario's, or cannot be given an exception, or
    the VMM took its own memory away."""


@dataclass(slots=True)
class _Known:
    """A walk by what memory held, and the entries that it read: the same entries lead the same way.

    Attributes
    ----------
    walks : TwoWalks
    read : list of Reading
    frames : tuple of int
        Where these lie.
    version : int
        Of the history, for which they were last compared.
    """

    walks: TwoWalks
    read: list[Reading]
    frames: tuple[int, ...]
    version: int

    def holds(self, history: TableHistory) -> bool:
        """Whether the entries are what they were."""
        version = self.version
        if version == history.version:
            return True
        for frame in self.frames:
            if history.changed(frame) > version:
                break
        else:
            self.version = history.version
            return True
        for _, hpa, size, value, _ in self.read:
            if history.read(hpa, size) != value:
                return False
        self.version = history.version
        return True


@dataclass(slots=True)
class _Processor:
    """A vCPU: its registers before the next op, and what it still may know.

    Attributes
    ----------
    world : World
    registers : tuple
        From which `world` follows.
    forgotten : Forgotten
    guest : World or None
        Of L2, when it ran last.
    worlds : dict
        Those of L1, by the registers: the same ones come again and again.
    met : dict
        All of them, by most of what tells them apart.
    known : dict
        Walks by world, address, kind of access and whether SMAP does not apply.
    doomed : bool
        RSM has just loaded what may shut it down.
    """

    world: World
    registers: tuple[object, ...]
    forgotten: Forgotten = field(default_factory=Forgotten)
    guest: World | None = None
    worlds: dict[tuple[object, ...], World] = field(default_factory=dict)
    met: dict[Hashable, list[World]] = field(default_factory=dict)
    known: dict[tuple[World, int, int, bool], _Known] = field(default_factory=dict)
    doomed: bool = False

    def one_of(self, world: World) -> World:
        """Return the world that was met and is the same, so that its walks are known; else this one."""
        alike = self.met.setdefault(world.name, [])
        for other in alike:
            if other.paging == world.paging and other.nested == world.nested:
                return other
        alike.append(world)
        return world


class Oracle:
    """What the architecture says of a machine's ops, one after another.

    Parameters
    ----------
    machine : Machine
        Before its first op.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._history = TableHistory(machine.memory)
        self._log = DirtyLog(machine)
        self._processors = [
            _Processor(world_of(machine, vcpu.id), registers(vcpu)) for vcpu in machine.kvm.vcpus
        ]
        self._now = 0

    def after(self, result: Result) -> Finding | None:
        """Judge an op as :meth:`judge` does; return what is wrong with it."""
        wrong = self.judge(result)[2]
        if wrong is None:
            return None
        return Finding(FindingKind.OUTCOME, _name(wrong), result.index, result.text, wrong.said)

    def walks(self, op: Op) -> TwoWalks | None:
        """Return what memory alone says of an op's access that is about to happen; None: it has none."""
        if not isinstance(op, (*DATA, ops.Execute, ops.Touch)):
            return None
        by = self._processors[op.vcpu]
        return self._known(by, self._linear(by, op.gva), access_kind(op), _ac(op.mode)).walks

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
        op, by = result.op, self._processors[result.op.vcpu]
        self._now += 1
        verdict, walks = self._judge(by, result)
        if verdict is Verdict.WRONG and self._is_unknowable(by, result, walks):
            verdict = Verdict.UNDECIDED
        wrong = wrong_access(self._machine, result, walks) if verdict is Verdict.WRONG else None
        if type(op) in _LOG_OPS:
            missing = self._log.missing(op, result.outcome, self._now)
            if missing:
                verdict = Verdict.WRONG
                wanted = "in the log: gfn " + " ".join(f"{gfn:x}" for gfn in missing)
                wrong = wrong_access(self._machine, result, None, wanted)
        self._note(by, op, result.outcome)
        return verdict, walks, wrong

    def _note(self, by: _Processor, op: Op, outcome: Outcome) -> None:
        """Take note of what an op changed, and made its processor forget."""
        if type(op) is ops.Smm:
            vcpu = self._machine.kvm.vcpus[op.vcpu]
            by.doomed = not op.on and rsm_may_shut_down(vcpu, by.world, self._history.read)
        elif by.doomed:
            by.doomed = type(op) in _HOST
        self._history.note(self._now, behind=isinstance(op, ops.HostWrite))
        if isinstance(op, _SLOT_OPS):
            for processor in self._processors:
                processor.known.clear()
        obliging = type(op) in _OBLIGING
        vcpu = self._machine.kvm.vcpus[op.vcpu]
        now = registers(vcpu)
        if not obliging and now == by.registers:
            return
        before = by.world
        self._enter_world(by, op, now)
        forget(by.forgotten, self._machine, op, outcome, before, by.world, self._now)
        by.forgotten.use(by.world.space, by.world.pcid, self._now)
        if by.world.nested is not None:
            by.forgotten.use_tables(by.world.nested.tag, by.world.nested.paging, self._now)
        if by.world.nested_guest:
            by.guest = by.world

    def _enter_world(self, by: _Processor, op: Op, now: tuple[object, ...]) -> None:
        """Find the world that the registers select."""
        if type(op) in _WORLD_OPS:
            by.worlds.clear()
        elif now == by.registers:
            return
        by.registers = now
        world = by.worlds.get(now)
        if world is None:
            world = by.one_of(world_of(self._machine, op.vcpu))
            if not world.nested_guest:
                by.worlds[now] = world
        by.world = world

    # Verdicts -------------------------------------------------------------------

    def _judge(self, by: _Processor, result: Result) -> tuple[Verdict, TwoWalks | None]:
        op, outcome = result.op, result.outcome
        if isinstance(op, ops.Vmrun):
            return self._entered(by, outcome), None
        if type(op) in _HOST:
            return Verdict.NO_ACCESS, None
        if outcome.vmexit is not None and (other_exit(outcome) or delivery_exit(outcome)):
            return Verdict.NO_ACCESS, None
        if outcome.kind is OutcomeKind.DIRTY_RING_FULL:
            return Verdict.NO_ACCESS, None
        if outcome.kind is OutcomeKind.HANG and outcome.error == errno.EFAULT and self._is_protected():
            return Verdict.UNDECIDED, None
        if outcome.kind is OutcomeKind.SHUTDOWN and (by.doomed or self._may_fail_to_deliver(by)):
            return Verdict.UNDECIDED, None
        if isinstance(op, ops.Touch):
            return self._data(by, op, Operand(op.gva, 1), outcome)
        if isinstance(op, ops.Execute):
            return self._execute(by, op, outcome)
        return self._instruction(by, op, outcome)

    def _instruction(self, by: _Processor, op: Op, outcome: Outcome) -> tuple[Verdict, TwoWalks | None]:
        """Judge an instruction at its stub, whose own fetch may explain what came of it."""
        mode, insn = instruction_of(op, self._machine.config.stubs)
        rip = insn.rip
        if rip is not None and not self._fetches(by, rip, mode):
            fetched = self._fetch(by, rip, mode, outcome)
            if fetched is not None:
                return fetched, None
        if isinstance(op, DATA):
            data = self._data(by, op, Operand(op.gva, insn.size), outcome)
            if data[0] is not Verdict.WRONG or rip is None:
                return data
            fetched = self._fetch(by, rip, mode, outcome)
            return data if fetched is None else (fetched, None)
        if outcome.kind is not OutcomeKind.OK and rip is not None:
            fetched = self._fetch(by, rip, mode, outcome)
            if fetched is not None:
                return fetched, None
        return (Verdict.WRONG if is_endless(outcome) else Verdict.NO_ACCESS), None

    def _is_unknowable(self, by: _Processor, result: Result, walks: TwoWalks | None) -> bool:
        """Whether nobody says what an access does: mostly one that reached no memory.

        Its tables, its stub or L1's control block may be what the VMM took from itself, or lie
        where no memory is, or an SMI came before it; or L1, which it was told to, cannot run.
        """
        if walks is not None and self._is_beyond(walks):
            return True
        if result.outcome.hpa != -1:
            return False
        vcpu = self._machine.kvm.vcpus[result.op.vcpu]
        lost = self._is_protected() or (walks is not None and walks.hole)
        lost |= isinstance(vcpu.nested, SvmNested) and by.world.hpa_of(vcpu.nested.vmcb12_gpa) is None
        lost |= by.world.nested_guest and not vcpu.guest_mode and l1_cannot_run(self._machine, vcpu)
        return lost or vcpu.smm != by.world.address_space

    def _is_beyond(self, walks: TwoWalks) -> bool:
        """Whether a walk needs more than the 4 GiB that a 32-bit host's nested tables reach (PSE-36, PAE)."""
        config = self._machine.kvm.config
        if config.x86_64 or not config.tdp:
            return False
        return any(address >> 32 for address in (walks.gpa or 0, *walks.outer.entry_addr))

    def _is_protected(self) -> bool:
        return bool(self._machine.memory.protection)

    def _may_fail_to_deliver(self, by: _Processor) -> bool:
        """Whether an exception may find no handler or stack: the page of the stubs is not as it was."""
        stubs = self._machine.config.stubs
        if stubs is None:
            return True
        kinds = (0, PFERR_WRITE_MASK, PFERR_FETCH_MASK)
        found = (self._walks(by, stubs.supervisor, kind, Mode.IMPLICIT) for kind in kinds)
        return any(walks.gpa != stubs.supervisor for every in found for walks in every)

    def _entered(self, by: _Processor, outcome: Outcome) -> Verdict:
        """Judge an entry that L2 left at once, at its first fetch, by L2's registers of the last time.

        An entry always ends: in L2, or L1 is told why it did not.
        """
        if is_endless(outcome):
            return Verdict.WRONG
        told = outcome.vmexit
        if told is None or "gla" not in told or by.guest is None:
            return Verdict.NO_ACCESS
        fetches = allowed_walks(by.guest, self._history, by.forgotten, told["gla"], PFERR_FETCH_MASK)
        seen = any(walks.gpa is None and fault_seen(walks, outcome) for walks in fetches)
        return Verdict.ALLOWED if seen else Verdict.NO_ACCESS

    def _fetches(self, by: _Processor, rip: int, mode: Mode) -> bool:
        """Whether the page of the stub is fetched from where it lies, as memory has it."""
        page = rip & ~0xFFF
        return self._known(by, self._linear(by, page), _fetch_kind(mode), _ac(mode)).walks.gpa == page

    def _fetch(self, by: _Processor, rip: int, mode: Mode, outcome: Outcome) -> Verdict | None:
        """Judge by the fetch of the stub; None: the instruction is the op's, and the rest decides."""
        kind = _fetch_kind(mode)
        elsewhere = False
        for walks in self._walks(by, rip, kind, mode):
            if walks.gpa is None and fault_seen(walks, outcome):
                return Verdict.ALLOWED
            elsewhere |= walks.gpa is not None and walks.gpa != rip
        return Verdict.UNDECIDED if elsewhere else None

    def _execute(self, by: _Processor, op: ops.Execute, outcome: Outcome) -> tuple[Verdict, TwoWalks | None]:
        first, other = None, False
        for walks in self._walks(by, op.gva, access_kind(op), op.mode):
            first = first or walks
            if walks.gpa is None:
                if fault_seen(walks, outcome):
                    return Verdict.ALLOWED, first
                continue
            hpa = by.world.hpa_of(walks.gpa)
            if hpa is None or self._history.read(hpa, 1) != NOP:
                other = True
            elif outcome.kind is OutcomeKind.OK:
                self._used(by, op, access_kind(op), walks)
                return Verdict.ALLOWED, first
        if outcome.vector == GP_VECTOR and not self._canonical(by, op.gva):
            return Verdict.ALLOWED, first
        return (Verdict.UNDECIDED if other else Verdict.WRONG), first

    def _data(
        self, by: _Processor, op: Op, operand: Operand, outcome: Outcome
    ) -> tuple[Verdict, TwoWalks | None]:
        assert isinstance(op, (*DATA, ops.Touch))
        first = None
        for kind in _kinds(op):
            reached = True
            for piece in operand.pieces:
                walks, seen = self._piece(by, op, kind, piece, outcome)
                first = first or walks
                if seen is Seen.FAULT:
                    return Verdict.ALLOWED, first
                reached &= seen is Seen.THERE
            if reached:
                return Verdict.ALLOWED, first
        if outcome.vector == GP_VECTOR and not self._canonical(by, op.gva):
            return Verdict.ALLOWED, first
        return Verdict.WRONG, first

    def _piece(
        self, by: _Processor, op: Op, kind: int, piece: Piece, outcome: Outcome
    ) -> tuple[TwoWalks | None, Seen]:
        """Look where what of an operand lies in one page was accessed; return what memory alone says too."""
        assert isinstance(op, (*DATA, ops.Touch))
        first, machine, done = None, self._machine, outcome.kind is OutcomeKind.OK
        for walks in self._walks(by, piece.gva, kind, op.mode):
            first = first or walks
            if walks.gpa is None:
                if fault_seen(walks, outcome):
                    return first, Seen.FAULT
                continue
            there = done and arrived(machine, self._history, by.world, op, piece, walks.gpa, outcome)
            if there and marked(machine, by.world, walks.outer):
                self._used(by, op, kind, walks)
                return first, Seen.THERE
        return first, Seen.NEITHER

    def _used(self, by: _Processor, op: Op, pfec: int, walks: TwoWalks) -> None:
        """Note what an access that is right wrote besides its operand: A and D on its way.

        An entry that the same access then overwrote had them for a moment, and may be remembered so.
        """
        log, space = self._log, by.world.address_space
        if log.on and pfec & PFERR_WRITE_MASK and walks.gpa is not None:
            log.write(space, walks.gpa, self._now)
        if walks.outer.ad_done and all(inner.ad_done for inner in walks.inner):
            return
        known = self._known(by, self._linear(by, walks.outer.va), pfec, _ac(getattr(op, "mode", None)))
        for gpa, hpa, size, value, accessed in known.read if known.walks is walks else ():
            now = self._machine.memory.read(hpa, size)
            if not (now ^ value) & ~(3 * accessed):
                if log.on and now != value:
                    log.write(space, gpa, self._now)
            elif not value & accessed:
                self._history.add(hpa, size, value | accessed, self._now)

    # Walks ----------------------------------------------------------------------

    def _walks(self, by: _Processor, gva: int, pfec: int, mode: Mode) -> Iterator[TwoWalks]:
        gva, ac = self._linear(by, gva), _ac(mode)
        yield self._known(by, gva, pfec, ac).walks
        yield from islice(
            allowed_walks(by.world, self._history, by.forgotten, gva, pfec, not_smap=ac), 1, None
        )

    def _known(self, by: _Processor, gva: int, pfec: int, ac: bool) -> _Known:
        """Walk by what memory held before the op, unless the same walk is known."""
        key = by.world, gva, pfec, ac
        found, history = by.known.get(key), self._history
        if found is not None and found.holds(history):
            return found
        readings: list[Reading] = []
        walks = walk_memory(by.world, history.read, gva, pfec, not_smap=ac, readings=readings)
        frames = tuple({reading[1] >> 12 for reading in readings})
        found = by.known[key] = _Known(walks, readings, frames, history.version)
        return found

    @staticmethod
    def _linear(by: _Processor, gva: int) -> int:
        return gva if by.world.control[2] & EFER_LMA else gva & 0xFFFFFFFF

    @staticmethod
    def _canonical(by: _Processor, gva: int) -> bool:
        return not by.world.control[2] & EFER_LMA or is_canonical(gva, by.world.paging[0].mode)


def _ac(mode: Mode | None) -> bool:
    """Whether SMAP does not apply."""
    return mode is Mode.SUPERVISOR_AC


def _fetch_kind(mode: Mode) -> int:
    return PFERR_FETCH_MASK | (PFERR_USER_MASK if mode is Mode.USER else 0)


def _kinds(op: Op) -> list[int]:
    """Return the accesses that the operand may be: what is exchanged may be read before."""
    kind = access_kind(op)
    return [kind, kind & PFERR_USER_MASK] if isinstance(op, _EXCHANGES) else [kind]


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
