"""Replays of streams made by hand, with what KVM reported."""

from __future__ import annotations

from typing import Any

from mmulab import events as ev
from mmulab.workload.replay import Replay, ReplayResult
from tests.workload.streams import USER, Guest

USER_PAGE, KERNEL_PAGE = 0x40000, 0x50000


class Run:
    """A replay of a guest's records, with what KVM reported."""

    def __init__(self, guest: Guest, limit: int | None = None) -> None:
        self.events: list[ev.Event] = []
        self.replay = Replay(guest.stream(), limit=limit, emit=self.events.append)
        self.result: ReplayResult = self.replay.run()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def table_writes(self) -> list[int]:
        """Addresses of the writes to tables that KVM saw."""
        return [event.gpa for event in self.of(ev.kvm_mmu_pte_write)]

    def faults(self, gva: int) -> list[int]:
        """Error codes of the faults at an address."""
        return [event.error_code for event in self.of(ev.kvm_page_fault) if event.fault_address == gva]

    def memory(self, gpa: int, size: int) -> int:
        memory = self.replay.machine.memory
        return memory.read((memory.backing << 12) + gpa, size)


def agrees(guest: Guest, limit: int | None = None) -> Run:
    run = Run(guest, limit)
    assert run.result.mismatch is None
    assert run.result.agree == run.result.accesses
    return run


def differs(guest: Guest, record: int) -> Run:
    run = Run(guest)
    assert run.result.mismatch is not None
    assert run.result.mismatch.record == record
    return run


def two_pages(paging: str, cr4: int = 0) -> Guest:
    """A guest with a user's page and the supervisor's."""
    guest = Guest(paging, cr4=cr4)
    guest.set_entry(USER_PAGE, USER_PAGE | USER)
    return guest
