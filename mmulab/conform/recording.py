"""Recordings of a real kernel: read, write, find.

A recording is JSON lines, plain (``.jsonl``) or compressed (``.jsonl.gz``,
``.jsonl.xz``): a header, one object an op, and a last line that says that
nothing is missing. ``helpers.json`` beside it holds the helper pages.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import events as ev
from mmulab.conform.codec import decode_event
from mmulab.conform.outcome import Decoded, decode_outcome
from mmulab.errors import InputError
from mmulab.scenario.check import check_values
from mmulab.scenario.grammar import Bad, Step, parse_step
from mmulab.scenario.scenario import (
    CPUID_DEFAULTS,
    HOST_DEFAULTS,
    Fill,
    Header,
    Regs,
    Scenario,
    Slot,
    Value,
)

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

_TRUTH = {"Y": 1, "N": 0}


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
class Recording:
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


def find_recordings(paths: Iterable[str]) -> list[Path]:
    """Return the recordings that `paths` name, folders searched one level deep, in order.

    Raises
    ------
    InputError
        A path that does not exist, is no recording, or a folder without any.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
            inside += sorted(p for p in path.glob("*/*") if p.name.endswith(SUFFIXES))
            if not inside:
                raise InputError(f"{name}: no recording in this folder, expected *{' *'.join(SUFFIXES)}")
            found += inside
        elif not path.exists():
            raise InputError(f"{name}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise InputError(f"{name}: not a recording by its name, expected *{' *'.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def scenario_name(path: Path) -> str:
    """Return a recording's file name without its suffixes."""
    return path.name.split(".jsonl")[0]


def read_lines(path: Path) -> list[str]:
    """Return a recording's lines.

    Raises
    ------
    InputError
        The file cannot be read, or its compression or encoding is broken.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("ascii")
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a whole {path.suffix} file ({error}); copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return text.splitlines()


def read_recording(path: Path) -> Recording:
    """Read one recording whole.

    Raises
    ------
    InputError
        With file, line and what was expected.
    """
    lines = read_lines(path)
    header = _Header(path, _object(path, lines, 0)).read()
    ops: list[RecordedOp] = []
    steps: list[Step] = []
    vendor = header.vendor
    for number, text in enumerate(lines[1:-1], 2):
        record = _object(path, lines, number - 1)
        try:
            op = _recorded_op(record, number, vendor)
            if op.text not in (INIT, TEARDOWN) and not op.text.startswith(HELPER_PREFIX):
                steps.append(parse_step(op.text, number))
        except Bad as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: line {number}: not an op as a recording holds it: {error!r} in {text[:60]}"
            ) from error
        ops.append(op)
    last = _object(path, lines, len(lines) - 1) if len(lines) > 1 else {}
    if "end" not in last:
        raise InputError(f'{path}: line {len(lines)}: the file is cut, expected a last line {{"end":..}}')
    if not ops or ops[0].text != INIT or ops[-1].text != TEARDOWN:
        raise InputError(f"{path}: line 2: expected the op init first and teardown last")
    return Recording(str(path), Scenario(header, tuple(steps), str(path)), tuple(ops))


def _object(path: Path, lines: list[str], index: int) -> dict[str, Any]:
    if not lines:
        raise InputError(f"{path}: line 1: the file is empty, expected a header")
    try:
        record = json.loads(lines[index])
    except ValueError as error:
        cut = "; the file is cut" if index == len(lines) - 1 else ""
        raise InputError(f"{path}: line {index + 1}: expected a JSON object: {error}{cut}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: line {index + 1}: expected a JSON object, found {lines[index][:40]}")
    return record


def _recorded_op(record: dict[str, Any], line: int, vendor: str) -> RecordedOp:
    return RecordedOp(
        line=line,
        index=int(record["i"]),
        text=str(record["op"]),
        outcome=decode_outcome(record["out"]),
        events=tuple([decode_event(e, vendor) for e in record["ev"]]),
        stats=dict(record.get("stats", {})),
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
            raise InputError(f"{self.path}: line 1: format {self.record['format']!r}, expected 1")
        try:
            header = self._read()
            check_values({**header.cpuid, **header.host})
            return header
        except Bad as error:
            raise InputError(f"{self.path}: line 1: header: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.path}: line 1: header: {error!r}") from error

    def _read(self) -> Header:
        host = self._get("host")
        vendors = {v for key, v in _PARAMS.items() if key in host["params"]}
        if len(vendors) != 1:
            raise InputError(f"{self.path}: line 1: host.params: expected one of {' '.join(_PARAMS)}")
        vendor = vendors.pop()
        params = {"phys_bits": host["host_phys_bits"], "virt_bits": host["host_virt_bits"]}
        for key, value in host["params"].items():
            name = key.partition(".")[2]
            if name in HOST_DEFAULTS:  # the others change nothing that the model has
                params[name] = _TRUTH[value] if value in _TRUTH else int(value)
        params |= _processor(vendor, params)
        quirks = QUIRKS_BY_VENDOR[vendor]
        if "model" in self.record:  # a recording of the model itself says all
            params, quirks = self.record["model"]["host"], tuple(self.record["model"]["quirks"])
        return Header(
            vendor=vendor,
            mode=str(self._get("mode")),
            regs=Regs(*(int(self._get(name), 16) for name in Regs._fields)),
            backing_bytes=int(self._get("backing_size"), 16),
            thp=bool(int(self.record.get("thp", 0))),
            manual_dirty=bool(int(self.record.get("manualdirty", 0))),
            slots=tuple(
                Slot(s["id"], int(s["gpa"], 16), int(s["size"], 16), s["flags"], int(s["backing_offset"], 16))
                for s in self._get("slots")
            ),
            fills=tuple(Fill(*(int(v, 16) for v in fill)) for fill in self._get("fills")),
            values=tuple(Value(*(int(v, 16) for v in value)) for value in self._get("mem_values")),
            pdptfix=tuple(int(gpa, 16) for gpa in self.record.get("pdptfix", ())),
            cpuid={**CPUID_DEFAULTS, **self._get("cpuid")},
            host={**HOST_DEFAULTS, **params},
            quirks=quirks,
        )


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
