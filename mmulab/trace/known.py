"""What a recording may hold: the classes, by name, and what their fields may be.

A file names classes; only those of these tables are made of it, and only with
the fields and values that their annotations allow. No name in a file is
imported, and nothing that can be called comes out of one.
"""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from mmulab.errors import InputError, quoted
from mmulab.events import EVENT_TYPES
from mmulab.kvm.dirty_ring import DirtyRing
from mmulab.kvm.event_words import EventWords
from mmulab.kvm.mmu import Mmu, RootInfo, X86Exception
from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.kvm.state import Emulation, MmioAccess
from mmulab.kvm.svm.nested import SvmNested
from mmulab.kvm.sync.oos_state import OosState
from mmulab.kvm.validity import Validity
from mmulab.kvm.vmx.nested import VmxNested
from mmulab.kvm.vmx.vmcs12 import VmxState
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, SlotConfig, Stubs
from mmulab.x86.mode import PagingMode
from mmulab.x86.paging import Paging
from mmulab.x86.regs import CpuModel

_PREFIX = "mmulab."
AGAIN = "the recording is of another version, or damaged"


def name_of(kind: type) -> str:
    """Return the name of one of mmulab's classes in a recording."""
    return f"{kind.__module__.removeprefix(_PREFIX)}:{kind.__qualname__}"


def _named(*kinds: type) -> dict[str, type]:
    return {name_of(kind): kind for kind in kinds}


OPS = _named(
    *(
        kind
        for kind in vars(ops).values()
        if isinstance(kind, type) and issubclass(kind, ops.Op) and kind is not ops.Op
    )
)
OUTCOMES = _named(ops.Outcome)
EVENTS = _named(*EVENT_TYPES.values())
LOGS = {"ops": OPS, "outcomes": OUTCOMES, "events": EVENTS}
"""What each log may hold."""
RECORDS = {
    **OPS,
    **OUTCOMES,
    **EVENTS,
    **_named(CpuModel, CpuRole, Emulation, HostConfig, Mmu, MmioAccess, ops.Mmio, Paging, PagingMode),
    **_named(DirtyRing, EventWords, OosState, RoleFacts, RootInfo, SlotConfig, Stubs, Validity, VmxState),
    **_named(X86Exception),
}
ENUMS = _named(ops.Mode, ops.OutcomeKind)
OBJECTS: dict[str, tuple[type, dict[str, Any]]] = {
    name_of(VmxNested): (VmxNested, {"nested_pgd": int, "idt_vectoring": int}),
    name_of(SvmNested): (
        SvmNested,
        {
            "vmcb12_gpa": int,
            "intercepts": tuple[int, ...],
            "nested_pgd": int,
            "npt": bool,
            "exit_code": int,
            "exit_info_1": int,
            "exit_info_2": int,
            "idt_vectoring": int,
            "l1": dict[str, int],
        },
    ),
}
"""Objects that are kept by their attributes, with what these may be."""
NESTED = VmxNested | SvmNested


def find(known: dict[str, Any], name: object) -> Any:
    """Return what `known` has under a name that a file gives.

    Raises
    ------
    InputError
    """
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{quoted(name)} is nothing that a recording may hold; {AGAIN}")
    return known[name]


_HINTS: dict[type, dict[str, Any]] = {}


def record_fields(kind: type) -> dict[str, Any]:
    """Return the names of a NamedTuple's or dataclass's fields with their types, in order."""
    if kind not in _HINTS:
        hints = typing.get_type_hints(kind)
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind._fields  # type: ignore[attr-defined]
        _HINTS[kind] = {name: hints[name] for name in names}
    return _HINTS[kind]


def check(value: object, hint: Any, what: str) -> None:
    """Refuse a value that an annotation does not allow.

    Raises
    ------
    InputError
    """
    if not fits(value, hint):
        raise InputError(f"{what} is {quoted(repr(value), 40)}; {AGAIN}")


def fits(value: object, hint: Any) -> bool:
    """Whether an annotation allows a value; an integer has at most 64 bits, a boolean may be 0 or 1."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is not None:
        return _container_fits(value, origin, args)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, int) and value in (0, 1)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, Enum) and -(1 << 63) <= value < 1 << 64
    return type(value) is hint


def _container_fits(value: object, origin: Any, args: tuple[Any, ...]) -> bool:
    if type(value) is not origin:
        return False
    if isinstance(value, dict):
        return all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    assert isinstance(value, (tuple, list))
    if isinstance(value, tuple) and args[1:] != (Ellipsis,):
        return len(value) == len(args) and all(map(fits, value, args))
    return all(fits(item, args[0]) for item in value)
