"""One op as a line of text, and back.

``[@n] [!|?] NAME ARG..``: ``@n`` is the vCPU (0 if left out), ``!`` runs the op
only while the vCPU is in L2, ``?`` only while it is in L1. Numbers are
hexadecimal without prefix. The table :data:`FORMS` is the whole grammar. VAL
of a guest's store is the register's value, of which SIZE bytes are stored. TYPE and
PCID of ``invpcid`` are the register and the first word of the descriptor, 64 bits
each; a guest on an AMD host without ``nrips=1`` does not get past it, as on Linux
6.1, whose emulator cannot tell its length. Bit 16 of a slot's ID is the number of
its address space, as in ``KVM_SET_USER_MEMORY_REGION``: 1 is what a vCPU sees
in system management mode, between ``smm on`` and ``smm off``. GPA of ``hw``, ``hinval``,
``age``, ``collapse``, ``mprotect`` and ``swapout`` is an offset into the backing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mmulab.errors import quoted
from mmulab.machine import op as ops
from mmulab.machine.config import MAX_VCPUS
from mmulab.memory.memslots import KVM_ADDRESS_SPACE_NUM

_U64 = 1 << 64
_GPA = 1 << 52
_HEX_DIGITS = "0123456789abcdefABCDEF"


class GrammarError(ValueError):
    """A line that is no op; the message says what was expected."""


class Arg(NamedTuple):
    """One argument: its name in messages, its reader and its writer."""

    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = "{:x}".format


def number(name: str, limit: int) -> Arg:
    """Return an argument that holds a number below `limit`."""

    def read(text: str) -> int:
        return hex_number(text, name, limit)

    return Arg(name, read)


def hex_number(text: str, name: str, limit: int) -> int:
    """Read a hexadecimal number below `limit`.

    Raises
    ------
    GrammarError
    """
    if not text or text.strip(_HEX_DIGITS):
        raise GrammarError(f"{name} is '{quoted(text)}', expected a hexadecimal number without prefix")
    value = int(text, 16)
    if value >= limit:
        raise GrammarError(f"{name} is {quoted(text)}, expected at most {limit - 1:x}")
    return value


def _choice(name: str, choices: dict[str, Any]) -> Arg:
    names = {value: key for key, value in choices.items()}

    def read(text: str) -> Any:
        if text not in choices:
            raise GrammarError(f"{name} is '{quoted(text)}', expected one of {' '.join(choices)}")
        return choices[text]

    return Arg(name, read, names.__getitem__)


def _cpuid_key(text: str) -> str:
    if not (text.isascii() and text.isidentifier()):
        raise GrammarError(f"KEY is '{quoted(text)}', expected the name of a CPUID feature")
    return text


_MODE = _choice("MODE", {m.value: m for m in (ops.Mode.SUPERVISOR, ops.Mode.USER, ops.Mode.SUPERVISOR_AC)})
_SIZE = _choice("SIZE", {"1": 1, "4": 4, "8": 8})
_SIZE_48 = _choice("SIZE", {"4": 4, "8": 8})
_SIZE_8 = _choice("SIZE", {"8": 8})
_ON = _choice("STATE", {"on": True, "off": False})
_SWITCH = _choice("NX_HUGE_PAGES", {"0": False, "1": True})
_PROT = _choice("PROT", {"0": 0, "1": 1, "3": 3})
_KEY = Arg("KEY", _cpuid_key, str)
_GVA = number("GVA", _U64)
_PHYS = number("GPA", _GPA)
_VAL = number("VAL", _U64)
_ID = number("ID", KVM_ADDRESS_SPACE_NUM << 16)
_BYTES = number("SIZE", _GPA)


class Form(NamedTuple):
    """How one op is written.

    Attributes
    ----------
    type : type
        The op.
    args : dict of str to Arg
        The op's fields, in the order of the text.
    fixed : dict
        Fields that the name implies.
    size : int or None
        The access size that stands for a ``SIZE`` left out.
    """

    type: Any
    args: dict[str, Arg]
    fixed: dict[str, Any] = {}  # noqa: RUF012 -- never written to
    size: int | None = None


_ACCESS = {"mode": _MODE, "size": _SIZE, "gva": _GVA}
FORMS: dict[str, Form] = {
    "rd": Form(ops.Read, _ACCESS, size=4),
    "wr": Form(ops.Write, {**_ACCESS, "value": _VAL}, size=4),
    "xg": Form(ops.Exchange, {"mode": _MODE, "size": _SIZE_48, "gva": _GVA, "value": _VAL}, size=4),
    "cx": Form(
        ops.CompareExchange,
        {"mode": _MODE, "size": _SIZE_8, "gva": _GVA, "old": _VAL, "new": _VAL},
        size=8,
    ),
    "xc": Form(ops.Execute, {"mode": _MODE, "gva": _GVA}),
    "cr0": Form(ops.WriteCr, {"value": _VAL}, {"cr": 0, "compat": False}),
    "cr0c": Form(ops.WriteCr, {"value": _VAL}, {"cr": 0, "compat": True}),
    "cr3": Form(ops.WriteCr, {"value": _VAL}, {"cr": 3, "compat": False}),
    "cr4": Form(ops.WriteCr, {"value": _VAL}, {"cr": 4, "compat": False}),
    "efer": Form(ops.WriteEfer, {"value": _VAL}),
    "invlpg": Form(ops.Invlpg, {"gva": _GVA}),
    "invpcid": Form(ops.Invpcid, {"type": number("TYPE", _U64), "pcid": number("PCID", _U64), "gva": _GVA}),
    "nop": Form(ops.Nop, {}),
    "hw": Form(ops.HostWrite, {"size": _SIZE, "gpa": _PHYS, "value": _VAL}),
    "slot": Form(
        ops.SetMemslot,
        {
            "id": _ID,
            "gpa": _PHYS,
            "size": _BYTES,
            "flags": number("FLAGS", 4),
            "offset": number("OFFSET", _GPA),
        },
    ),
    "slotdel": Form(ops.DeleteMemslot, {"id": _ID}),
    "getdirty": Form(ops.GetDirtyLog, {"id": _ID}),
    "cleardirty": Form(
        ops.ClearDirtyLog, {"id": _ID, "first": number("FIRST", _GPA), "count": number("N", 1 << 32)}
    ),
    "getring": Form(ops.GetDirtyRing, {}),
    "resetring": Form(ops.ResetDirtyRings, {}),
    "hinval": Form(ops.InvalidateHva, {"gpa": _PHYS, "length": number("LEN", _GPA)}),
    "age": Form(ops.Age, {"gpa": _PHYS, "length": number("LEN", _GPA)}),
    "collapse": Form(ops.Collapse, {"gpa": _PHYS, "length": number("LEN", _GPA)}),
    "mprotect": Form(ops.Protect, {"gpa": _PHYS, "length": number("LEN", _GPA), "access": _PROT}),
    "swapout": Form(ops.SwapOut, {"gpa": _PHYS, "length": number("LEN", _GPA)}),
    "nxrecover": Form(ops.RecoverNxHugePages, {"ratio": number("RATIO", 1 << 32)}),
    "nxhuge": Form(ops.SetNxHugePages, {"enabled": _SWITCH}),
    "nrpages": Form(ops.SetNrMmuPages, {"count": number("N", 1 << 32)}),
    "sregs": Form(
        ops.SetSregs,
        {
            "cr0": number("CR0", _U64),
            "cr3": number("CR3", _U64),
            "cr4": number("CR4", _U64),
            "efer": number("EFER", _U64),
        },
    ),
    "pkru": Form(ops.SetPkru, {"value": number("VAL", 1 << 32)}),
    "cpuid": Form(ops.SetCpuid, {"key": _KEY, "value": _VAL}),
    "smm": Form(ops.Smm, {"on": _ON}),
    "vmrun": Form(ops.Vmrun, {"gpa": _PHYS}),
    "vmmcall": Form(ops.Vmmcall, {}),
    "vmxon": Form(ops.Vmxon, {"gpa": _PHYS}),
    "vmptrld": Form(ops.Vmptrld, {"gpa": _PHYS}),
    "vmclear": Form(ops.Vmclear, {"gpa": _PHYS}),
    "vmlaunch": Form(ops.Vmlaunch, {}),
    "vmcall": Form(ops.Vmcall, {}),
    "vmw": Form(ops.Vmwrite, {"field": number("FIELD", 1 << 32), "value": _VAL}),
    "invept": Form(
        ops.Invept,
        {"type": number("TYPE", _U64), "eptp": number("EPTP", _U64), "reserved": number("RESERVED", _U64)},
    ),
    "invvpid": Form(
        ops.Invvpid, {"type": number("TYPE", _U64), "vpid": number("VPID", 1 << 16), "gva": _GVA}
    ),
    "vmfunc": Form(ops.Vmfunc, {"function": number("FN", 1 << 32), "index": number("INDEX", 1 << 32)}),
}
"""Every op of the language by its name."""

_NAMES = {(form.type, tuple(sorted(form.fixed.items()))): name for name, form in FORMS.items()}


class Step(NamedTuple):
    """One op of a scenario and where it stands.

    Attributes
    ----------
    op : Op
    when : {"", "!", "?"}
        Always, only while in L2, only while in L1.
    line : int
        Line in the file it came from; 0 if it was built.
    """

    op: ops.Op
    when: str = ""
    line: int = 0


def parse_step(text: str, line: int = 0) -> Step:
    """Read one op.

    Raises
    ------
    GrammarError
        With what was expected.

    Examples
    --------
    >>> parse_step("@1 rd u 40000000").op
    Read(vcpu=1, mode=<Mode.USER: 'u'>, size=4, gva=1073741824)
    """
    words = text.split()
    vcpu = 0
    if words and words[0].startswith("@"):
        vcpu = hex_number(words.pop(0)[1:], "vCPU after @", MAX_VCPUS)
    if not words:
        raise GrammarError("expected an op")
    when = words[0][0] if words[0][0] in "!?" else ""
    name, args = words[0][len(when) :], words[1:]
    form = FORMS.get(name)
    if form is None:
        raise GrammarError(f"unknown op '{quoted(name)}', expected one of {' '.join(FORMS)}")
    return Step(_build(name, form, args, vcpu), when, line)


def _build(name: str, form: Form, args: list[str], vcpu: int) -> ops.Op:
    fields = list(form.args.items())
    values: dict[str, Any] = dict(form.fixed)
    if form.size is not None and len(args) == len(fields) - 1:
        values["size"] = form.size
        fields = [f for f in fields if f[0] != "size"]
    if len(args) != len(fields):
        raise GrammarError(f"{name} has {len(args)} arguments, expected {usage(name)}")
    for (field, arg), text in zip(fields, args, strict=True):
        values[field] = arg.read(text)
    if name == "hw" and values["value"] >> (8 * values["size"]):
        raise GrammarError(f"VAL is {values['value']:x}, expected one of {values['size']} bytes")
    op: ops.Op = form.type(vcpu=vcpu, **values)
    return op


def usage(name: str) -> str:
    """Return how an op is written.

    >>> usage("xc")
    'xc MODE GVA'
    """
    form = FORMS[name]
    names = [f"[{a.name}]" if f == "size" and form.size is not None else a.name for f, a in form.args.items()]
    return " ".join([name, *names])


def format_op(op: ops.Op) -> str:
    """Write an op without its vCPU, always with its access size.

    >>> format_op(ops.Write(mode=ops.Mode.USER, size=4, gva=0x40000008, value=1))
    'wr u 4 40000008 1'
    """
    name = op_name(op)
    return " ".join([name, *(arg.write(getattr(op, field)) for field, arg in FORMS[name].args.items())])


def op_name(op: ops.Op) -> str:
    """Return the name of an op in the language.

    Raises
    ------
    GrammarError
        The language has no such op (one that only streams or the runner use).
    """
    fixed: tuple[tuple[str, Any], ...] = ()
    if isinstance(op, ops.WriteCr):
        fixed = (("compat", op.compat), ("cr", op.cr))
    name = _NAMES.get((type(op), fixed))
    if name is None:
        raise GrammarError(f"the scenario language has no op {type(op).__name__}")
    return name


def format_step(step: Step) -> str:
    """Write a step with its vCPU (if not 0) and its condition."""
    return f"{vcpu_prefix(step.op)}{step.when}{format_op(step.op)}"


def vcpu_prefix(op: ops.Op) -> str:
    """Return what names an op's vCPU in front of it: nothing for vCPU 0."""
    return f"@{op.vcpu:x} " if op.vcpu else ""
