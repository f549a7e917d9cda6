"""What a host said of one scenario, in the order in which it came."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mmulab.record.link import Kind, Record

__all__ = ["Take", "TakenOp"]


@dataclass(slots=True)
class TakenOp:
    """One op: what the VMM said of it, and the pages of the trace from its start to the next one's.

    Attributes
    ----------
    index : int
    text : str
    outcome : str or None
        None: the host did not come to the end of it.
    pages : list of bytes
    frames : tuple of int
        Host frames of the guest's backing after it, 0 for what is swapped out; empty: they are as before.
    """

    index: int
    text: str
    outcome: str | None = None
    pages: list[bytes] = field(default_factory=list)
    frames: tuple[int, ...] = ()


@dataclass(slots=True)
class Take:
    """A scenario as it was taken, whole or up to where the host ended.

    Attributes
    ----------
    ops : list of TakenOp
    frames : list of tuple of int
        Host frames of the guest's backing: at the start, and whenever they were found to be others.
    total : str
        KVM's statistics before the teardown.
    notes : list of str
        What the VMM had to say.
    error : str
        Why the VMM could not run it.
    done : bool
    """

    ops: list[TakenOp] = field(default_factory=list)
    frames: list[tuple[int, ...]] = field(default_factory=list)
    total: str = ""
    notes: list[str] = field(default_factory=list)
    error: str = ""
    done: bool = False

    def add(self, record: Record) -> None:
        """Take the next record."""
        kind, data = record
        if kind == Kind.BEGIN:
            number, _, text = record.text.partition(" ")
            self.ops.append(TakenOp(int(number), text))
        elif kind == Kind.TRACE and self.ops:
            self.ops[-1].pages.append(data)
        elif kind == Kind.OUTCOME:
            self.ops[-1].outcome = record.text
        elif kind == Kind.FRAMES:
            self.frames.append(struct.unpack(f"<{len(data) // 8}Q", data))
            if self.ops:
                self.ops[-1].frames = self.frames[-1]
        elif kind == Kind.TOTAL:
            self.total = record.text
        elif kind == Kind.NOTE:
            self.notes.append(record.text)
        elif kind == Kind.ERROR:
            self.error = record.text
        elif kind == Kind.DONE:
            self.done = True
