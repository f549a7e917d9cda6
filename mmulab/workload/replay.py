"""Replay of a stream: a recorded boot goes through the shadow MMU, access by access.

Every access runs on the vCPU, through the tables that KVM built; every store to
a guest table is a guest's write at its address, and what faults goes to KVM. The
physical address reached is compared with the recorded one, for every access.

The rules by which a stream is to be replayed are told in
``data/stream/PROVENANCE.md``. Runs of accesses that hit go through the compiled
walk, which returns at the first fault.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mmulab.conform.state import state_lines
from mmulab.errors import InputError
from mmulab.events import EventSink
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.sync.counts import sync_counts
from mmulab.kvm.x86 import vcpu_enter_guest
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.machine.processor import host_paging
from mmulab.memory.host import FRAME_BYTES
from mmulab.workload.replay_plan import (
    Action,
    Step,
    make_plan,
    new_tables,
)
from mmulab.workload.replay_result import Mismatch, ReplayResult
from mmulab.workload.replay_sample import FAULT_CLASSES, Sampler
from mmulab.workload.snapshot import READER
from mmulab.workload.stream import (
    AUX_DEVICE,
    AUX_SIZE_SHIFT,
    CONTROL_NAMES,
    INITIAL_RECORDS,
    Kind,
    Stream,
)
from mmulab.x86.mode import PAGING_5LEVEL
from mmulab.x86.paging import Paging, make_paging
from mmulab.x86.pferr import ACC_USER_MASK
from mmulab.x86.regs import X86_CR4_PKE, CpuModel
from mmulab.x86.walk import walk

Words = npt.NDArray[np.uint64]

CPU = CpuModel(vendor="amd", maxphyaddr=40, pku=True, pcid=True)
"""The guest's processor: the recordings' emulated one could do all that this package models."""
NOT_SHADOWED_CR4 = X86_CR4_PKE
"""What the recorded guest set on its bare processor, but KVM offers no guest with shadow paging."""
BATCH = 1 << 14
"""Accesses given to one call of the compiled walk."""
_PAGE_SHIFT = np.uint64(12)
_CLASS_OF_KIND = {Kind.READ: 0, Kind.WRITE: 2, Kind.FETCH: 4, Kind.STORE: 6}


class _Stopped(Exception):
    """The caller wants no more; raised between two ops."""


class _Differs(Exception):
    """A record went otherwise than recorded: its index, where it went, and a word about that."""

    def __init__(self, record: int, reached: int | None, what: str) -> None:
        super().__init__(record, reached, what)
        self.record = record
        self.reached = reached
        self.what = what


class Replay:
    """A stream on its way through a machine.

    Parameters
    ----------
    stream : Stream
    limit : int, optional
        Records to replay; all of them by default.
    kernel : Kernel, optional
    emit : callable, optional
        Event sink; None records nothing.
    sampler : Sampler, optional
    one_by_one : bool
        Every access is an op of its own, so that a recorder of the machine sees
        it; else those that hit go through the compiled walk, which is faster.

    Attributes
    ----------
    records : int
        Records that will be replayed.
    machine : Machine
    plan : Plan
        The accesses, and the steps between them.
    faults : list of int
        Faults so far by class, as :data:`FAULT_CLASSES`.
    tables : dict of (int, int) to None
        The guest's live tables by (address, level), as far as the stream told.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        limit: int | None = None,
        kernel: Kernel = LINUX_6_1,
        emit: EventSink | None = None,
        sampler: Sampler | None = None,
        one_by_one: bool = False,
    ) -> None:
        self.stream = stream
        self.one_by_one = one_by_one
        self.sampler = sampler
        self.faults = [0] * len(FAULT_CLASSES)
        self.tables: dict[tuple[int, int], None] = {}
        config = MachineConfig(
            cpu=CPU,
            host=HostConfig(la57=stream.mode is PAGING_5LEVEL),
            backing_bytes=stream.ram_bytes,
            slots=memslots(stream),
            kernel=kernel,
        )
        self.machine = Machine(config, emit)
        self._vcpu = self.machine.kvm.vcpus[0]
        self._memory = self.machine.memory
        self._backing = self._memory.backing
        self.records = len(stream) if limit is None else min(limit, len(stream))
        every = None if sampler is None else sampler.every
        self.plan = make_plan(stream, self.records, self._backing, every)
        self._position = 0
        self._stop: Callable[[], bool] = lambda: False
        stores = self.plan.stores
        # Memoryviews give plain ints; a last position that is never reached ends the table stores.
        self._store_position = np.append(stores.position, len(self.plan.record)).data
        self._store_size, self._store_value = stores.size.data, stores.value.data
        self._next_store = 0
        self._paging: Paging | None = None
        self._paging_of = (-1, -1)

    @property
    def record(self) -> int:
        """Index in the stream of the access at hand; of the last one at the end, 0 without any."""
        records = self.plan.record
        return int(records[min(self._position, len(records) - 1)]) if len(records) else 0

    def run(
        self,
        progress: Callable[[int], object] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> ReplayResult:
        """Replay to the end, or to the first access that goes elsewhere than recorded.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of records replayed so far, now and then.
        stop : callable, optional
            Asked between ops, or batches of accesses: true ends the replay there.
        """
        plan = self.plan
        self._stop = stop
        mismatch, stopped = None, False
        try:
            self._begin()
            for step in plan.steps:
                self._check_stop()
                self._access_until(step.position)
                self._take(step, progress)
            self._access_until(len(plan.record))
            if self.sampler is not None:
                self.sampler.take(self.machine, self.faults, len(self.tables), self.records)
            if progress is not None:
                progress(self.records)
        except _Differs as difference:
            mismatch = self._mismatch(difference)
        except _Stopped:
            stopped = True
        return self._result(mismatch, stopped)

    def _check_stop(self) -> None:
        if self._stop():
            raise _Stopped

    # Steps --------------------------------------------------------------------

    def _begin(self) -> None:
        """Fill in the tables of the start, then load the registers."""
        self._apply_tables(INITIAL_RECORDS)
        registers = self.stream.registers
        registers = registers._replace(cr4=registers.cr4 & ~NOT_SHADOWED_CR4)
        op = ops.SetSregs(**registers._asdict())
        if self.machine.execute(op).result is not None:
            found = ", ".join(f"{name} {value:x}" for name, value in registers._asdict().items())
            raise InputError(f"{self.stream.name}: KVM_SET_SREGS refuses the registers of the start: {found}")

    def _take(self, step: Step, progress: Callable[[int], object] | None) -> None:
        record = step.record
        match step.action:
            case Action.INVLPG:
                self._expect_ok(record, self.machine.execute(ops.Invlpg(int(self.stream.gva[record]))))
            case Action.CONTROL:
                self._control(record)
            case Action.TABLES:
                self._apply_tables(record)
            case Action.TABLE_END:
                self.tables.pop(self.stream.table(record), None)
            case Action.SAMPLE:
                assert self.sampler is not None
                self.sampler.take(self.machine, self.faults, len(self.tables), record)
            case Action.PROGRESS:
                if progress is not None:
                    progress(record)

    def _control(self, record: int) -> None:
        """Write a control register as the guest did."""
        register, value = int(self.stream.aux[record]), int(self.stream.val[record])
        value &= ~NOT_SHADOWED_CR4 if CONTROL_NAMES[register] == "cr4" else -1
        op: Op = ops.WriteEfer(value) if CONTROL_NAMES[register] == "efer" else ops.WriteCr(register, value)
        self._expect_ok(record, self.machine.execute(op))

    def _expect_ok(self, record: int, outcome: Outcome) -> None:
        if outcome.kind is not OutcomeKind.OK:
            raise _Differs(record, None, f"it ends in {_outcome_str(outcome)}")

    def _apply_tables(self, first: int) -> None:
        """Make pages the tables that they are now, entry by entry, by stores that KVM sees."""
        for table in new_tables(self.stream, first):
            self.tables[table.gpa, table.level] = None
            width = table.content.itemsize
            start = (self._backing << 12) + table.gpa
            held = self._memory.frames.reshape(-1).view(table.content.dtype)
            held = held[start // width : (start + table.size) // width]
            for index in np.flatnonzero(held != table.content).tolist():
                gpa = table.gpa + index * width
                self.machine.execute(ops.GuestStore(width, gpa, int(table.content[index])))

    # Accesses -----------------------------------------------------------------

    def _access_until(self, end: int) -> None:
        """Run the accesses up to number `end`.

        Raises
        ------
        _Differs
        """
        while self.one_by_one and self._position < end:
            self._check_stop()
            self._fault()
        if self._position < end:
            self._batches_until(end)

    def _batches_until(self, end: int) -> None:
        """Run the accesses up to number `end`, those that hit by the compiled walk."""
        from mmulab.x86.batch import NO_FAULT, walk_batch  # numba: only where a replay runs

        plan, vcpu, memory = self.plan, self._vcpu, self._memory
        while (begin := self._position) < end:
            self._check_stop()
            if vcpu.requests or vcpu.mmu.root_hpa == INVALID_PAGE:
                self._enter()
            stop = min(end, begin + BATCH)
            done, pa, error = walk_batch(
                memory.frames,
                self._host_paging(),
                vcpu.mmu.root_hpa,
                plan.va[begin:stop],
                plan.pfec[begin:stop],
                not_smap=plan.not_smap[begin:stop],
                written=memory.written,
                epoch=memory.epoch,
            )
            if done:
                self._hit(pa[:done])
            if error != NO_FAULT:
                self._fault()

    def _enter(self) -> None:
        """Serve what KVM put off until the next entry."""
        if not vcpu_enter_guest(self._vcpu, reinject=False):
            record = int(self.plan.record[self._position])
            raise _Differs(record, None, "the vCPU shuts down (triple fault)")

    def _host_paging(self) -> Paging:
        """Return the paging configuration that the processor runs the guest with."""
        vcpu = self._vcpu
        key = (vcpu.hw_cr4, vcpu.mmu.root_level)
        if key != self._paging_of:
            self._paging = host_paging(vcpu, self.machine.processor)
            self._paging_of = key
        assert self._paging is not None
        return self._paging

    def _hit(self, pa: Words) -> None:
        """Compare where accesses went that did not fault, and perform the table stores among them."""
        begin = self._position
        wrong = pa >> _PAGE_SHIFT != self.plan.frame[begin : begin + len(pa)]
        first = int(np.argmax(wrong))
        good = first if wrong[first] else len(pa)
        self._position = begin + good
        write, positions, number = self._memory.write, self._store_position, self._next_store
        while (position := positions[number]) < begin + good:
            write(int(pa[position - begin]), self._store_size[number], self._store_value[number])
            number += 1
        self._next_store = number
        if good < len(pa):
            record = int(self.plan.record[begin + good])
            raise _Differs(record, self._gpa(int(pa[good])), "the shadow tables lead elsewhere")

    def _gpa(self, hpa: int) -> int:
        return hpa - (self._backing << 12)

    def _fault(self) -> None:
        """Run the access at hand as an instruction: KVM handles its fault, and may emulate it."""
        plan, stream, vcpu = self.plan, self.stream, self._vcpu
        position = self._position
        record = int(plan.record[position])
        # A miss and its table store are one instruction, which KVM may emulate only once.
        miss = int(plan.miss[position])
        record += miss
        taken = vcpu.stat["pf_taken"]
        outcome = self.machine.execute(self._op(record))
        kind = Kind(int(stream.kind[record]))
        self.faults[_CLASS_OF_KIND[kind] + (stream.cpl[record] == 3)] += vcpu.stat["pf_taken"] - taken
        if outcome.kind is not OutcomeKind.OK:
            raise _Differs(record - miss, None, f"it ends in {_outcome_str(outcome)}")
        reached, device = self._reached(outcome)
        for number in range(1 + miss):
            self._compare(position + number, reached, device)
            self._position += 1
        if kind is Kind.STORE:
            self._next_store += 1

    def _compare(self, position: int, reached: int, device: bool) -> None:
        """Compare where an access went that KVM had a part in; devices lie outside the memslots."""
        record = int(self.plan.record[position])
        if (reached ^ int(self.stream.gpa[record])) >> 12:
            where = "a device" if device else "memory"
            raise _Differs(record, reached, f"KVM's handling of its fault leads to {where}")

    def _op(self, record: int) -> Op:
        """Return the op of an access or table store."""
        stream = self.stream
        kind, gva, aux = int(stream.kind[record]), int(stream.gva[record]), int(stream.aux[record])
        mode = self._mode(record)
        if kind == Kind.STORE:
            number = self._next_store
            return ops.Write(mode, self._store_size[number], gva, self._store_value[number])
        size = aux >> AUX_SIZE_SHIFT
        if kind == Kind.WRITE:
            return ops.Write(mode, size, gva, self._held(record, size))
        if kind == Kind.READ:
            return ops.Read(mode, size, gva)
        return ops.Touch(mode, gva, fetch=True)

    def _held(self, record: int, size: int) -> int:
        """Return what the memory holds that a ``w`` goes to: it stores that; a device gets 0."""
        if int(self.stream.aux[record]) & AUX_DEVICE:
            return 0
        return self._memory.read((self._backing << 12) + int(self.stream.gpa[record]), size)

    def _mode(self, record: int) -> Mode:
        """Return the privilege of an access.

        A user's data access to a page that the guest's tables keep for the
        supervisor is an implicit one, such as exception delivery makes.
        """
        stream = self.stream
        fetch = stream.kind[record] == Kind.FETCH
        if stream.cpl[record] != 3:
            return Mode.SUPERVISOR if fetch else Mode.SUPERVISOR_AC
        if not fetch and self._is_supervisor_page(int(stream.gva[record])):
            return Mode.IMPLICIT
        return Mode.USER

    def _is_supervisor_page(self, gva: int) -> bool:
        """Whether the guest's tables map `gva` for the supervisor only."""
        vcpu, memory = self._vcpu, self._memory
        paging = make_paging(vcpu.cr0, vcpu.cr4, vcpu.efer, CPU, READER)
        slots, width = self.machine.kvm.slots[0], paging.mode.entry_bytes

        def load(gpa: int, level: int) -> int | None:
            return slots.read(memory.bytes, gpa, width)

        w = walk(paging, vcpu.cr3, gva, 0, load, pdptes=vcpu.walk_mmu.pdptrs, not_smap=True)
        return w.error is None and not w.pte_access & ACC_USER_MASK

    def _reached(self, outcome: Outcome) -> tuple[int, bool]:
        """Return the physical address that an executed access reached, and whether it is a device's."""
        if outcome.mmio:
            return outcome.mmio[0].gpa, True
        if outcome.hpa >= 0:
            return self._gpa(outcome.hpa), False
        return self._vcpu.emulation.gpa, False

    # The result ---------------------------------------------------------------

    def _mismatch(self, difference: _Differs) -> Mismatch:
        stream, record = self.stream, difference.record
        gva = int(stream.gva[record])
        return Mismatch(
            record,
            Kind(int(stream.kind[record])).letter,
            gva,
            int(stream.gpa[record]),
            difference.reached,
            difference.what,
            tuple(state_lines(self.machine, gva)),
        )

    def _result(self, mismatch: Mismatch | None, stopped: bool) -> ReplayResult:
        kvm, stats = self.machine.kvm, self.machine.stats
        records = self.record if stopped else self.records
        kinds = self.stream.kind[: records if mismatch is None else mismatch.record]
        return ReplayResult(
            records=records,
            accesses=self._position if stopped else len(self.plan.record),
            agree=self._position,
            faults=dict(zip(FAULT_CLASSES, self.faults, strict=True)),
            guest_faults=int(np.count_nonzero(kinds == Kind.PAGE_FAULT)),
            shadow_pages=stats["mmu_cache_miss"],
            shadow_pages_in_use=len(kvm.pages),
            stats=stats,
            sync=sync_counts(kvm),
            mismatch=mismatch,
            interrupted=stopped,
        )


def memslots(stream: Stream) -> tuple[SlotConfig, ...]:
    """Return the memslots of a stream's guest: its memory, with a hole at each device's page."""
    device = np.unique(stream.gpa[stream.device()] >> np.uint64(12)).tolist()
    edges = [-1, *(page for page in device if page < stream.ram_bytes >> 12), stream.ram_bytes >> 12]
    slots: list[SlotConfig] = []
    for before, after in pairwise(edges):
        first, pages = before + 1, after - before - 1
        if pages:
            start = first * FRAME_BYTES
            slots.append(SlotConfig(len(slots), start, pages * FRAME_BYTES, 0, start))
    return tuple(slots)


def _outcome_str(outcome: Outcome) -> str:
    if outcome.kind is not OutcomeKind.EXC:
        return str(outcome.kind)
    code = "" if outcome.error_code is None else f", error code {outcome.error_code:#x}"
    return f"exception {outcome.vector}{code}"
