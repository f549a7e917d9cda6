"""What Bochs 2.7 does otherwise than a processor of Intel, and the trace as it would be of one.

Both are mended only where KVM's decisions are the same with and without.
"""

from __future__ import annotations

from typing import Any

from mmulab import events as ev
from mmulab.x86.pferr import PFERR_USER_MASK, PFERR_WRITE_MASK

__all__ = ["as_of_a_processor"]

_VIOLATION = "ept_violation"
_READ, _WRITE, _IS_TRANSLATION, _LINEAR = 1, 2, 1 << 8, 1 << 7


def as_of_a_processor(
    events: list[ev.Event], outcome: dict[str, Any]
) -> tuple[list[ev.Event], dict[str, Any]]:
    """Return an op's events and outcome without the emulator's own doing.

    *Old traps.* When a single-stepped instruction leaves the guest, the step's trap stays and comes at
    the next entry, before any instruction; the VMM then lets the guest go on (``vmm/guest.c``). These
    exits by #DB are left out: a step that is over is the last exit of its op.

    *Walks under EPT A/D.* The processor's access to a guest's table counts as a write then, and the
    qualification of its violation has read and write (SDM 3, table 28-7); Bochs sets write alone. As
    what EPT lets write it also lets read, KVM decides alike, and only repeats the bit.
    """
    kept, walk, reflected = [], False, False
    for event in _without_old_traps(events):
        if isinstance(event, ev.kvm_exit):
            walk = event.reason == _VIOLATION and _is_walk(event.qualification or 0)
        if walk:
            event = _with_read(event)
            reflected |= isinstance(event, ev.kvm_nested_vmexit_inject) and event.reason == _VIOLATION
        kept.append(event)
    if reflected and outcome.get("out") == "vmexit":
        outcome = outcome | {"qual": hex(int(outcome["qual"], 16) | _READ)}
    return kept, outcome


def _without_old_traps(events: list[ev.Event]) -> list[ev.Event]:
    exits = [at for at, event in enumerate(events) if isinstance(event, ev.kvm_exit)]
    old = {at for at in exits[:-1] if _is_trap(events[at], ev.kvm_exit)}
    old |= {at + 1 for at in old if _is_trap(events[at + 1], ev.kvm_nested_vmexit)}
    return [event for at, event in enumerate(events) if at not in old]


def _is_trap(event: ev.Event, kind: type[ev.kvm_exit] | type[ev.kvm_nested_vmexit]) -> bool:
    return isinstance(event, kind) and event.reason == "db"


def _is_walk(qualification: int) -> bool:
    return qualification & (_READ | _WRITE | _LINEAR | _IS_TRANSLATION) == _WRITE | _LINEAR


def _with_read(event: ev.Event) -> ev.Event:
    match event:
        case ev.kvm_exit(qualification=int(qualification)):
            return event._replace(qualification=qualification | _READ)
        case ev.kvm_page_fault():
            return event._replace(error_code=event.error_code | _READ)
        case (
            ev.kvm_nested_vmexit(reason="ept_violation") | ev.kvm_nested_vmexit_inject(reason="ept_violation")
        ):
            return event._replace(exit_info1=event.exit_info1 | _READ)
        case ev.fast_page_fault() if event.error_code & PFERR_WRITE_MASK:
            return event._replace(error_code=event.error_code | PFERR_USER_MASK)
        case ev.kvm_mmu_pagetable_walk() | ev.kvm_mmu_walker_error() if event.pferr & PFERR_WRITE_MASK:
            return event._replace(pferr=event.pferr | PFERR_USER_MASK)
    return event
