"""A kernel's raw events as the events of recordings.

A host-physical address becomes what a recording has in its place
(:mod:`mmulab.conform.values`): the page of the guest's backing, or that it is a
shadow page.

Source: Linux 6.1 and 6.12 ``arch/x86/kvm/trace.h``, ``mmu/mmutrace.h``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmulab import events as ev
from mmulab.conform.values import FRAME_HOST, FRAME_SP, PFN_NOSLOT
from mmulab.errors import InputError
from mmulab.kvm.event_words import EVENTS_6_1, EventWords
from mmulab.kvm.kernels import KERNELS
from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK
from mmulab.record.exits import EXITS
from mmulab.record.ring import EventFormat, in_order
from mmulab.x86.mode import PT_PAGE_SIZE_MASK

__all__ = ["RawReader", "event_words"]

_RW = {0: "unsatisfied-read", 1: "read", 2: "write"}
_SATISFIED = re.compile(r"REC->ret == (\d+), REC->ret == (\d+)")
_PFN_ERROR = 1 << 52
"""A ``kvm_pfn_t`` from here on is no frame but says why there is none (``KVM_PFN_ERR_*``)."""
_EMPTY = (0, 1 << 63)
"""Empty entries: 6.1's, and 6.12's ``SHADOW_NONPRESENT_VALUE``."""


def event_words(formats: Iterable[EventFormat]) -> EventWords:
    """Return the numbers that a kernel gives ``RET_PF_*``.

    A kernel of one's own may have no release that is known; how it prints ``fast_page_fault``
    compares the result with SPURIOUS and FIXED, and so says their numbers.

    Raises
    ------
    InputError
        They are those of no known kernel.
    """
    for layout in formats:
        if layout.name == "fast_page_fault" and (found := _SATISFIED.search(layout.printed)):
            numbers = (int(found[1]), int(found[2]))
            for words in (kernel.events for kernel in KERNELS.values()):
                if (words.ret_pf.index("SPURIOUS"), words.ret_pf.index("FIXED")) == numbers:
                    return words
            raise InputError(
                f"this kernel numbers RET_PF_SPURIOUS and RET_PF_FIXED {numbers}; no known one does"
            )
    raise InputError("this kernel has no tracepoint fast_page_fault; 5.13 was the first one with it")


class RawReader:
    """Reads the trace of one scenario.

    Parameters
    ----------
    vendor : {"amd", "intel"}
    formats : mapping of int to EventFormat
        By ID.
    words : EventWords
        The kernel's own numbers.
    phys_bits : int
        Of the host's processor: which bits of an spte are a frame.
    """

    def __init__(
        self, vendor: str, formats: Mapping[int, EventFormat], words: EventWords, phys_bits: int
    ) -> None:
        self.exits = EXITS[vendor]
        self.formats = formats
        self.words = words
        self.frame_mask = (1 << phys_bits) - 1 & ~0xFFF
        self.frames: dict[int, int] = {}
        self.unknown: set[int] = set()
        self._injected = False

    def add_frames(self, frames: Iterable[int]) -> None:
        """Say which host frames are the pages of the guest's backing, in order; earlier ones stay known."""
        for page, frame in enumerate(frames):
            self.frames.setdefault(frame, page)

    def frames_now(self, before: Iterable[int], after: Iterable[int]) -> None:
        """Say where the backing lies before and after the next op: of frames, later ones are what counts.

        No frame is given up and taken again in one op, so an op's events mean either.
        """
        for frames in (before, after):
            self.frames |= {frame: page for page, frame in enumerate(frames) if frame}

    def events(self, pages: Iterable[bytes]) -> Iterator[ev.Event]:
        """Yield the events of pages of the trace, in canonical form.

        Raises
        ------
        InputError
            The kernel dropped events, or there is one that nobody asked for.
        """
        for data in in_order(pages):
            number = int.from_bytes(data[:2], "little")
            if number not in self.formats:
                raise InputError(f"the trace has an event of the unknown ID {number}")
            layout = self.formats[number]
            raw = layout.decode(data)
            if self._is_seen(layout.name, raw):
                yield self._event(layout.name, raw)

    def _is_seen(self, name: str, raw: dict[str, Any]) -> bool:
        """Whether a recording has an event: what host interrupts cause is left out.

        An exception that such an exit interrupted is put in once more, with no exit of the guest's
        own since the last time.
        """
        if name == "kvm_exit":
            if self.exits.is_hosts(raw["exit_reason"]):
                return False
            self._injected = False
        if name == "kvm_inj_exception":
            again = self._injected and bool(raw.get("reinjected"))
            self._injected = True
            return not again
        if name == "kvm_nested_vmexit":
            return not self.exits.is_hosts(raw["exit_reason"])
        return not (name == "drop_spte" and raw["old_spte"] in _EMPTY)

    def _event(self, name: str, raw: dict[str, Any]) -> ev.Event:
        if name in _MAKERS:
            return _MAKERS[name](self, raw)
        kind: Any = ev.EVENT_TYPES[name]
        event: ev.Event = kind(**{field: raw[field] for field in kind._fields})
        return event

    def _spte(self, spte: int, level: int = 1, leaf: bool = True) -> int:
        """Return an spte with its frame, if it is present, replaced."""
        if not spte & SPTE_MMU_PRESENT_MASK:
            return spte
        frame = (spte & self.frame_mask) >> 12
        is_leaf = leaf or level == 1 or bool(spte & PT_PAGE_SIZE_MASK)
        return spte & ~self.frame_mask | (self._frame(frame) if is_leaf else FRAME_SP) << 12

    def _frame(self, frame: int) -> int:
        if frame not in self.frames:
            self.unknown.add(frame)
        return self.frames.get(frame, FRAME_HOST)

    def _set_spte(self, raw: dict[str, Any]) -> ev.Event:
        return ev.kvm_mmu_set_spte(
            raw["gfn"],
            self._spte(raw["spte"]),
            raw["level"],
            raw["sptep"] & 0xFFF,
            bool(raw["r"]),
            bool(raw["x"]),
            raw["u"],
        )

    def _requested(self, raw: dict[str, Any]) -> ev.Event:
        pfn = PFN_NOSLOT if raw["pfn"] >= _PFN_ERROR else self._frame(raw["pfn"])
        return ev.kvm_mmu_spte_requested(raw["gfn"], pfn, raw["level"])

    def _tdp_spte(self, raw: dict[str, Any]) -> ev.Event:
        level = raw["level"]
        old, new = (self._spte(raw[key], level, leaf=False) for key in ("old_spte", "new_spte"))
        return ev.kvm_tdp_mmu_spte_changed(raw["as_id"], raw["gfn"], level, old, new)

    def _split(self, raw: dict[str, Any]) -> ev.Event:
        spte = self._spte(raw["spte"], raw["level"], leaf=False)
        return ev.kvm_mmu_split_huge_page(raw["gfn"], spte, raw["level"], raw["errno"])

    def _fast_page_fault(self, raw: dict[str, Any]) -> ev.Event:
        """The model's vocabulary is 6.1's; a number that it lacks comes after its own."""
        name = self.words.ret_pf[raw["ret"]]
        known = EVENTS_6_1.ret_pf
        return ev.fast_page_fault(
            raw["cr2_or_gpa"],
            raw["error_code"],
            raw["sptep"] & 0xFFF,
            self._spte(raw["old_spte"]),
            self._spte(raw["new_spte"]),
            known.index(name) if name in known else len(known),
        )

    def _mark_mmio(self, raw: dict[str, Any]) -> ev.Event:
        return ev.mark_mmio_spte(raw["sptep"] & 0xFFF, raw["gfn"], raw["access"], raw["gen"])

    def _drop_spte(self, raw: dict[str, Any]) -> ev.Event:
        return ev.drop_spte(raw["sptep"] & 0xFFF, self._spte(raw["old_spte"]))

    def _exit(self, raw: dict[str, Any]) -> ev.Event:
        return self.exits.exit(raw)

    def _inj_exception(self, raw: dict[str, Any]) -> ev.Event:
        code = raw["error_code"] if raw["has_error"] else None
        return ev.kvm_inj_exception(raw["exception"], code, bool(raw.get("reinjected")))

    def _emulate_insn(self, raw: dict[str, Any]) -> ev.Event:
        code = raw["insn"][: raw["len"]].hex()
        return ev.kvm_emulate_insn(raw["rip"], raw["len"], code, bool(raw["failed"]))

    def _mmio(self, raw: dict[str, Any]) -> ev.Event:
        return ev.kvm_mmio(_RW[raw["type"]], raw["len"], raw["gpa"])

    def _nested_vmenter(self, raw: dict[str, Any]) -> ev.Event:
        return ev.kvm_nested_vmenter(
            raw["vmcb"], raw["nested_rip"], bool(raw["tdp_enabled"]), raw["guest_pgd"]
        )

    def _ring_push(self, raw: dict[str, Any]) -> ev.Event:
        return ev.kvm_dirty_ring_push(
            raw["index"], raw["dirty_index"], raw["reset_index"], raw["slot"], raw["offset"]
        )

    def _ring_reset(self, raw: dict[str, Any]) -> ev.Event:
        return ev.kvm_dirty_ring_reset(raw["index"], raw["dirty_index"], raw["reset_index"])

    def _nested_vmexit(self, raw: dict[str, Any]) -> ev.Event:
        return self.exits.nested_exit(raw)

    def _nested_vmexit_inject(self, raw: dict[str, Any]) -> ev.Event:
        return self.exits.injected(raw)


_MAKERS: dict[str, Callable[[RawReader, dict[str, Any]], ev.Event]] = {
    "kvm_mmu_set_spte": RawReader._set_spte,
    "kvm_mmu_spte_requested": RawReader._requested,
    "kvm_tdp_mmu_spte_changed": RawReader._tdp_spte,
    "kvm_mmu_split_huge_page": RawReader._split,
    "fast_page_fault": RawReader._fast_page_fault,
    "mark_mmio_spte": RawReader._mark_mmio,
    "drop_spte": RawReader._drop_spte,
    "kvm_exit": RawReader._exit,
    "kvm_inj_exception": RawReader._inj_exception,
    "kvm_emulate_insn": RawReader._emulate_insn,
    "kvm_mmio": RawReader._mmio,
    "kvm_nested_vmenter": RawReader._nested_vmenter,
    "kvm_dirty_ring_push": RawReader._ring_push,
    "kvm_dirty_ring_reset": RawReader._ring_reset,
    "kvm_nested_vmexit": RawReader._nested_vmexit,
    "kvm_nested_vmexit_inject": RawReader._nested_vmexit_inject,
}
"""Events whose fields are not simply the tracepoint's of the same names."""
