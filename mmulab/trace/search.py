"""Finding moments: by what an event is, by a gfn, by a predicate.

What is looked for in all of a long recording is found in its columns; a
predicate of the reader's own is asked event by event.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab import events as ev
from mmulab.errors import InputError, near
from mmulab.events import Event
from mmulab.trace.columns import SHIFT
from mmulab.trace.recording import Recording

Numbers = npt.NDArray[np.int64]
Predicate = Callable[[Event], bool]


class Grain(StrEnum):
    """How far a step goes."""

    EVENT = "event"
    FAULT = "fault"
    OPERATION = "operation"


def moments_of_events(recording: Recording, events: npt.NDArray[np.intp]) -> Numbers:
    """Return the moments' numbers of events."""
    ops = np.searchsorted(recording.ends, events, "right")
    return events.astype(np.int64) + ops


def stops(recording: Recording, grain: Grain) -> Numbers | None:
    """Return the moments at which a grain stops; None: at every moment.

    A fault begins where KVM starts to handle it; an operation stops at its end.
    """
    if grain is Grain.FAULT:
        return moments_of_events(recording, recording.events.places(ev.kvm_page_fault))
    if grain is Grain.OPERATION:
        return recording.ends + np.arange(len(recording.ends))
    return None


def step(recording: Recording, number: int, grain: Grain, *, back: bool = False) -> int:
    """Return the moment that a step leads to; the recording's last (first) one if there is no stop."""
    last = len(recording) - 1
    places = stops(recording, grain)
    if places is None:
        return max(number - 1, 0) if back else min(number + 1, last)
    found = neighbour(places, number, back=back)
    return (0 if back else last) if found is None else found


def neighbour(places: Numbers, number: int, *, back: bool = False) -> int | None:
    """Return the next of `places` (ascending) after `number`, or before it; None if there is none."""
    if back:
        at = int(np.searchsorted(places, number, "left")) - 1
        return int(places[at]) if at >= 0 else None
    at = int(np.searchsorted(places, number, "right"))
    return int(places[at]) if at < len(places) else None


class Search(NamedTuple):
    """Something that can be looked for.

    Attributes
    ----------
    label : str
    argument : str
        What it needs besides: ``gfn``, ``name`` or nothing.
    find : callable
        From the recording and the argument to the moments' numbers.
    """

    label: str
    argument: str
    find: Callable[[Recording, str], Numbers]


def _of(*kinds: type) -> Callable[[Recording, str], Numbers]:
    """Find the events of some types."""

    def find(recording: Recording, argument: str) -> Numbers:
        places = [recording.events.places(kind) for kind in kinds]
        return moments_of_events(recording, np.sort(np.concatenate(places)))

    return find


def _with_gfn(*kinds: type) -> Callable[[Recording, str], Numbers]:
    """Find the events of some types that are about one gfn."""

    def find(recording: Recording, argument: str) -> Numbers:
        return _where(recording, kinds, "gfn", _number(argument))

    return find


def _number(argument: str) -> int:
    try:
        return int(argument, 16)
    except ValueError as error:
        raise InputError(f"gfn {argument!r} is no hexadecimal number") from error


def _where(recording: Recording, kinds: tuple[type, ...], field: str, value: int) -> Numbers:
    found = [np.zeros(0, np.intp)]
    for kind in kinds:
        column = recording.events.column(kind, field)
        if column is not None:
            found.append(recording.events.places(kind)[column.numbers() == value + SHIFT])
    return moments_of_events(recording, np.sort(np.concatenate(found)))


def _passthrough(recording: Recording, argument: str) -> Numbers:
    """Find the shadow pages that are made with a role that says passthrough."""
    column = recording.events.column(ev.kvm_mmu_get_page, "role")
    mask = recording.config.kernel.design.layout.mask.get("passthrough", 0)
    if column is None or not mask:
        return np.zeros(0, np.int64)
    roles = column.numbers().astype(np.uint64) - np.uint64(SHIFT)
    places = recording.events.places(ev.kvm_mmu_get_page)
    return moments_of_events(recording, places[roles & np.uint64(mask) != 0])


def _wrong(recording: Recording, argument: str) -> Numbers:
    """Find the ends of ops whose outcome was found wrong."""
    ops = np.array(sorted(recording.verdicts), np.int64)
    return recording.ends[ops] + ops


def _named(recording: Recording, argument: str) -> Numbers:
    kind = ev.EVENT_TYPES.get(argument)
    if kind is None:
        known = ev.EVENT_TYPES
        hint = near(argument, known)
        raise InputError(f"event {argument!r} is unknown; {hint}known are {', '.join(known)}")
    return _of(kind)(recording, argument)


_ABOUT_GFN = (
    ev.kvm_mmu_get_page,
    ev.kvm_mmu_sync_page,
    ev.kvm_mmu_unsync_page,
    ev.kvm_mmu_prepare_zap_page,
    ev.kvm_mmu_set_spte,
    ev.kvm_mmu_spte_requested,
    ev.kvm_mmu_unprotect_page,
    ev.mark_mmio_spte,
    ev.handle_mmio_page_fault,
    ev.kvm_tdp_mmu_spte_changed,
)

SEARCHES: dict[str, Search] = {
    "unsync": Search("a page goes out of sync", "", _of(ev.kvm_mmu_unsync_page)),
    "sync": Search("a page is brought into sync", "", _of(ev.kvm_mmu_sync_page)),
    "zap": Search("a page is zapped", "", _of(ev.kvm_mmu_prepare_zap_page)),
    "zap-gfn": Search("zap of gfn", "gfn", _with_gfn(ev.kvm_mmu_prepare_zap_page)),
    "page-gfn": Search("shadow page of gfn", "gfn", _with_gfn(ev.kvm_mmu_get_page)),
    "spte-gfn": Search("gfn is mapped", "gfn", _with_gfn(ev.kvm_mmu_set_spte)),
    "gfn": Search("anything about gfn", "gfn", _with_gfn(*_ABOUT_GFN)),
    "passthrough": Search("a role with passthrough", "", _passthrough),
    "fault": Search("a page fault", "", _of(ev.kvm_page_fault)),
    "inject": Search("an exception for the guest", "", _of(ev.kvm_inj_exception)),
    "flush": Search(
        "a flush of TLBs", "", _of(ev.kvm_flush_remote_tlbs, ev.kvm_flush_remote_tlbs_with_address)
    ),
    "emulate": Search("an emulated instruction", "", _of(ev.kvm_emulate_insn)),
    "wrong": Search("a wrong access", "", _wrong),
    "event": Search("event by name", "name", _named),
}
"""Everything that can be looked for, by a short name."""


def find(recording: Recording, what: str, argument: str = "") -> Numbers:
    """Return the numbers of the moments that a search finds, ascending.

    Raises
    ------
    InputError
        No such search, or an argument that it cannot use.
    """
    search = SEARCHES.get(what)
    if search is None:
        raise InputError(f"search {what!r} is unknown; {near(what, SEARCHES)}there are {', '.join(SEARCHES)}")
    if bool(search.argument) != bool(argument.strip()):
        wanted = f"a {search.argument}" if search.argument else "nothing"
        raise InputError(f"search {what!r}: it needs {wanted} besides, got {argument!r}")
    return search.find(recording, argument.strip())


def run_to(recording: Recording, number: int, predicate: Predicate, *, back: bool = False) -> int | None:
    """Return the next moment after `number`, or before it, whose event fulfils `predicate`."""
    moment = recording.moment(number)
    here = moment.event
    if back:
        top = int(recording.ends[moment.op]) if here is None else here
        places = range(top - 1, -1, -1)
    else:
        places = range(int(recording.ends[moment.op]) if here is None else here + 1, len(recording.events))
    for event in places:
        if predicate(recording.events[event]):
            return event + recording.op_of(event)
    return None
