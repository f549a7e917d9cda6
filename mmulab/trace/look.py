"""A look at a run's state at one moment: everything that a stepper shows, as plain values.

A :class:`Look` is taken from a state and then stands for itself, so that two
can be laid side by side. Panels, pages and the terminal are made from looks and
from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab import events as ev
from mmulab.events import Event
from mmulab.kvm.rmap import gfn_to_rmap, pte_list_iter
from mmulab.kvm.spte import is_mmio_spte, is_shadow_present_pte
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.machine.view import (
    GuestWalk,
    PageHeader,
    ShadowStep,
    guest_walk,
    page_header,
    shadow_steps,
)
from mmulab.trace.judge import access_kind
from mmulab.trace.recording import Moment, Recording, State

PAGE_EVENTS = (
    ev.kvm_mmu_get_page,
    ev.kvm_mmu_sync_page,
    ev.kvm_mmu_unsync_page,
    ev.kvm_mmu_prepare_zap_page,
)
"""Events that name a shadow page by gfn and role."""
SPTE_EVENTS = (ev.kvm_mmu_set_spte, ev.drop_spte, ev.mark_mmio_spte)
"""Events that name a shadow entry by its address."""


class Registers(NamedTuple):
    """What the vCPU's paging depends on, and its MMU context.

    Attributes
    ----------
    cr0, cr3, cr4, efer, cpl : int
    guest_mode : bool
        L2 runs.
    kind : str
        The context's handlers: ``paging32``, ``tdp``..
    root_hpa, root_pgd, root_role : int
        The root in use (-1: none), the guest's root it shadows, a root's role word.
    prev_roots : tuple of (pgd, hpa)
        Roots kept for a later CR3 load.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    guest_mode: bool
    kind: str
    root_hpa: int
    root_pgd: int
    root_role: int
    prev_roots: tuple[tuple[int, int], ...]


class Parent(NamedTuple):
    """An entry that leads to a page, and the page it lies in."""

    sptep: int
    page: PageHeader | None


class PageLook(NamedTuple):
    """The shadow page that the moment is about.

    Attributes
    ----------
    page : PageHeader
    parents : tuple of Parent
    siblings : tuple of PageHeader
        The other pages of the same gfn, newest first.
    present : int
        Number of its entries that lead somewhere.
    """

    page: PageHeader
    parents: tuple[Parent, ...]
    siblings: tuple[PageHeader, ...]
    present: int


class RmapLook(NamedTuple):
    """The reverse map of a gfn: the sptes that map it.

    Attributes
    ----------
    gfn, level : int
    sptes : tuple of (sptep, spte, PageHeader)
    tracked : int
        Number of upper-level shadow pages that forbid writes to the gfn.
    """

    gfn: int
    level: int
    sptes: tuple[tuple[int, int, PageHeader | None], ...]
    tracked: int


class SpteChange(NamedTuple):
    """A shadow entry that is not what it was.

    Attributes
    ----------
    sptep, old, new : int
    page : PageHeader or None
        The page it lies in; None for a special root.
    """

    sptep: int
    old: int
    new: int
    page: PageHeader | None


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be seen at a moment.

    Attributes
    ----------
    moment : Moment
    number : int
        Its place among the recording's moments.
    op : Op
    outcome : Outcome
        How the op will have ended.
    verdict : str or None
        What is wrong with the outcome.
    event : Event or None
    registers : Registers
    address : int or None
        The guest-virtual address that the moment is about.
    guest : GuestWalk or None
        What the guest's tables say of it; None for L2, or without an address.
    path_address : int or None
        The address that the host's tables are walked for: guest-physical with
        two-dimensional paging.
    path : tuple of ShadowStep
    page : PageLook or None
    rmap : RmapLook or None
    changes : tuple of SpteChange
        Since the moment before.
    stats, counts : dict of str to int
        KVM's statistics; lengths of its lists.
    """

    moment: Moment
    number: int
    op: Op
    outcome: Outcome
    verdict: str | None
    event: Event | None
    registers: Registers
    address: int | None
    guest: GuestWalk | None
    path_address: int | None
    path: tuple[ShadowStep, ...]
    page: PageLook | None
    rmap: RmapLook | None
    changes: tuple[SpteChange, ...]
    stats: dict[str, int]
    counts: dict[str, int]


class TableCopy:
    """The shadow tables of a machine, copied, to be compared with what they are later."""

    def __init__(self, machine: Machine) -> None:
        self._top, freed = machine.memory.pool()
        self._freed = dict.fromkeys(freed)
        self._frames: npt.NDArray[np.uint64] = machine.memory.frames[: self._top].copy()

    def _was(self, frame: int, index: int, empty: int) -> int:
        """Return an entry as it was; `empty` in a frame that was no table."""
        if frame >= self._top or frame in self._freed:
            return empty
        return int(self._frames[frame, index])

    def changes(self, machine: Machine) -> tuple[SpteChange, ...]:
        """Return the entries of today's tables that are not what they were, by address."""
        top, freed = machine.memory.pool()
        free = dict.fromkeys(freed)
        common = min(top, self._top)
        frames = machine.memory.frames
        touched = np.flatnonzero((frames[:common] != self._frames[:common]).any(axis=1)).tolist()
        # A frame that was freed and handed out again holds empty entries, whatever it held before.
        touched += [frame for frame in range(common, top) if frames[frame].any()]
        changes = []
        for frame in touched:
            if frame in free:
                continue
            page = machine.kvm.pages.get(frame)
            header = None if page is None else page_header(page)
            empty = 0 if page is None else machine.kvm.fmt.nonpresent
            for index, new in enumerate(frames[frame].tolist()):
                old = self._was(frame, index, empty)
                if new != old:
                    changes.append(SpteChange(frame << 12 | index << 3, old, new, header))
        return tuple(changes)


def take(recording: Recording, moment: Moment, *, address: int | None = None) -> Look:
    """Look at a moment, and compare it with the one before.

    Parameters
    ----------
    recording : Recording
    moment : Moment
    address : int, optional
        Guest-virtual address to follow instead of the one that the moment is about.
    """
    number = recording.number(moment)
    before = recording.visit(recording.moment(number - 1)).machine if number else recording.begin()
    copy = TableCopy(before)
    state = recording.visit(moment)
    return look(state, copy.changes(state.machine), address=address)


def look(state: State, changes: tuple[SpteChange, ...] = (), *, address: int | None = None) -> Look:
    """Look at a state.

    Parameters
    ----------
    state : State
    changes : tuple of SpteChange
        What changed since the state that it is compared with.
    address : int, optional
        See :func:`take`.
    """
    recording, moment, machine = state.recording, state.moment, state.machine
    op, event = state.op, state.event
    vcpu = op.vcpu
    v = machine.kvm.vcpus[vcpu]
    met = events_so_far(recording, moment)
    fault = _since_exit(met)
    tdp = machine.kvm.config.tdp
    faulted = address_of(met)
    op_gva = getattr(op, "gva", None)
    gva = address if address is not None else op_gva if tdp or faulted is None else faulted
    guest = None
    if gva is not None and not v.guest_mode:
        guest = guest_walk(machine, gva, vcpu=vcpu, pfec=access_kind(op))
    path_address = gva
    if tdp:
        known = guest.gpa if guest is not None else None
        path_address = known if known is not None else faulted
    path = () if path_address is None else shadow_steps(machine, path_address, vcpu=vcpu)
    return Look(
        moment=moment,
        number=recording.number(moment),
        op=op,
        outcome=recording.outcome(moment.op),
        verdict=recording.verdicts.get(moment.op),
        event=event,
        registers=_registers(machine, vcpu),
        address=gva,
        guest=guest,
        path_address=path_address,
        path=path,
        page=_page_look(machine, _focus(machine, fault, path)),
        rmap=_rmap_look(machine, fault, guest, path, as_id=v.smm),
        changes=changes,
        stats=machine.stats,
        counts=_counts(machine),
    )


def events_so_far(recording: Recording, moment: Moment) -> list[Event]:
    """Return the events of the moment's op up to it, the last one first."""
    end = int(recording.ends[moment.op]) - 1 if moment.event is None else moment.event
    return [recording.events[at] for at in range(end, recording.first_event(moment.op) - 1, -1)]


def _since_exit(met: list[Event]) -> list[Event]:
    """Return those since the processor last left the guest."""
    ends = [at for at, event in enumerate(met) if isinstance(event, ev.kvm_exit)]
    return met[: ends[0]] if ends else met


def address_of(met: list[Event]) -> int | None:
    """Return the address that the last event with one is about, None if there is none."""
    for event in met:
        for kind, field in _ADDRESSES.items():
            if isinstance(event, kind):
                value: int | None = getattr(event, field)
                if value is not None:
                    return value
    return None


_ADDRESSES = {
    ev.kvm_mmu_pagetable_walk: "addr",
    ev.kvm_page_fault: "fault_address",
    ev.kvm_exit: "address",
    ev.kvm_mmu_invlpg: "gva",
}


def _registers(machine: Machine, vcpu: int) -> Registers:
    v = machine.kvm.vcpus[vcpu]
    mmu = v.mmu
    kept = tuple((pgd, hpa) for pgd, hpa in mmu.prev_roots if hpa != -1)
    return Registers(
        v.cr0,
        v.cr3,
        v.cr4,
        v.efer,
        v.cpl,
        v.guest_mode,
        mmu.kind,
        mmu.root_hpa,
        mmu.root_pgd,
        mmu.root_role,
        kept,
    )


def _header(machine: Machine, frame: int) -> PageHeader | None:
    page = machine.kvm.pages.get(frame)
    return None if page is None else page_header(page)


def _focus(machine: Machine, met: list[Event], path: tuple[ShadowStep, ...]) -> int | None:
    """Return the frame of the page that the moment is about: of the last event that names one."""
    kvm = machine.kvm
    for event in met:
        if isinstance(event, PAGE_EVENTS):
            frames = [f for f in kvm.page_hash.get(event.gfn, ()) if kvm.pages[f].role == event.role]
            frames += [step.frame for step in path if step.page and step.page[1:3] == (event.gfn, event.role)]
            if frames:
                return int(frames[0])
        if isinstance(event, SPTE_EVENTS) and event.sptep >> 12 in kvm.pages:
            return int(event.sptep >> 12)
    return next((step.frame for step in reversed(path) if step.page is not None), None)


def _page_look(machine: Machine, frame: int | None) -> PageLook | None:
    if frame is None:
        return None
    kvm = machine.kvm
    page = kvm.pages[frame]
    parents = tuple(Parent(p, _header(machine, p >> 12)) for p in pte_list_iter(page.parent_ptes))
    others = tuple(page_header(kvm.pages[f]) for f in kvm.page_hash.get(page.gfn, ()) if f != frame)
    words = machine.memory.frames[frame].tolist()
    present = sum(is_shadow_present_pte(spte) or is_mmio_spte(kvm.fmt, spte) for spte in words)
    return PageLook(page_header(page), parents, others, present)


def _rmap_look(
    machine: Machine, met: list[Event], guest: GuestWalk | None, path: tuple[ShadowStep, ...], *, as_id: int
) -> RmapLook | None:
    """Return the reverse map of the page that was last mapped or asked for, else of the translation."""
    gfn, level = None, 1
    for event in met:
        if isinstance(event, (ev.kvm_mmu_set_spte, ev.kvm_mmu_spte_requested)):
            gfn, level = event.gfn, event.level
            break
    if gfn is None and guest is not None and guest.gpa is not None:
        gfn = guest.gpa >> 12
        level = path[-1].level if path and path[-1].last else 1
    if gfn is None:
        return None
    slot = machine.kvm.slots[as_id].lookup(gfn)
    if slot is None:
        return None
    words = machine.memory.words
    spteps = pte_list_iter(gfn_to_rmap(slot, gfn, level) or [])
    sptes = tuple((p, words[p >> 3], _header(machine, p >> 12)) for p in spteps)
    return RmapLook(gfn, level, sptes, slot.gfn_track.get(gfn, 0))


def _counts(machine: Machine) -> dict[str, int]:
    kvm = machine.kvm
    return {
        "shadow pages in use": kvm.n_used_mmu_pages,
        "shadow pages allowed": kvm.n_max_mmu_pages,
        "indirect shadow pages": kvm.indirect_shadow_pages,
        "active list": len(kvm.active_mmu_pages),
        "MMU generation": kvm.mmu_valid_gen,
    }
