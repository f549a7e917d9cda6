"""A nested guest on huge pages, which tests drive op by op."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmulab import events as ev
from mmulab.kvm.invariants import Invariant, check
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.rmap import pte_list_iter
from mmulab.kvm.roles.derivation import copied
from mmulab.kvm.shadow_page import shadow_path
from mmulab.kvm.state import Kvm
from mmulab.lab.cases.build import VMCB_GPA
from mmulab.lab.eager_split.guest import HUGE, MEMORY, access, fault_kinds, huge_guest
from mmulab.machine import op as ops
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner


def log_all(builder: ScenarioBuilder) -> ops.SetMemslot:
    """Return the op that turns dirty logging on for all of a builder's memory."""
    return ops.SetMemslot(0, 0, builder.mem, KVM_MEM_LOG_DIRTY_PAGES, 0)


class Nested:
    """A guest that a builder describes, driven op by op; the invariants are checked after each.

    Parameters
    ----------
    builder : ScenarioBuilder
        Its ops leave L2 running.
    config : Any
        Changes to the machine's configuration; `host` is a dict of changes to the host's.
    """

    def __init__(self, builder: ScenarioBuilder, **config: Any) -> None:
        scenario = builder.build()
        base = machine_config(scenario)
        host = replace(base.host, **config.pop("host", {}))
        self.events: list[ev.Event] = []
        self.runner = Runner(scenario, self.events.append, replace(base, host=host, **config))
        for result in self.runner.results():
            self.check()
            if result.op is scenario.steps[-1].op:
                break
        assert self.kvm.vcpus[0].guest_mode
        self.log_op = log_all(builder)

    @property
    def kvm(self) -> Kvm:
        return self.runner.machine.kvm

    @property
    def slot(self) -> KvmMemslot:
        found = self.kvm.slots[0].by_id(0)
        assert found is not None
        return found

    def do(self, op: ops.Op) -> Outcome:
        """Execute an op; :attr:`events` has its events then."""
        self.events.clear()
        outcome = self.runner.machine.execute(op)
        self.check()
        return outcome

    def check(self) -> None:
        """Assert the invariants; that the copied quadrant is the wrong one, the halves' gfns make up for."""
        broken = {violation.flag for violation in check(self.kvm).violations}
        assert broken <= ({Invariant.QUADRANT} if self.kvm.config.kernel.derivation is copied else set())

    def faults(self, address: int, *, write: bool) -> list[str]:
        """Access L2's memory as it should be possible; return the kinds of its faults."""
        assert self.do(access(address, write=write)).kind is OutcomeKind.OK
        return fault_kinds(self.events)

    def log(self, on: bool = True) -> list[ev.Event]:
        """Turn dirty logging on or off; return the events."""
        assert self.do(self.log_op if on else replace(self.log_op, flags=0)).result == 0
        return list(self.events)

    def dirty(self) -> list[int]:
        found = self.do(ops.GetDirtyLog(0)).dirty
        assert found is not None
        return found

    def leaf(self, address: int) -> tuple[int, int]:
        """Return level and spte at the end of the shadow path for an address of L2."""
        level, _, spte = shadow_path(self.kvm.vcpus[0], address)[-1]
        return level, spte

    def sptes(self, address: int, level: int) -> list[int]:
        """Return the sptes that map an address of L1 at a level."""
        head = self.slot.rmap[level].get(address >> 12 + 9 * (level - 1), [])
        return list(pte_list_iter(head))


def started(huge_pages: int = 2, *, l1: str = "64", **config: Any) -> Nested:
    """Return a guest that has written each of its huge pages; see :class:`Nested` for `config`."""
    builder, _ = huge_guest(huge_pages, l1=l1)
    builder.op(ops.Vmrun(VMCB_GPA))
    for address in range(MEMORY, builder.mem, HUGE):
        builder.op(access(address, write=True))
    return Nested(builder, **config)
