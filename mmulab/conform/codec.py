"""Events as a recording writes them, and back.

A recorded event names no host-physical address: shadow pages lie elsewhere in
every run. Both sides are therefore brought to one *canonical* form of the
types in :mod:`mmulab.events`:

* ``sptep`` is the byte offset of the entry in its table (8 times the index);
* the frame of a present spte, and a ``pfn``, is a canonical number
  (:mod:`mmulab.conform.values`).

:func:`decode_event` and :func:`encode_event` are inverse to each other on
recorded events; :func:`canonical` brings a model's event to the same form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from mmulab import events as ev
from mmulab.conform.values import (
    BOOL,
    FRAME,
    HEX,
    INDEX,
    INT,
    MMIO,
    PFERR,
    PROBE,
    RW,
    SPTE,
    FrameMap,
    Kind,
    Record,
    object_value,
    text_value,
)
from mmulab.errors import quoted
from mmulab.kvm.roles.design import DESIGNS


class _Key(NamedTuple):
    """A key of a recorded event, the event's field and the kind of its value."""

    key: str
    field: str
    kind: Kind
    optional: bool = False
    """Left out where the field has its default."""


class EventCodec:
    """How one type of event is recorded.

    Parameters
    ----------
    name : str
        The recording's name of the event.
    type : type
        The type in :mod:`mmulab.events`.
    keys : iterable of _Key
        In the order in which a recording writes them.
    """

    def __init__(self, name: str, type: type, keys: Iterable[_Key]) -> None:
        self.name = name
        self.type: Any = type
        self.keys = tuple(keys)
        self.defaults: dict[str, Any] = getattr(type, "_field_defaults", {}) | _DEFAULTS

    def decode(self, record: Record) -> ev.Event:
        """Return the event of a record."""
        values = {}
        for key, field, kind, optional in self.keys:
            if optional and key not in record:
                values[field] = self.defaults[field]
            else:
                values[field] = kind.decode(record[key])
        event: ev.Event = self.type(**values)
        return event

    def encode(self, event: ev.Event) -> Record:
        """Return the record of a canonical event."""
        record: Record = {"e": self.name}
        for key, field, kind, optional in self.keys:
            value = getattr(event, field)
            if not (optional and value == self.defaults[field]):
                record[key] = kind.encode(value)
        return record


class _RoleCodec(EventCodec):
    """Events that carry a role: the record also spells it out."""

    def encode(self, event: ev.Event) -> Record:
        record: Record = {}
        for key, value in super().encode(event).items():
            record[key] = value
            if key == "role":
                record["r"] = DESIGNS["passthrough"].facts(cast("ev.PageEvent", event).role).full_str()
        return record


class _SetSpteCodec(EventCodec):
    """``set_spte``, whose key ``p`` holds three fields."""

    def decode(self, record: Record) -> ev.Event:
        base = super().decode(record | {"r": 0, "x": 0, "u": 0})
        if not re.fullmatch("[r-][x-][u-]", text_value(record["p"])):
            raise ValueError(f"p is {quoted(record['p'])!r}, expected 'rxu' with '-' for what is not set")
        r, x, u = record["p"]
        return base._replace(r=r == "r", x=x == "x", u=int(u == "u"))

    def encode(self, event: ev.Event) -> Record:
        record = super().encode(event)
        flags = (("r", record.pop("r")), ("x", record.pop("x")), ("u", record.pop("u")))
        record["p"] = "".join(letter if on else "-" for letter, on in flags)
        return record


_DEFAULTS: dict[str, Any] = {"failed": False, "reinjected": False, "error_code": None, "as_id": 0}
_GFN = _Key("gfn", "gfn", HEX)
_PAGE = (
    _GFN,
    _Key("role", "role", HEX),
    _Key("gen", "mmu_valid_gen", INT),
    _Key("roots", "root_count", INT),
    _Key("unsync", "unsync", BOOL),
)
_RING = (
    _Key("index", "ring", INT),
    _Key("dirty_index", "dirty_index", INT),
    _Key("reset_index", "reset_index", INT),
)
_NESTED_EXIT = (
    _Key("r", "reason", INT),
    _Key("info1", "exit_info1", HEX),
    _Key("info2", "exit_info2", HEX),
    _Key("intr", "exit_int_info", HEX, True),
    _Key("err", "exit_int_info_err", HEX, True),
)


def _exit_codec(info: str, vectoring: str) -> EventCodec:
    """``kvm_exit``, whose keys carry the vendor's names for the same fields."""
    return EventCodec(
        "kvm_exit",
        ev.kvm_exit,
        (
            _Key("r", "reason", INT),
            _Key("rip", "guest_rip", HEX),
            _Key("err", "error_code", HEX, True),
            _Key("addr", "address", HEX, True),
            _Key(info, "qualification", HEX, True),
            _Key(vectoring, "idt_vectoring", HEX, True),
        ),
    )


_COMMON = (
    EventCodec("walk", ev.kvm_mmu_pagetable_walk, (_Key("addr", "addr", HEX), _Key("err", "pferr", PFERR))),
    EventCodec("pte", ev.kvm_mmu_paging_element, (_Key("v", "pte", HEX), _Key("l", "level", INT))),
    EventCodec("set_accessed", ev.kvm_mmu_set_accessed_bit, (_Key("gpa", "gpa", HEX),)),
    EventCodec("set_dirty", ev.kvm_mmu_set_dirty_bit, (_Key("gpa", "gpa", HEX),)),
    EventCodec("walk_err", ev.kvm_mmu_walker_error, (_Key("err", "pferr", PFERR),)),
    _RoleCodec("get_page", ev.kvm_mmu_get_page, (*_PAGE, _Key("created", "created", BOOL))),
    _RoleCodec("sync_page", ev.kvm_mmu_sync_page, _PAGE),
    _RoleCodec("unsync_page", ev.kvm_mmu_unsync_page, _PAGE),
    _RoleCodec("zap_page", ev.kvm_mmu_prepare_zap_page, _PAGE),
    EventCodec(
        "mark_mmio_spte",
        ev.mark_mmio_spte,
        (
            _GFN,
            _Key("acc", "access", INT),
            _Key("gen", "gen", INT),
            _Key("i", "sptep", INDEX),
        ),
    ),
    EventCodec(
        "check_mmio_spte",
        ev.check_mmio_spte,
        (
            _Key("v", "spte", HEX),
            _Key("kvm_gen", "kvm_gen", INT),
            _Key("spte_gen", "spte_gen", INT),
        ),
    ),
    EventCodec(
        "handle_mmio_page_fault",
        ev.handle_mmio_page_fault,
        (_Key("addr", "addr", HEX), _GFN, _Key("acc", "access", INT)),
    ),
    EventCodec(
        "fast_page_fault",
        ev.fast_page_fault,
        (
            _Key("addr", "cr2_or_gpa", HEX),
            _Key("err", "error_code", PFERR),
            _Key("i", "sptep", INDEX),
            _Key("old", "old_spte", SPTE),
            _Key("new", "new_spte", SPTE),
            _Key("r", "ret", INT),
        ),
    ),
    EventCodec(
        "zap_all_fast",
        ev.kvm_mmu_zap_all_fast,
        (_Key("gen", "mmu_valid_gen", INT), _Key("used", "mmu_used_pages", INT)),
    ),
    _SetSpteCodec(
        "set_spte",
        ev.kvm_mmu_set_spte,
        (
            _GFN,
            _Key("l", "level", INT),
            _Key("i", "sptep", INDEX),
            _Key("s", "spte", SPTE),
            _Key("r", "r", BOOL),
            _Key("x", "x", BOOL),
            _Key("u", "u", BOOL),
        ),
    ),
    EventCodec(
        "spte_req", ev.kvm_mmu_spte_requested, (_GFN, _Key("f", "pfn", FRAME), _Key("l", "level", INT))
    ),
    EventCodec(
        "tdp_spte",
        ev.kvm_tdp_mmu_spte_changed,
        (
            _GFN,
            _Key("l", "level", INT),
            _Key("old", "old_spte", SPTE),
            _Key("new", "new_spte", SPTE),
            _Key("as", "as_id", INT, True),
        ),
    ),
    EventCodec(
        "split_huge",
        ev.kvm_mmu_split_huge_page,
        (_GFN, _Key("s", "spte", SPTE), _Key("l", "level", INT), _Key("err", "errno", INT)),
    ),
    EventCodec(
        "kvm_page_fault",
        ev.kvm_page_fault,
        (
            _Key("addr", "fault_address", HEX),
            _Key("err", "error_code", HEX),
            _Key("rip", "guest_rip", HEX),
        ),
    ),
    EventCodec(
        "kvm_inj_exception",
        ev.kvm_inj_exception,
        (
            _Key("vec", "exception", INT),
            _Key("err", "error_code", HEX, True),
            _Key("reinj", "reinjected", BOOL, True),
        ),
    ),
    EventCodec(
        "kvm_emulate_insn",
        ev.kvm_emulate_insn,
        (
            _Key("rip", "rip", HEX),
            _Key("len", "len", INT),
            _Key("insn", "insn", INT),
            _Key("failed", "failed", BOOL, True),
        ),
    ),
    EventCodec(
        "kvm_mmio",
        ev.kvm_mmio,
        (_Key("t", "type", MMIO), _Key("len", "len", INT), _Key("gpa", "gpa", HEX)),
    ),
    EventCodec(
        "kvm_msr",
        ev.kvm_msr,
        (
            _Key("msr", "ecx", HEX),
            _Key("v", "data", HEX),
            _Key("w", "write", BOOL),
            _Key("exc", "exception", BOOL),
        ),
    ),
    EventCodec("kvm_cr", ev.kvm_cr, (_Key("cr", "cr", INT), _Key("v", "val", HEX), _Key("rw", "rw", RW))),
    EventCodec(
        "kvm_smm_transition",
        ev.kvm_smm_transition,
        (_Key("smbase", "smbase", HEX), _Key("entering", "entering", BOOL)),
    ),
    EventCodec("kvm_unmap_hva_range", ev.kvm_unmap_hva_range, ()),
    EventCodec("kvm_age_hva", ev.kvm_age_hva, ()),
    EventCodec(
        "kvm_dirty_ring_push",
        ev.kvm_dirty_ring_push,
        (*_RING, _Key("slot", "slot", INT), _Key("offset", "offset", HEX)),
    ),
    EventCodec("kvm_dirty_ring_reset", ev.kvm_dirty_ring_reset, _RING),
    EventCodec("kvm_dirty_ring_exit", ev.kvm_dirty_ring_exit, (_Key("vcpu_id", "vcpu_id", INT),)),
    EventCodec(
        "kvm_nested_vmenter",
        ev.kvm_nested_vmenter,
        (
            _Key("vmcs", "vmcb", HEX),
            _Key("rip", "nested_rip", HEX),
            _Key("ept", "tdp", BOOL),
            _Key("pgd", "nested_pgd", HEX),
        ),
    ),
    EventCodec("kvm_nested_vmenter_failed", ev.kvm_nested_vmenter_failed, (_Key("err", "err", INT),)),
    EventCodec("kvm_nested_vmexit", ev.kvm_nested_vmexit, _NESTED_EXIT),
    EventCodec("kvm_nested_vmexit_inject", ev.kvm_nested_vmexit_inject, _NESTED_EXIT),
    EventCodec("c_load", ev.kvm_mmu_load, ()),
    EventCodec("c_new_pgd", ev.kvm_mmu_new_pgd, (_Key("pgd", "new_pgd", PROBE),)),
    EventCodec("c_free_roots", ev.kvm_mmu_free_roots, (_Key("mask", "roots_to_free", PROBE),)),
    EventCodec("c_sync_roots", ev.kvm_mmu_sync_roots, ()),
    EventCodec("c_sync_prev_roots", ev.kvm_mmu_sync_prev_roots, ()),
    EventCodec("c_invlpg", ev.kvm_mmu_invlpg, (_Key("gva", "gva", PROBE),)),
    EventCodec("c_unprotect", ev.kvm_mmu_unprotect_page, (_Key("gfn", "gfn", PROBE),)),
    EventCodec(
        "c_pte_write", ev.kvm_mmu_pte_write, (_Key("gpa", "gpa", PROBE), _Key("bytes", "bytes", PROBE))
    ),
    EventCodec("c_reset_context", ev.kvm_mmu_reset_context, ()),
    EventCodec("c_flush", ev.kvm_flush_remote_tlbs, ()),
    EventCodec(
        "c_flush_range",
        ev.kvm_flush_remote_tlbs_with_address,
        (_Key("gfn", "start_gfn", PROBE), _Key("n", "pages", PROBE)),
    ),
    EventCodec("c_drop_spte", ev.drop_spte, (_Key("i", "sptep", INDEX), _Key("s", "old_spte", SPTE))),
)

_EXIT = {"amd": _exit_codec("info1", "vectoring"), "intel": _exit_codec("qual", "idtv")}
_BY_NAME = {vendor: {c.name: c for c in (*_COMMON, exit)} for vendor, exit in _EXIT.items()}
_BY_TYPE = {vendor: {c.type: c for c in (*_COMMON, exit)} for vendor, exit in _EXIT.items()}

EVENT_NAMES = {codec.name: codec.type for codec in _BY_NAME["amd"].values()}
"""Recorded name of each event, and its type."""


def decode_event(record: Record, vendor: str) -> ev.Event:
    """Return a recorded event in canonical form.

    Parameters
    ----------
    record : dict
        One element of an op's ``ev``.
    vendor : {"amd", "intel"}
        Names some keys of ``kvm_exit``.

    Raises
    ------
    KeyError, ValueError, TypeError
        An unknown event, a missing key or a value of the wrong form.
    """
    name = text_value(object_value(record)["e"])
    if name not in _BY_NAME[vendor]:
        raise ValueError(f"unknown event {quoted(name)!r}")
    return _BY_NAME[vendor][name].decode(record)


def encode_event(event: ev.Event, vendor: str) -> Record:
    """Return the record of a canonical event."""
    return _BY_TYPE[vendor][type(event)].encode(event)


def canonical(event: ev.Event, frames: FrameMap) -> ev.Event:
    """Bring a model's event to the form of a decoded recorded one."""
    if isinstance(event, ev.kvm_mmu_set_spte):
        return event._replace(spte=frames.spte(event.spte), sptep=event.sptep & 0xFFF, u=int(event.u > 0))
    if isinstance(event, ev.kvm_tdp_mmu_spte_changed):
        return event._replace(old_spte=frames.spte(event.old_spte), new_spte=frames.spte(event.new_spte))
    if isinstance(event, ev.drop_spte):
        return event._replace(sptep=event.sptep & 0xFFF, old_spte=frames.spte(event.old_spte))
    if isinstance(event, ev.kvm_mmu_spte_requested):
        return event._replace(pfn=frames.pfn(event.pfn))
    if isinstance(event, ev.mark_mmio_spte):
        return event._replace(sptep=event.sptep & 0xFFF)
    if isinstance(event, ev.kvm_mmu_split_huge_page):
        return event._replace(spte=frames.spte(event.spte))
    if isinstance(event, ev.fast_page_fault):
        return event._replace(
            # A recording cannot tell a null pointer from the first entry of a table.
            sptep=max(event.sptep, 0) & 0xFFF,
            old_spte=frames.spte(event.old_spte),
            new_spte=frames.spte(event.new_spte),
        )
    return event
