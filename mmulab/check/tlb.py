"""The adversary: a TLB for each vCPU that keeps whatever it was not obliged to forget.

The processor may cache, whenever it runs a guest, any translation that the tables at
its root hold with A set, and use it until KVM has it flushed. So what the tables held
while a vCPU could reach them, and hold no more, is *kept* by that vCPU: by each root
that it ran with, until a flush that covers the root. Kept tables are walked on: an
upper-level entry may be cached too (SDM 3, 4.10.3; APM 2, 5.5.2).

What is kept must do no harm once the op that changed the tables has ended, unless a
flush is pending, which comes before the vCPU runs again. What must not be is in
:class:`Harm`. A translation that only the guest's own tables took back may be kept:
whether the guest had its processor forget it is the oracle's to say
(:mod:`mmulab.check.oracle`).

Not looked at: INVLPG, which here flushes nothing; tables made and freed between two
entries of one op; entries of the four PDPTE registers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from mmulab import events as ev
from mmulab.check.finding import Finding, FindingKind
from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled
from mmulab.kvm.invariants.leaves import clean_pages
from mmulab.kvm.invariants.snapshot import Changed, Snapshot, Table
from mmulab.kvm.invariants.survey import tables_at
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT, KVM_PAGES_PER_HPAGE
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.roots import root_pages
from mmulab.kvm.spte import (
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
    is_shadow_present_pte,
    is_writable_pte,
    spte_ad_enabled,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, Request, Vcpu, is_obsolete_sp, to_shadow_page
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VPID
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op
from mmulab.memory.host import FRAME_BYTES, FRAME_WORDS
from mmulab.scenario.runner import Result
from mmulab.x86.mode import PT_WRITABLE_MASK, VMX_EPT_RWX_MASK

_INVALIDATES = (ops.InvalidateHva, ops.Protect, ops.SwapOut, ops.Collapse)
Tag = tuple[int, int]
"""What the hardware tells translations apart by: world and root, as far as it does."""


class Harm(StrEnum):
    """What a kept translation must not do."""

    FREED_TABLE = "FREED_TABLE"
    """Lead through a table that is freed: what lies there now may be anything."""
    GONE = "GONE"
    """Lead to a frame that the memslots do not show at its gfn any more."""
    TAKEN = "TAKEN"
    """Lead to a frame that the host has invalidated."""
    WRITABLE_TABLE = "WRITABLE_TABLE"
    """Let a guest's table be written that KVM takes for protected."""
    CLEAN = "CLEAN"
    """Let a page be written that is logged and counts as clean."""


class Kept(NamedTuple):
    """A translation that memory holds no more. `gfn` is None if its page could not tell it."""

    sp: ShadowPage
    entry: int
    spte: int
    gfn: int | None

    @property
    def frames(self) -> range:
        """The frames that it leads to."""
        first = spte_to_pfn(self.spte)
        return range(first, first + KVM_PAGES_PER_HPAGE[self.sp.level])


@dataclass(slots=True)
class _Root:
    """What a processor may hold by one root.

    Attributes
    ----------
    reach : dict of int to ShadowPage
        Tables that it could walk since the last flush, by frame.
    kept : dict of (int, int, int) to Kept
        By frame of the table, index and value.
    freed : list of ShadowPage
        Tables of `reach` that were freed.
    walked : tuple
        For which state of the tables `reach` is complete.
    """

    reach: dict[int, ShadowPage] = field(default_factory=dict)
    kept: dict[tuple[int, int, int], Kept] = field(default_factory=dict)
    freed: list[ShadowPage] = field(default_factory=list)
    walked: tuple[int, ...] = ()


class Adversary:
    """Follows the tables and flushes of one machine, and says what a kept translation could do.

    It takes :attr:`~mmulab.kvm.state.Kvm.tlb_sink`.

    Parameters
    ----------
    machine : Machine
        Not kept alive.
    """

    def __init__(self, machine: Machine) -> None:
        kvm = machine.kvm
        self._machine = weakref.ref(machine)
        self._snapshot = Snapshot()
        self._children: dict[int, list[int]] = {}
        self._gfns: dict[int, dict[int, int]] = {}
        self._version = 0
        self._tlbs: list[dict[Tag, _Root]] = [{} for _ in kvm.vcpus]
        self._harm: tuple[Harm, str] | None = None
        self._look(kvm)
        kvm.tlb_sink = _sink_of(weakref.ref(self))

    def after(self, result: Result) -> Finding | None:
        """Return the first harm that a kept translation can do after the op, or None."""
        machine = self._machine()
        assert machine is not None
        kvm = machine.kvm
        self._look(kvm)
        found, self._harm = self._harm, None
        if found is None and not isinstance(result.op, ops.Teardown):
            taken = _taken_by(machine, result)
            found = next((harm for vcpu in kvm.vcpus for harm in self._harms(kvm, vcpu, taken)), None)
        if found is None:
            return None
        return Finding(FindingKind.STALE, found[0], result.index, result.text, found[1])

    def kept(self, vcpu: int) -> list[Kept]:
        """Return the translations that a vCPU keeps and memory holds no more."""
        return [kept for root in self._tlbs[vcpu].values() for kept in root.kept.values()]

    # What the model tells ------------------------------------------------------------

    def flushed(self, vcpu: Vcpu, request: int) -> None:
        """Forget what a flush covers; request 0: the guest is entered."""
        self._look(vcpu.kvm)
        tlb = self._tlbs[vcpu.id]
        if request == 0:
            if self._harm is None:
                self._harm = next(self._harms(vcpu.kvm, vcpu, range(0)), None)
            self._walk(vcpu)
        elif request == Request.TLB_FLUSH:
            tlb.clear()
        else:
            for tag in [tag for tag in tlb if _covers(vcpu, request, tag)]:
                del tlb[tag]

    def _walk(self, vcpu: Vcpu) -> None:
        """Add the tables below the root in use to what the vCPU reaches."""
        roots = [sp.frame for sp in root_pages(vcpu.kvm, vcpu.mmu)]
        root = self._tlbs[vcpu.id].setdefault(_tag(vcpu, vcpu.mmu.root_hpa), _Root())
        walked = (self._version, *roots)
        if root.walked == walked:
            return
        root.walked = walked
        todo, pages, reach = roots, vcpu.kvm.pages, root.reach
        seen: set[int] = set()
        while todo:
            frame = todo.pop()
            sp = pages.get(frame)
            if sp is None or frame in seen:
                continue
            seen.add(frame)
            reach[frame] = sp
            todo += self._children.get(frame, ())

    # What changes ----------------------------------------------------------------------

    def _look(self, kvm: Kvm) -> None:
        """Note what the tables hold no more with each vCPU that could reach it."""
        for change in self._snapshot.look(kvm):
            sp = change.sp
            if change.old is not None:
                self._keep(kvm, change)
            if change.new is None:
                self._children.pop(sp.frame, None)
                self._gfns.pop(sp.frame, None)
                self._version += 1
                continue
            if sp.has_gptes:
                self._gfns[sp.frame] = dict(sp.shadowed_translation)
            if sp.level > 1:
                children = _children(sp, change.new)
                if self._children.get(sp.frame) != children:
                    self._children[sp.frame] = children
                    self._version += 1

    def _keep(self, kvm: Kvm, change: Changed) -> None:
        sp = change.sp
        holders = [root for tlb in self._tlbs for root in tlb.values() if root.reach.get(sp.frame) is sp]
        if not holders:
            return
        entries = [
            Kept(sp, index, old, self._gfn(sp, index))
            for index, old, _ in change.words(kvm.fmt.nonpresent)
            if _may_be_cached(kvm, sp, old)
        ]
        for root in holders:
            root.kept.update({(sp.frame, kept.entry, kept.spte): kept for kept in entries})
            if change.new is None:
                root.freed.append(sp)

    def _gfn(self, sp: ShadowPage, index: int) -> int | None:
        if sp.passthrough:
            return sp.gfn
        if not sp.has_gptes:
            return sp.gfn + (index << KVM_HPAGE_GFN_SHIFT[sp.level])
        known = self._gfns.get(sp.frame, {}).get(index)
        return None if known is None else known >> 12

    # What must not be ----------------------------------------------------------------------

    def _harms(self, kvm: Kvm, vcpu: Vcpu, taken: range) -> Iterator[tuple[Harm, str]]:
        """Yield what a vCPU that runs on without a flush could do."""
        for tag, root in self._tlbs[vcpu.id].items():
            if not (root.kept or root.freed) or _is_covered(vcpu, tag):
                continue
            for sp in root.freed:
                yield Harm.FREED_TABLE, f"vCPU {vcpu.id} may still walk {sp!r}, which is freed"
            for key, kept in list(root.kept.items()):
                if _still_holds(kvm, kept):
                    del root.kept[key]
                    continue
                for harm in _harms_of(kvm, kept, taken):
                    yield harm, _say(vcpu, kept, harm)


def _sink_of(watcher: weakref.ref[Adversary]) -> Callable[[Vcpu, int], None]:
    """Return what tells a watcher of flushes, as long as it is there."""

    def sink(vcpu: Vcpu, request: int) -> None:
        adversary = watcher()
        if adversary is not None:
            adversary.flushed(vcpu, request)

    return sink


def _children(sp: ShadowPage, table: Table) -> list[int]:
    """Return the frames that a table of an upper level points to."""
    present = table[(table & np.uint64(SPTE_MMU_PRESENT_MASK)) != 0].tolist()
    return [spte_to_pfn(spte) for spte in present if not is_last_spte(spte, sp.level)]


def _may_be_cached(kvm: Kvm, sp: ShadowPage, spte: int) -> bool:
    """Whether a leaf was in use: the processor caches no translation without setting A."""
    if not is_shadow_present_pte(spte) or not is_last_spte(spte, sp.level):
        return False
    fmt = kvm.fmt
    if fmt.accessed and spte_ad_enabled(spte):
        return spte & fmt.accessed != 0
    return not fmt.acc_track or spte & VMX_EPT_RWX_MASK != 0


def _may_be_written(kvm: Kvm, spte: int) -> bool:
    """Whether a cached leaf lets a write through at once: else D is to be set, in memory, first."""
    if not is_writable_pte(spte):
        return False
    return not kvm.fmt.dirty or not spte_ad_enabled(spte) or spte & kvm.fmt.dirty != 0


def _still_holds(kvm: Kvm, kept: Kept) -> bool:
    """Whether memory says again what is kept, or allows more."""
    sp = kept.sp
    if kvm.pages.get(sp.frame) is not sp:
        return False
    now, was = kvm.memory.words[sp.frame * FRAME_WORDS + kept.entry], kept.spte
    maps = is_shadow_present_pte(now) and is_last_spte(now, sp.level) and spte_to_pfn(now) == spte_to_pfn(was)
    return maps and not was & ~now & PT_WRITABLE_MASK


# Tags -------------------------------------------------------------------------------------


def _tag(vcpu: Vcpu, root_hpa: int) -> Tag:
    """Return what tags a translation made now.

    With EPT the pointer does; without it the VPID, of which KVM has a second one for an L2 to
    which L1 gives one. AMD's ASID is the same for L1 and L2.

    Source: Linux 6.1 ``vmx/vmx.c`` (``vmx_get_current_vpid``), ``svm/nested.c``
    (``nested_vmcb02_prepare_control``).
    """
    if vcpu.kvm.config.vendor == "amd":
        return 0, 0
    if vcpu.kvm.config.tdp:
        return 0, root_hpa
    return int(vcpu.guest_mode and vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID)), 0


def _covers(vcpu: Vcpu, request: int, tag: Tag) -> bool:
    """Whether a flush of the current context, or for the guest, forgets what has a tag.

    INVVPID leaves what is tagged by an EPT pointer, which has no guest address in it.
    """
    if request == Request.TLB_FLUSH_GUEST and vcpu.kvm.config.vendor == "intel" and vcpu.kvm.config.tdp:
        return False
    return vcpu.mmu.root_hpa != INVALID_PAGE and tag == _tag(vcpu, vcpu.mmu.root_hpa)


def _is_covered(vcpu: Vcpu, tag: Tag) -> bool:
    """Whether a flush comes before a tag is used again: it is asked for, or a root is to be loaded."""
    requests = vcpu.requests
    if requests & Request.TLB_FLUSH:
        return True
    if vcpu.kvm.config.vendor == "intel" and vcpu.kvm.config.tdp:
        if not any(tag[1] == hpa and _is_usable(vcpu, hpa) for hpa in _roots(vcpu)):
            return True
    elif not _is_usable(vcpu, vcpu.mmu.root_hpa):
        return True
    asked = [bit for bit in (Request.TLB_FLUSH_CURRENT, Request.TLB_FLUSH_GUEST) if requests & bit]
    return any(_covers(vcpu, bit, tag) for bit in asked)


def _roots(vcpu: Vcpu) -> Iterator[int]:
    for mmu in (vcpu.root_mmu, vcpu.guest_mmu):
        yield mmu.root_hpa
        yield from (hpa for _, hpa in mmu.prev_roots)


def _is_usable(vcpu: Vcpu, root_hpa: int) -> bool:
    """Whether the vCPU may run on with a root; else it loads one, which flushes (``kvm_mmu_load``)."""
    if root_hpa == INVALID_PAGE or not vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS:
        return root_hpa != INVALID_PAGE
    sp = to_shadow_page(vcpu.kvm, root_hpa)
    return sp is not None and not is_obsolete_sp(vcpu.kvm, sp)


# Harms ------------------------------------------------------------------------------------


def _harms_of(kvm: Kvm, kept: Kept, taken: range) -> Iterator[Harm]:
    gfn, frames = kept.gfn, kept.frames
    if taken and frames.start < taken.stop and taken.start < frames.stop:
        yield Harm.TAKEN
    if gfn is None:
        return
    slot = kvm.slots[kept.sp.smm].lookup(gfn)
    if slot is None or slot.frame(gfn) != frames.start:
        yield Harm.GONE
    elif _may_be_written(kvm, kept.spte):
        pages = len(frames)
        if pages == 1:
            tables = list(tables_at(kvm, gfn))
        else:
            at = [at for at in kvm.page_hash if 0 <= at - gfn < pages]
            tables = [table for gfn_ in at for table in tables_at(kvm, gfn_)]
        if any(table.smm == kept.sp.smm and not table.unsync for table in tables):
            yield Harm.WRITABLE_TABLE
        if kvm_slot_dirty_track_enabled(slot) and clean_pages(kvm, slot, gfn, pages):
            yield Harm.CLEAN


def _say(vcpu: Vcpu, kept: Kept, harm: Harm) -> str:
    what = {
        Harm.GONE: "which the memslots do not show there",
        Harm.TAKEN: "which the host has invalidated",
        Harm.WRITABLE_TABLE: "and writes a table in sync",
        Harm.CLEAN: "and writes what counts as clean",
    }[harm]
    where = "" if kept.gfn is None else f" from gfn {kept.gfn:#x}"
    leads = f"it leads{where} to frame {kept.frames.start:#x}, {what}"
    return f"vCPU {vcpu.id} may keep {kept.spte:#x} of {kept.sp!r}: {leads}"


def _taken_by(machine: Machine, result: Result) -> range:
    """Return the frames that an op of the host has invalidated."""
    op: Op = result.op
    if not isinstance(op, _INVALIDATES):
        return range(0)
    if not any(isinstance(event, ev.kvm_unmap_hva_range) for event in result.events):
        return range(0)
    first = machine.memory.backing + (op.gpa >> 12)
    return range(first, first + -(-op.length // FRAME_BYTES))
