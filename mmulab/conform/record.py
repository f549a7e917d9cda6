"""Writes a run of the model as a recording, in the form that the recorder of the real kernel has.

What that recorder took from its surroundings stands under ``model``: the host
as the scenario has it, and the quirks.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmulab import __version__, files
from mmulab.conform.codec import canonical, encode_event
from mmulab.conform.outcome import encode_outcome, outcome_record
from mmulab.conform.recording import SUFFIXES, TEARDOWN
from mmulab.conform.values import FrameMap
from mmulab.errors import InputError
from mmulab.events import CONSOLE
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.scenario.scenario import BACKGROUND, Header, Scenario

_KVM = ("tdp_mmu", "eager_page_split", "flush_on_reuse", "mmio_caching", "nx_huge_pages")
_AMD = ("npt", "nested", "nrips", "sev", "vgif")
_INTEL = ("ept", "eptad", "pml", "vpid", "nested", "unrestricted_guest", "enable_shadow_vmcs")
MODULE_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "amd": {"kvm": _KVM, "kvm_amd": _AMD},
    "intel": {"kvm": _KVM, "kvm_intel": _INTEL},
}
"""Parameters of each vendor's modules that a header names."""


def recording_lines(scenario: Scenario, results: Iterable[Result], frames: FrameMap) -> list[str]:
    """Return the lines of a recording.

    Parameters
    ----------
    scenario : Scenario
    results : iterable of Result
        All results of a run, ``init`` and ``teardown`` included.
    frames : FrameMap
        Of the machine that ran.
    """
    vendor = scenario.header.vendor
    total: dict[str, int] = {}
    lines = [json_line(_header(scenario))]
    for result in results:
        lines.append(json_line(_op(result, frames, vendor)))
        if result.text != TEARDOWN:
            for name, value in result.stats.items():
                total[name] = total.get(name, 0) + value
    return [*lines, json_line({"end": 1, "stats_total": total})]


def write_recording(path: str | Path, lines: list[str]) -> None:
    """Write a recording, compressed as its name says, whole or not at all.

    Raises
    ------
    InputError
        The name is not that of a recording, or the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: not the name of a recording, expected *{' *'.join(SUFFIXES)}")
    data = "".join(f"{line}\n" for line in lines).encode("ascii")
    if path.suffix == ".xz":
        data = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    elif path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    files.write_bytes(path, data)


def json_line(record: dict[str, Any]) -> str:
    """Return one line of a recording."""
    return json.dumps(record, separators=(",", ":"))


def _op(result: Result, frames: FrameMap, vendor: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "i": result.index,
        "op": result.text,
        "out": outcome_record(encode_outcome(result.outcome)),
        "ev": [encode_event(canonical(e, frames), vendor) for e in result.events if type(e) not in CONSOLE],
    }
    guest = not isinstance(result.op, HOST_OPS)
    if result.text != TEARDOWN and (guest or result.stats):
        record["stats"] = result.stats
    return record


def scenario_record(scenario: Scenario) -> dict[str, Any]:
    """Return what a recording's header says of the scenario itself."""
    h: Header = scenario.header
    names = Path(scenario.source).name.split(".")
    record: dict[str, Any] = {
        "scenario": names[0],
        "format": 1,
        "mem_values": [[str(v.size), hex(v.gpa), hex(v.value)] for v in h.values],
        "fills": [[hex(value) for value in fill] for fill in h.fills],
        "slots": [
            {
                "id": s.id,
                "gpa": hex(s.gpa),
                "size": hex(s.size),
                "flags": s.flags,
                "backing_offset": hex(s.offset),
            }
            for s in h.slots
        ],
        "mode": h.mode,
        "backing_size": hex(h.backing_bytes),
    }
    if h.thp:
        record["thp"] = 1
    if h.manual_dirty:
        record["manualdirty"] = 1
    if h.disable_nx_huge_pages:
        record["nxdisable"] = 1
    if h.vcpus > 1:
        record["vcpus"] = h.vcpus
    if h.dirty_ring:
        record["dirtyring"] = h.dirty_ring
    if h.pdptfix:
        record["pdptfix"] = [hex(gpa) for gpa in h.pdptfix]
    return record | {name: hex(value) for name, value in h.regs._asdict().items()}


def helper_record() -> dict[str, Any]:
    """Return what a recording's header says of the helper pages and of memory without value."""
    return {"helper": {"S": hex(HELPER_S), "U": hex(HELPER_U)}, "background": hex(BACKGROUND)}


def _header(scenario: Scenario) -> dict[str, Any]:
    h: Header = scenario.header
    return {
        **scenario_record(scenario),
        **helper_record(),
        "cpuid": h.cpuid,
        "host": {
            "kernel": f"{h.kernel} (mmulab {__version__})",
            "host_phys_bits": h.host["phys_bits"],
            "host_virt_bits": h.host["virt_bits"],
            "params": {
                f"{module}.{name}": "Y" if h.host[name] else "N"
                for module, names in MODULE_PARAMETERS[h.vendor].items()
                for name in names
            },
        },
        "model": {"host": h.host, "quirks": list(h.quirks)},
    }
