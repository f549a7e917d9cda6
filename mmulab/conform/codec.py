"""Events as a recording writes them, and back.

A recorded event names no host-physical address: shadow pages lie elsewhere in
every run. Both sides are therefore brought to one *canonical* form of the
types in :mod:`mmulab.events`:

* ``sptep`` is the byte offset of the entry in its table (8 times the index);
* the frame of a present spte, and a ``pfn``, is the page number in the guest's
  backing, or :data:`FRAME_SP` for a table, or :data:`FRAME_HOST` for any other
  host frame;
* a ``pfn`` of a gfn in no memslot is :data:`PFN_NOSLOT`.

:func:`decode_event` and :func:`encode_event` are inverse to each other on
recorded events; :func:`canonical` brings a model's event to the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mmulab import events as ev
from mmulab.kvm.design import DESIGNS
from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

FRAME_SP = (1 << 40) - 1
"""Canonical frame number of a shadow page (recorded ``sp``)."""
FRAME_HOST = (1 << 40) - 2
"""Canonical frame number of a host frame outside backing and tables (recorded ``host``)."""
PFN_NOSLOT = 1 << 63
"""``KVM_PFN_NOSLOT`` (Linux 6.1 ``include/linux/kvm_host.h``), recorded ``noslot``."""

Record = dict[str, Any]
"""A JSON object as a recording holds it."""

_FRAME_NAMES = {FRAME_SP: "sp", FRAME_HOST: "host", PFN_NOSLOT: "noslot"}
_FRAME_NUMBERS = {name: number for number, name in _FRAME_NAMES.items()}
_PFERR_LETTERS = (
    (PFERR_PRESENT_MASK, "P"),
    (PFERR_WRITE_MASK, "W"),
    (PFERR_USER_MASK, "U"),
    (PFERR_RSVD_MASK, "R"),
    (PFERR_FETCH_MASK, "F"),
)
_PFERR_LOW = sum(mask for mask, _ in _PFERR_LETTERS)
_MMIO_TYPES = {"read": "read", "write": "write", "unsat_read": "unsatisfied-read"}
_MMIO_NAMES = {name: recorded for recorded, name in _MMIO_TYPES.items()}
_PROBE_DIGIT = 10
"""Below it the recordings write an argument of a function probe as a JSON number."""


def frame_str(frame: int) -> str:
    """Print a canonical frame number.

    >>> frame_str(0x100), frame_str(FRAME_SP)
    ('0x100', 'sp')
    """
    return _FRAME_NAMES.get(frame) or hex(frame)


def _frame(text: str) -> int:
    known = _FRAME_NUMBERS.get(text)
    return int(text, 16) if known is None else known


def pferr_letters(code: int) -> str:
    """Print an error code as recordings do: letters, then ``|hex`` of the bits above 4.

    >>> pferr_letters(0x17), pferr_letters(0x100000004)
    ('PWUF', 'U|100000000')
    """
    text = "".join(letter for mask, letter in _PFERR_LETTERS if code & mask)
    high = code & ~_PFERR_LOW
    return f"{text}|{high:x}" if high else text


def _pferr(text: str) -> int:
    letters, _, high = text.partition("|")
    code = int(high, 16) if high else 0
    known = {letter: mask for mask, letter in _PFERR_LETTERS}
    for letter in letters:
        code |= known[letter]
    return code


def _spte(record: Record) -> int:
    value = int(record["v"], 16)
    return value | _frame(record["f"]) << 12 if "f" in record else value


def _spte_record(spte: int) -> Record:
    if not spte & SPTE_MMU_PRESENT_MASK:
        return {"v": hex(spte)}
    frame = (spte & PT_BASE_ADDR_MASK) >> 12
    return {"v": hex(spte & ~PT_BASE_ADDR_MASK), "f": frame_str(frame)}


def _hex(text: str) -> int:
    return int(text, 16)


def _probe(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 16)


def _probe_record(value: int) -> int | str:
    return value if value < _PROBE_DIGIT else hex(value)


def _same(value: Any) -> Any:
    return value


class _Kind(NamedTuple):
    """How the value of one key is written."""

    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]


_HEX = _Kind(_hex, hex)
_INT = _Kind(_same, _same)
_BOOL = _Kind(bool, int)
_PROBE = _Kind(_probe, _probe_record)
_PFERR = _Kind(_pferr, pferr_letters)
_FRAME = _Kind(_frame, frame_str)
_SPTE = _Kind(_spte, _spte_record)
_INDEX = _Kind(lambda index: 8 * index, lambda sptep: sptep >> 3)
_MMIO = _Kind(_MMIO_TYPES.__getitem__, _MMIO_NAMES.__getitem__)
_RW = _Kind(lambda rw: rw == "w", lambda write: "w" if write else "r")


class _Key(NamedTuple):
    """A key of a recorded event, the event's field and the kind of its value."""

    key: str
    field: str
    kind: _Kind
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
        return self.type(**values)

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
                record["r"] = DESIGNS["passthrough"].facts(event.role).full_str()
        return record


class _SetSpteCodec(EventCodec):
    """``set_spte``, whose key ``p`` holds three fields."""

    def decode(self, record: Record) -> ev.Event:
        base = super().decode(record | {"r": 0, "x": 0, "u": 0})
        r, x, u = record["p"]
        return base._replace(r=r == "r", x=x == "x", u=int(u == "u"))

    def encode(self, event: ev.Event) -> Record:
        record = super().encode(event)
        flags = (("r", record.pop("r")), ("x", record.pop("x")), ("u", record.pop("u")))
        record["p"] = "".join(letter if on else "-" for letter, on in flags)
        return record


class _TdpCodec(EventCodec):
    """``tdp_spte``: recordings do not name the address space, which is 0."""

    def decode(self, record: Record) -> ev.Event:
        return super().decode(record | {"as_id": 0})

    def encode(self, event: ev.Event) -> Record:
        record = super().encode(event)
        del record["as_id"]
        return record


_DEFAULTS: dict[str, Any] = {"failed": False, "reinjected": False, "error_code": None}
_GFN = _Key("gfn", "gfn", _HEX)
_PAGE = (
    _GFN,
    _Key("role", "role", _HEX),
    _Key("gen", "mmu_valid_gen", _INT),
    _Key("roots", "root_count", _INT),
    _Key("unsync", "unsync", _BOOL),
)
_NESTED_EXIT = (
    _Key("r", "reason", _INT),
    _Key("info1", "exit_info1", _HEX),
    _Key("info2", "exit_info2", _HEX),
    _Key("intr", "exit_int_info", _HEX, True),
    _Key("err", "exit_int_info_err", _HEX, True),
)


def _exit_codec(info: str, vectoring: str) -> EventCodec:
    """``kvm_exit``, whose keys carry the vendor's names for the same fields."""
    return EventCodec(
        "kvm_exit",
        ev.kvm_exit,
        (
            _Key("r", "reason", _INT),
            _Key("rip", "guest_rip", _HEX),
            _Key("err", "error_code", _HEX, True),
            _Key("addr", "address", _HEX, True),
            _Key(info, "qualification", _HEX, True),
            _Key(vectoring, "idt_vectoring", _HEX, True),
        ),
    )


_COMMON = (
    EventCodec(
        "walk", ev.kvm_mmu_pagetable_walk, (_Key("addr", "addr", _HEX), _Key("err", "pferr", _PFERR))
    ),
    EventCodec("pte", ev.kvm_mmu_paging_element, (_Key("v", "pte", _HEX), _Key("l", "level", _INT))),
    EventCodec("set_accessed", ev.kvm_mmu_set_accessed_bit, (_Key("gpa", "gpa", _HEX),)),
    EventCodec("set_dirty", ev.kvm_mmu_set_dirty_bit, (_Key("gpa", "gpa", _HEX),)),
    EventCodec("walk_err", ev.kvm_mmu_walker_error, (_Key("err", "pferr", _PFERR),)),
    _RoleCodec("get_page", ev.kvm_mmu_get_page, (*_PAGE, _Key("created", "created", _BOOL))),
    _RoleCodec("sync_page", ev.kvm_mmu_sync_page, _PAGE),
    _RoleCodec("unsync_page", ev.kvm_mmu_unsync_page, _PAGE),
    _RoleCodec("zap_page", ev.kvm_mmu_prepare_zap_page, _PAGE),
    EventCodec(
        "mark_mmio_spte",
        ev.mark_mmio_spte,
        (
            _GFN,
            _Key("acc", "access", _INT),
            _Key("gen", "gen", _INT),
            _Key("i", "sptep", _INDEX),
        ),
    ),
    EventCodec(
        "check_mmio_spte",
        ev.check_mmio_spte,
        (
            _Key("v", "spte", _HEX),
            _Key("kvm_gen", "kvm_gen", _INT),
            _Key("spte_gen", "spte_gen", _INT),
        ),
    ),
    EventCodec(
        "handle_mmio_page_fault",
        ev.handle_mmio_page_fault,
        (_Key("addr", "addr", _HEX), _GFN, _Key("acc", "access", _INT)),
    ),
    EventCodec(
        "fast_page_fault",
        ev.fast_page_fault,
        (
            _Key("addr", "cr2_or_gpa", _HEX),
            _Key("err", "error_code", _PFERR),
            _Key("i", "sptep", _INDEX),
            _Key("old", "old_spte", _SPTE),
            _Key("new", "new_spte", _SPTE),
            _Key("r", "ret", _INT),
        ),
    ),
    EventCodec(
        "zap_all_fast",
        ev.kvm_mmu_zap_all_fast,
        (_Key("gen", "mmu_valid_gen", _INT), _Key("used", "mmu_used_pages", _INT)),
    ),
    _SetSpteCodec(
        "set_spte",
        ev.kvm_mmu_set_spte,
        (
            _GFN,
            _Key("l", "level", _INT),
            _Key("i", "sptep", _INDEX),
            _Key("s", "spte", _SPTE),
            _Key("r", "r", _BOOL),
            _Key("x", "x", _BOOL),
            _Key("u", "u", _BOOL),
        ),
    ),
    EventCodec(
        "spte_req", ev.kvm_mmu_spte_requested, (_GFN, _Key("f", "pfn", _FRAME), _Key("l", "level", _INT))
    ),
    _TdpCodec(
        "tdp_spte",
        ev.kvm_tdp_mmu_spte_changed,
        (
            _Key("as_id", "as_id", _INT),
            _GFN,
            _Key("l", "level", _INT),
            _Key("old", "old_spte", _SPTE),
            _Key("new", "new_spte", _SPTE),
        ),
    ),
    EventCodec(
        "split_huge",
        ev.kvm_mmu_split_huge_page,
        (_GFN, _Key("s", "spte", _SPTE), _Key("l", "level", _INT), _Key("err", "errno", _INT)),
    ),
    EventCodec(
        "kvm_page_fault",
        ev.kvm_page_fault,
        (
            _Key("addr", "fault_address", _HEX),
            _Key("err", "error_code", _HEX),
            _Key("rip", "guest_rip", _HEX),
        ),
    ),
    EventCodec(
        "kvm_inj_exception",
        ev.kvm_inj_exception,
        (
            _Key("vec", "exception", _INT),
            _Key("err", "error_code", _HEX, True),
            _Key("reinj", "reinjected", _BOOL, True),
        ),
    ),
    EventCodec(
        "kvm_emulate_insn",
        ev.kvm_emulate_insn,
        (
            _Key("rip", "rip", _HEX),
            _Key("len", "len", _INT),
            _Key("insn", "insn", _INT),
            _Key("failed", "failed", _BOOL, True),
        ),
    ),
    EventCodec(
        "kvm_mmio",
        ev.kvm_mmio,
        (_Key("t", "type", _MMIO), _Key("len", "len", _INT), _Key("gpa", "gpa", _HEX)),
    ),
    EventCodec(
        "kvm_msr",
        ev.kvm_msr,
        (
            _Key("msr", "ecx", _HEX),
            _Key("v", "data", _HEX),
            _Key("w", "write", _BOOL),
            _Key("exc", "exception", _BOOL),
        ),
    ),
    EventCodec("kvm_cr", ev.kvm_cr, (_Key("cr", "cr", _INT), _Key("v", "val", _HEX), _Key("rw", "rw", _RW))),
    EventCodec("kvm_unmap_hva_range", ev.kvm_unmap_hva_range, ()),
    EventCodec(
        "kvm_nested_vmenter",
        ev.kvm_nested_vmenter,
        (
            _Key("vmcs", "vmcb", _HEX),
            _Key("rip", "nested_rip", _HEX),
            _Key("ept", "tdp", _BOOL),
            _Key("pgd", "nested_pgd", _HEX),
        ),
    ),
    EventCodec("kvm_nested_vmenter_failed", ev.kvm_nested_vmenter_failed, (_Key("err", "err", _INT),)),
    EventCodec("kvm_nested_vmexit", ev.kvm_nested_vmexit, _NESTED_EXIT),
    EventCodec("kvm_nested_vmexit_inject", ev.kvm_nested_vmexit_inject, _NESTED_EXIT),
    EventCodec("c_load", ev.kvm_mmu_load, ()),
    EventCodec("c_new_pgd", ev.kvm_mmu_new_pgd, (_Key("pgd", "new_pgd", _PROBE),)),
    EventCodec("c_free_roots", ev.kvm_mmu_free_roots, (_Key("mask", "roots_to_free", _PROBE),)),
    EventCodec("c_sync_roots", ev.kvm_mmu_sync_roots, ()),
    EventCodec("c_sync_prev_roots", ev.kvm_mmu_sync_prev_roots, ()),
    EventCodec("c_invlpg", ev.kvm_mmu_invlpg, (_Key("gva", "gva", _PROBE),)),
    EventCodec("c_unprotect", ev.kvm_mmu_unprotect_page, (_Key("gfn", "gfn", _PROBE),)),
    EventCodec(
        "c_pte_write", ev.kvm_mmu_pte_write, (_Key("gpa", "gpa", _PROBE), _Key("bytes", "bytes", _PROBE))
    ),
    EventCodec("c_reset_context", ev.kvm_mmu_reset_context, ()),
    EventCodec("c_flush", ev.kvm_flush_remote_tlbs, ()),
    EventCodec(
        "c_flush_range",
        ev.kvm_flush_remote_tlbs_with_address,
        (_Key("gfn", "start_gfn", _PROBE), _Key("n", "pages", _PROBE)),
    ),
    EventCodec("c_drop_spte", ev.drop_spte, (_Key("i", "sptep", _INDEX), _Key("s", "old_spte", _SPTE))),
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
    return _BY_NAME[vendor][record["e"]].decode(record)


def encode_event(event: ev.Event, vendor: str) -> Record:
    """Return the record of a canonical event."""
    return _BY_TYPE[vendor][type(event)].encode(event)


class FrameMap(NamedTuple):
    """Which host frames are the guest's backing, which are tables.

    Attributes
    ----------
    backing, backing_frames : int
        First frame and number of frames of the guest's backing.
    """

    backing: int
    backing_frames: int

    def frame(self, frame: int) -> int:
        """Return the canonical number of a host frame."""
        page = frame - self.backing
        if 0 <= page < self.backing_frames:
            return page
        return FRAME_SP if 0 < frame < self.backing else FRAME_HOST

    def pfn(self, pfn: int) -> int:
        """Return the canonical number of a ``kvm_pfn_t``."""
        return PFN_NOSLOT if pfn & PFN_NOSLOT else self.frame(pfn)

    def spte(self, spte: int) -> int:
        """Return an spte with its frame, if it is present, replaced."""
        if not spte & SPTE_MMU_PRESENT_MASK:
            return spte
        return spte & ~PT_BASE_ADDR_MASK | self.frame((spte & PT_BASE_ADDR_MASK) >> 12) << 12


def canonical(event: ev.Event, frames: FrameMap) -> ev.Event:
    """Bring a model's event to the form of a decoded recorded one."""
    kind = type(event)
    if kind is ev.kvm_mmu_set_spte:
        return event._replace(
            spte=frames.spte(event.spte), sptep=event.sptep & 0xFFF, u=int(event.u > 0)
        )
    if kind is ev.kvm_tdp_mmu_spte_changed:
        return event._replace(old_spte=frames.spte(event.old_spte), new_spte=frames.spte(event.new_spte))
    if kind is ev.drop_spte:
        return event._replace(sptep=event.sptep & 0xFFF, old_spte=frames.spte(event.old_spte))
    if kind is ev.kvm_mmu_spte_requested:
        return event._replace(pfn=frames.pfn(event.pfn))
    if kind is ev.mark_mmio_spte:
        return event._replace(sptep=event.sptep & 0xFFF)
    if kind is ev.kvm_mmu_split_huge_page:
        return event._replace(spte=frames.spte(event.spte))
    if kind is ev.fast_page_fault:
        return event._replace(
            # A recording cannot tell a null pointer from the first entry of a table.
            sptep=max(event.sptep, 0) & 0xFFF,
            old_spte=frames.spte(event.old_spte),
            new_spte=frames.spte(event.new_spte),
        )
    return event
