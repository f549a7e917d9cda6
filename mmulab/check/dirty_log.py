"""Which pages a dirty log, or the dirty rings, must name: those that the guest wrote since the last time."""

from __future__ import annotations

from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES

_AS_SHIFT = 16
LOG_OPS = (
    ops.SetMemslot,
    ops.DeleteMemslot,
    ops.GetDirtyLog,
    ops.ClearDirtyLog,
    ops.GetDirtyRing,
    ops.ResetDirtyRings,
)


class DirtyLog:
    """The pages that were written, by slot, and not named since.

    Parameters
    ----------
    machine : Machine

    Attributes
    ----------
    on : bool
        A slot is logged.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._written: dict[int, dict[int, int]] = {}
        self._named: dict[tuple[int, int], None] = {}
        self._taken = {vcpu.id: 0 for vcpu in machine.kvm.vcpus}
        self.on = self._logs()

    def _logs(self) -> bool:
        slots = (slot for space in self._machine.kvm.slots for slot in space.slots)
        return any(slot.flags & KVM_MEM_LOG_DIRTY_PAGES for slot in slots)

    def write(self, address_space: int, gpa: int, now: int) -> None:
        """Note that op `now` wrote a page, unless its slot is read-only: such a write goes to the VMM."""
        slot = self._machine.kvm.slots[address_space].lookup(gpa >> 12)
        if slot is not None and slot.flags & KVM_MEM_LOG_DIRTY_PAGES and not slot.readonly:
            number = address_space << _AS_SHIFT | slot.id
            offset = (gpa >> 12) - slot.base_gfn
            if (number, offset) not in self._named:
                self._written.setdefault(number, {})[offset] = now

    def missing(self, op: Op, outcome: Outcome, now: int) -> list[int]:
        """Take note of an op of :data:`LOG_OPS`; return the gfns that it ought to have named."""
        if outcome.result:
            return []
        match op:
            case ops.SetMemslot(id=number) | ops.DeleteMemslot(id=number):
                self._written.pop(number, None)
                self._named = {page: None for page in self._named if page[0] != number}
                self.on = self._logs()
            case ops.GetDirtyLog(id=number):
                return self._logged(number, outcome.dirty or [])
            case ops.ClearDirtyLog(id=number, first=first, count=count):
                written = self._written.get(number, {})
                for offset in [at for at in written if first <= at < first + count]:
                    del written[offset]
            case ops.GetDirtyRing(vcpu=vcpu):
                return self._harvested(vcpu, outcome.ring or [], now)
            case ops.ResetDirtyRings():
                self._named.clear()
        return []

    def _logged(self, number: int, dirty: list[int]) -> list[int]:
        named = set(dirty)
        missing = [offset for offset in sorted(self._written.get(number, ())) if offset not in named]
        if not self._machine.kvm.manual_dirty_log_protect:
            self._written.pop(number, None)
        return [self._gfn(number, offset) for offset in missing]

    def _harvested(self, vcpu: int, ring: list[tuple[int, int]], now: int) -> list[int]:
        """Compare all rings once each was taken behind a write; what was taken is dirty until a reset."""
        for number, offset in ring:
            self._named[number, offset] = None
            self._written.get(number, {}).pop(offset, None)
        self._taken[vcpu] = now
        known = min(self._taken.values())
        return [
            self._gfn(number, offset)
            for number, written in self._written.items()
            for offset, at in sorted(written.items())
            if at < known
        ]

    def _gfn(self, number: int, offset: int) -> int:
        slot = self._machine.kvm.slots[number >> _AS_SHIFT].by_id(number & (1 << _AS_SHIFT) - 1)
        assert slot is not None
        return slot.base_gfn + offset

    def save(self) -> tuple[object, ...]:
        """Return what :meth:`restore` takes."""
        written = {number: dict(pages) for number, pages in self._written.items()}
        return written, dict(self._named), dict(self._taken), self.on
