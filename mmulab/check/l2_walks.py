"""The two walks behind an access of L2's, as the records that a stepper shows."""

from __future__ import annotations

from mmulab.check.allowed import walk_memory
from mmulab.check.world import world_of
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op
from mmulab.machine.view import GuestWalk, walk_record
from mmulab.trace.judge import access_kind


def l2_walks(machine: Machine, op: Op, address: int) -> tuple[GuestWalk, GuestWalk | None]:
    """Walk the tables as they are now, as the oracle does.

    Returns
    -------
    own : GuestWalk
        Of L2's tables; where these lie, and where they lead, is in L2's guest-physical addresses.
    nested : GuestWalk or None
        Of L1's nested tables, for the last address that L2's walk needed; None: there are none.
    """
    world = world_of(machine, op.vcpu)
    walks = walk_memory(world, machine.memory.read, address, access_kind(op))
    own, nested = world.paging[0], world.nested
    said = walk_record(own, world.cr3, address, walks.outer)
    if nested is None or not walks.inner:
        return said, None
    last = walks.inner[-1]
    return said, walk_record(nested.paging, nested.root, last.va, last)
