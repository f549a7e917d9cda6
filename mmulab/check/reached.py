"""Whether a data access ended where a walk leads, saw what is there, and left what it must."""

from __future__ import annotations

from enum import Enum
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

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What of it lies in each page."""
        over = self.beyond
        first = self.size - over
        second = (Piece(self.gva + first, over, 8 * first, is_all=False),) if over else ()
        return (Piece(self.gva, first, 0, is_all=not over), *second)


class Piece(NamedTuple):
    """What of an operand lies in one page: its first byte, and how far it is shifted in the value."""

    gva: int
    size: int
    shift: int
    is_all: bool


class Seen(Enum):
    """How an access to one page ended."""

    FAULT = "fault"
    THERE = "there"
    NEITHER = "neither"


def arrived(
    machine: Machine,
    history: TableHistory,
    world: World,
    op: Op,
    piece: Piece,
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
    piece : Piece
        What of its operand lies there.
    gpa : int
        Where the piece's first byte lies.
    outcome : Outcome
        Its `hpa` is that of the operand's first byte.
    """
    write = bool(access_kind(op) & PFERR_WRITE_MASK)
    slot = machine.kvm.slots[world.address_space].lookup(gpa >> 12)
    if slot is None or (write and slot.readonly):
        return any(part.gpa == gpa for part in outcome.mmio or ())
    hpa, seen = world.hpa_of(gpa), outcome.hpa if not piece.shift else -1
    if (outcome.mmio and piece.is_all) or hpa is None or seen not in (-1, hpa):
        return False
    memory = machine.memory
    if seen != -1 and not _host_allows(memory, hpa >> 12, write=write):
        return False
    mask = (1 << 8 * piece.size) - 1
    match op:
        case ops.Read():
            value = outcome.rax >> piece.shift & mask
            return value in (history.read(hpa, piece.size), memory.read(hpa, piece.size))
        case ops.Write(value=value) | ops.Exchange(value=value):
            return memory.read(hpa, piece.size) == value >> piece.shift & mask
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
