"""Whether a data access ended where a walk leads, saw what is there, and left what it must."""

from __future__ import annotations

from typing import NamedTuple

from mmulab.check.remembered import TableHistory
from mmulab.check.world import World
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.memory.host import ALL_ACCESS, READ_ACCESS, HostMemory
from mmulab.trace.judge import access_kind
from mmulab.x86.pferr import PFERR_WRITE_MASK
from mmulab.x86.walk import Walk


class Operand(NamedTuple):
    """An operand in memory, which may cross into a second page."""

    gva: int
    size: int

    @property
    def beyond(self) -> int:
        """How many of its bytes lie in the second page."""
        return max(0, (self.gva & 0xFFF) + self.size - 0x1000)


def arrived(
    machine: Machine,
    history: TableHistory,
    world: World,
    op: Op,
    operand: Operand,
    gpa: int,
    outcome: Outcome,
) -> bool:
    """Whether a data access that ended well did so at a guest-physical address.

    Parameters
    ----------
    machine : Machine
        After the op.
    history : TableHistory
        Memory before it.
    world : World
    op : Op
    operand : Operand
    gpa : int
        Where its first byte lies.
    outcome : Outcome
    """
    if operand.beyond:
        return True
    write = bool(access_kind(op) & PFERR_WRITE_MASK)
    slot = machine.kvm.slots[world.address_space].lookup(gpa >> 12)
    if slot is None or (write and slot.readonly):
        return bool(outcome.mmio) and outcome.mmio is not None and outcome.mmio[0].gpa == gpa
    hpa = world.hpa_of(gpa)
    if outcome.mmio or hpa is None or outcome.hpa not in (-1, hpa):
        return False
    memory = machine.memory
    if outcome.hpa != -1 and not _host_allows(memory, hpa >> 12, write=write):
        return False
    mask = (1 << 8 * operand.size) - 1
    match op:
        case ops.Read():
            seen = outcome.rax & mask
            return seen in (history.read(hpa, operand.size), memory.read(hpa, operand.size))
        case ops.Write(value=value) | ops.Exchange(value=value):
            return memory.read(hpa, operand.size) == value & mask
    return True


def _host_allows(memory: HostMemory, frame: int, *, write: bool) -> bool:
    """Whether the host lets an access reach a frame, now that it has: it is there, and may be written."""
    if frame in memory.swapped or (write and frame in memory.clean):
        return False
    return memory.access(frame) >= (ALL_ACCESS if write else READ_ACCESS)


def marked(machine: Machine, world: World, used: Walk) -> bool:
    """Whether the guest's entries have A, and the leaf of a write D, after an access that used a walk.

    An entry that was remembered with them need not have them in memory (SDM 3, 4.8), nor one
    that the access itself has overwritten. In a read-only slot KVM leaves both bits alone
    (``update_accessed_dirty_bits``). What L1's nested tables have to show is not looked at.

    Parameters
    ----------
    machine : Machine
        After the op.
    world : World
    used : Walk
        Of the guest's tables, with the entries as they were used.
    """
    paging = world.paging[0]
    if used.ad_done or world.nested is not None:
        return True
    size, accessed, dirty = paging.mode.entry_bytes, paging.accessed_mask, paging.dirty_mask
    for level in range(used.max_level, used.level - 1, -1):
        last = level == used.level and used.pfec & PFERR_WRITE_MASK
        entry, need = used.ptes[level], accessed | dirty if last else accessed
        address = used.entry_addr[level]
        slot = machine.kvm.slots[world.address_space].lookup(address >> 12)
        if entry & need == need or slot is None or slot.readonly:
            continue
        now = machine.memory.read(slot.frame(address >> 12) << 12 | address & 0xFFF, size)
        if now & need != need and not (now ^ entry) & ~(accessed | dirty):
            return False
    return True
