"""Recordings of a real kernel: read, write, find.

A recording is JSON lines, plain (``.jsonl``) or compressed (``.jsonl.gz``,
``.jsonl.xz``): a header, one object an op, and a last line that says that
nothing is missing. ``helpers.json`` beside it holds the helper pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import events as ev
from mmulab import files
from mmulab.conform.codec import decode_event
from mmulab.conform.outcome import HOST_DIED, Decoded, decode_outcome, outcome_str
from mmulab.conform.values import count_value, hex_value, list_value, object_value, text_value
from mmulab.errors import InputError, named, quoted
from mmulab.kvm.kernels import recorded_kernel
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.grammar import GrammarError, Step, parse_step
from mmulab.scenario.scenario import HOST_DEFAULTS, Header, Regs, Scenario
from mmulab.x86.markup import table_html

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz")
INIT = "init"
TEARDOWN = "teardown"
HELPER_PREFIX = "~"
"""Before the name of an instruction that the VMM put in front of an op."""

_PARAMS = {"kvm_amd.npt": "amd", "kvm_intel.ept": "intel"}
QUIRKS_BY_VENDOR: dict[str, tuple[str, ...]] = {
    "amd": ("rmw_reads_first", "rsvd_without_p", "marks_pdptes"),
    "intel": ("ad_ignores_ept_w", "cr0_reloads_pdptes"),
}
"""Quirks of the emulated processors that the recordings were made on."""

_DIGITS = 20
"""Fewer decimal digits has a module's parameter."""


@dataclass(frozen=True, slots=True)
class RecordedOp:
    """One op of a recording.

    Attributes
    ----------
    line : int
        Line in the file.
    index : int
        -1 for ``init``; a helper instruction has the index of the op it precedes.
    text : str
    outcome : dict
        Decoded (:mod:`mmulab.conform.outcome`).
    events : tuple of Event
        In canonical form (:mod:`mmulab.conform.codec`).
    stats : dict of str to int
        Non-zero changes of KVM's statistics.
    """

    line: int
    index: int
    text: str
    outcome: Decoded
    events: tuple[ev.Event, ...]
    stats: dict[str, int]


@dataclass(frozen=True, slots=True)
class KernelRecording:
    """A recording: the scenario it ran and what happened.

    Attributes
    ----------
    path : str
    scenario : Scenario
        Its steps are the ops that ran, without ``init``, ``teardown`` and helper instructions.
    ops : tuple of RecordedOp
    """

    path: str
    scenario: Scenario
    ops: tuple[RecordedOp, ...]

    @property
    def steps(self) -> list[RecordedOp]:
        """The ops of the scenario's own steps, in order."""
        return [op for op in self.ops if not is_around(op.text)]

    @property
    def fatal(self) -> RecordedOp | None:
        """The op that the kernel did not survive: the last one, with what its trace had until then."""
        last = self.ops[-1]
        return last if last.outcome["out"] == HOST_DIED else None

    @property
    def end(self) -> int:
        """Index of the teardown, also where the kernel did not live to see it."""
        last = self.ops[-1]
        return last.index + (last.text != TEARDOWN)

    def __repr__(self) -> str:
        events = sum(len(op.events) for op in self.ops)
        header = self.scenario.header
        return (
            f"<KernelRecording {self.path}: {header.mode} guest, {header.vendor} host with {header.kernel}, "
            f"{len(self.steps)} ops, {events} events>"
        )

    def _repr_html_(self) -> str:
        rows = [[op.index, op.text, outcome_str(op.outcome), len(op.events)] for op in self.ops]
        return table_html(["op", "text", "outcome", "events"], rows, repr(self))


def find_recordings(paths: Iterable[str]) -> list[Path]:
    """Return the recordings that `paths` name, folders searched two levels deep, in order.

    Raises
    ------
    InputError
        A path that does not exist, is no recording, or a folder without any.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if not name:
            raise InputError("the file's name is empty; name a recording or a folder")
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
            for below in ("*/*", "*/*/*"):  # a host's folder in a kernel's
                inside += sorted(p for p in path.glob(below) if p.name.endswith(SUFFIXES))
            if not inside:
                raise InputError(f"{name}: no recording in this folder, expected *{' *'.join(SUFFIXES)}")
            found += inside
        elif not os.path.lexists(path):
            raise InputError(f"{named(name)}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise InputError(f"{name}: not a recording by its name, expected *{' *'.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def scenario_name(path: Path) -> str:
    """Return a recording's file name without its suffixes."""
    return path.name.split(".jsonl")[0]


def is_around(text: str) -> bool:
    """Whether an op is not of the scenario but of what the VMM does around it: ``@1 init``, ``~sysexit``."""
    name = text.split(" ", 1)[1] if text.startswith("@") and " " in text else text
    return name in (INIT, TEARDOWN) or name.startswith(HELPER_PREFIX)


def read_lines(path: Path) -> list[str]:
    """Return a recording's lines.

    Raises
    ------
    InputError
        The file cannot be read, or its compression or encoding is broken.
    """
    try:
        return files.read_unpacked(path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)}: byte {error.start}: not ASCII text; copy it again") from error


def read_recording(path: Path) -> KernelRecording:
    """Read one recording whole.

    Raises
    ------
    InputError
        With file, line and what was expected.
    """
    return parse_recording(read_lines(path), path)


def parse_recording(lines: list[str], path: Path) -> KernelRecording:
    """Read a recording from its lines; `path` is said where one of them is wrong.

    Raises
    ------
    InputError
    """
    header = _Header(path, _object(path, lines, 0)).read()
    ops: list[RecordedOp] = []
    steps: list[Step] = []
    vendor = header.vendor
    for number, text in enumerate(lines[1:-1], 2):
        record = _object(path, lines, number - 1)
        try:
            op = _recorded_op(record, number, vendor)
            if not is_around(op.text):
                steps.append(parse_step(op.text, number))
        except GrammarError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{named(path)}: line {number}: not an op as a recording holds it: {_why(error)} "
                f"in {quoted(text)}"
            ) from error
        ops.append(op)
    last = _object(path, lines, len(lines) - 1) if len(lines) > 1 else {}
    if "end" not in last:
        raise InputError(f'{path}: line {len(lines)}: the file is cut, expected a last line {{"end":..}}')
    died = [op.outcome["out"] == HOST_DIED for op in ops]
    if any(died[:-1]):
        line = ops[died.index(True) + 1].line
        raise InputError(f"{path}: line {line}: an op after {HOST_DIED}, expected none")
    if not ops or ops[0].text != INIT or not (died[-1] or ops[-1].text == TEARDOWN):
        raise InputError(f"{path}: line 2: expected the op init first and teardown, or {HOST_DIED}, last")
    return KernelRecording(str(path), Scenario(header, tuple(steps), str(path)), tuple(ops))


def _object(path: Path, lines: list[str], index: int) -> dict[str, Any]:
    if not lines:
        raise InputError(f"{path}: line 1: the file is empty, expected a header")
    where = f"{named(path)}: line {index + 1}"
    record = files.parse_json(lines[index], where)
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {quoted(lines[index], 40)}")
    return record


def _why(error: Exception) -> str:
    """Return what is wrong with a value, in words."""
    return f"no key {error}" if isinstance(error, KeyError) else quoted(error, 200)


def _recorded_op(record: dict[str, Any], line: int, vendor: str) -> RecordedOp:
    return RecordedOp(
        line=line,
        index=count_value(record["i"], -1),
        text=text_value(record["op"]),
        outcome=decode_outcome(record["out"]),
        events=tuple([decode_event(e, vendor) for e in list_value(record["ev"])]),
        stats={name: count_value(value) for name, value in object_value(record.get("stats", {})).items()},
    )


class _Header:
    """Reads the header object of a recording."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    def _get(self, key: str) -> Any:
        if key not in self.record:
            raise InputError(f"{self.path}: line 1: the header has no {key!r}; it needs it to run")
        return self.record[key]

    def read(self) -> Header:
        if self._get("format") != 1:
            shown = quoted(repr(self.record["format"]), 40)
            raise InputError(f"{named(self.path)}: line 1: format {shown}, expected 1")
        try:
            return self._read()
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{named(self.path)}: line 1: header: {_why(error)}") from error

    def _read(self) -> Header:
        """Build the header as a scenario's text does, with the same checks."""
        vendor, params, quirks = self._host()
        builder = ScenarioBuilder(
            text_value(self._get("mode")),
            vendor=vendor,
            mem=hex_value(self._get("backing_size")),
            thp=bool(self._switch("thp")),
            manual_dirty=bool(self._switch("manualdirty")),
            disable_nx_huge_pages=bool(self._switch("nxdisable")),
            vcpus=count_value(self.record.get("vcpus", 1), 1),
            dirty_ring=count_value(self.record.get("dirtyring", 0), 0),
            cpu={name: count_value(v, 0) for name, v in object_value(self._get("cpuid")).items()},
            host=params,
            source=str(self.path),
        )
        builder.sregs(*(hex_value(self._get(name)) for name in Regs._fields))
        for slot in map(object_value, list_value(self._get("slots"))):
            id, flags = count_value(slot["id"], 0), count_value(slot["flags"], 0)
            gpa, size, offset = (hex_value(slot[key]) for key in ("gpa", "size", "backing_offset"))
            builder.slot(id, gpa, size, flags, offset)
        for fill in map(list_value, list_value(self._get("fills"))):
            gpa, length, byte = map(hex_value, fill)
            builder.fill(gpa, length, byte)
        for value in map(list_value, list_value(self._get("mem_values"))):
            size, gpa, number = map(hex_value, value)
            builder.value(size, gpa, number)
        for gpa in list_value(self.record.get("pdptfix", [])):
            builder.pdptfix(hex_value(gpa))
        builder.kernel(self._kernel())
        for quirk in quirks:
            builder.quirk(text_value(quirk))
        return builder.build().header

    def _kernel(self) -> str:
        told = text_value(object_value(self._get("host"))["kernel"])
        try:
            return recorded_kernel(told).name
        except InputError as error:
            raise InputError(f"{self.path}: line 1: {error}") from error

    def _switch(self, key: str) -> int:
        value = self.record.get(key, 0)
        return count_value(int(value) if value in ("0", "1") else value, 0, 1)

    def _host(self) -> tuple[str, dict[str, int], Iterable[Any]]:
        """Return the vendor, the host's parameters and the processor's quirks."""
        host = object_value(self._get("host"))
        told = object_value(host["params"])
        vendors = {v for key, v in _PARAMS.items() if key in told}
        if len(vendors) != 1:
            raise ValueError(f"host.params: expected one of {' '.join(_PARAMS)}")
        vendor = vendors.pop()
        if "model" in self.record:  # a recording of the model itself says all
            model = object_value(self.record["model"])
            params = {name: count_value(v, 0) for name, v in object_value(model["host"]).items()}
            return vendor, params, list_value(model["quirks"])
        params = {
            "phys_bits": count_value(host["host_phys_bits"], 0),
            "virt_bits": count_value(host["host_virt_bits"], 0),
        }
        for key, value in told.items():
            name = key.partition(".")[2]
            if name in HOST_DEFAULTS:  # the others change nothing that the model has
                params[name] = _parameter(value)
        return vendor, params | _processor(vendor, params), QUIRKS_BY_VENDOR[vendor]


def _parameter(value: Any) -> int:
    """Read a module's parameter as ``/sys/module`` shows it: Y, N or a number."""
    if value in ("Y", "N"):
        return int(value == "Y")
    if not (isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _DIGITS):
        raise ValueError(f"{quoted(repr(value), 40)} is neither Y nor N nor a number")
    return int(value)


def _processor(vendor: str, params: dict[str, int]) -> dict[str, int]:
    """Return what a recording's header does not say of the processor under its kernel.

    The AMD machine is QEMU's TCG, without decode assists. The Intel ones are
    Bochs' broadwell_ult and, where there is PML, corei7_skylake_x: both have
    the L1 terminal fault, and only on the first does Linux take 44 cache bits
    for granted (``override_cache_bits``, ``arch/x86/kernel/cpu/bugs.c``).
    """
    if vendor == "amd":
        return {"cache_bits": params["phys_bits"], "l1tf": 0, "decode_assists": 0}
    cache_bits = params["phys_bits"] if params["pml"] else max(44, params["phys_bits"])
    return {
        "cache_bits": cache_bits,
        "l1tf": 1,
        "decode_assists": 1,
        "ept_advanced_info": params["pml"],
    }
