"""What is to be recorded: a scenario, its ops as text with their numbers, what its header says besides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import files
from mmulab.conform.record import scenario_record
from mmulab.conform.recording import KernelRecording, read_lines, read_recording, scenario_name
from mmulab.errors import named
from mmulab.machine.op import Age
from mmulab.record.host import CPUID, KernelParameters
from mmulab.scenario.grammar import format_step, op_name
from mmulab.scenario.helpers import STUBS_OF_OPS, helper_lines
from mmulab.scenario.scenario import Scenario

__all__ = ["A_HOST", "Work", "of_recording", "of_scenario", "read_recorded"]

_MADE_ANEW = (
    "helper",
    "background",
    "cpuid",
    "host",
    "n_ops",
    "n_ran",
    "n_events",
    "model",
    "unknown_host_frames",
)
"""Keys of a recording's header that the recorder says of itself."""
_INTEL_OPS = ("vmxon", "vmptrld", "vmclear", "vmlaunch", "vmcall", "vmw", "invept", "invvpid", "vmfunc")
_OTHERS_OPS: dict[str, tuple[str, ...]] = {"amd": _INTEL_OPS, "intel": ()}
A_HOST = {"amd": "an AMD host", "intel": "an Intel host"}


@dataclass(frozen=True, slots=True)
class Work:
    """One scenario to record.

    Attributes
    ----------
    name : str
        Of the recording, without suffix; may have folders in front.
    scenario : Scenario
    ops : tuple of (int, str)
        Number and text of each op.
    n_ops : int
        Number of the ``teardown``: of a recorded scenario also ops count that were not run then.
    described : dict
        What the header of a recording says of the scenario.
    """

    name: str
    scenario: Scenario
    ops: tuple[tuple[int, str], ...]
    n_ops: int
    described: dict[str, Any]

    def parameters(self) -> KernelParameters:
        """Return the host that its header wants."""
        header = self.scenario.header
        return KernelParameters.of_header(header.vendor, header.host)

    def obstacle(self) -> str:
        """Return why no host that can be booted runs this; empty: one can."""
        header = self.scenario.header
        if not header.host["x86_64"]:
            return "its host is a 32-bit kernel (x86_64=0), which cannot be recorded"
        for step in self.scenario.steps:
            if op_name(step.op) in _OTHERS_OPS[header.vendor]:
                place = f"line {step.line}: " if step.line else ""
                return f"{place}op {op_name(step.op)}: {A_HOST[header.vendor]} has none such"
        return ""

    @property
    def nolock(self) -> bool:
        """Whether the backing is not locked: locked pages are not aged."""
        return any(isinstance(step.op, Age) for step in self.scenario.steps)

    def job(self, supported: dict[str, int]) -> str:
        """Return the scenario as the VMM reads it.

        Parameters
        ----------
        supported : dict of str to int
            What the host's KVM gives its guests of CPUID; a feature that it lacks stays off.
        """
        h = self.scenario.header
        ops_of_pages = {STUBS_OF_OPS[type(s.op)] for s in self.scenario.steps if type(s.op) in STUBS_OF_OPS}
        lines = [f"mem {h.backing_bytes:x}", f"nolock {self.nolock:x}", f"thp {h.thp:x}"]
        lines += [f"manualdirty {h.manual_dirty:x}", f"dirtyring {h.dirty_ring:x}"]
        lines.append(f"nxdisable {h.disable_nx_huge_pages:x}")
        lines.append(f"vcpus {self.scenario.vcpus:x}")
        lines.append("sregs " + " ".join(f"{value:x}" for value in h.regs))
        lines += [f"slot {s.id:x} {s.gpa:x} {s.size:x} {s.flags:x} {s.offset:x}" for s in h.slots]
        for key, value in features(h.cpuid, supported).items():
            lines.append(" ".join(["feature", key, *(f"{number:x}" for number in (*CPUID[key], value))]))
        lines += [f"helper {at:x} {data.hex()}" for at, data in helper_lines(h.vendor, ops_of_pages).items()]
        lines += [f"fill {f.gpa:x} {f.length:x} {f.byte:x}" for f in h.fills]
        lines += [f"value {v.size:x} {v.gpa:x} {v.value:x}" for v in h.values]
        lines += [f"pdptfix {gpa:x}" for gpa in h.pdptfix]
        lines.append("ops")
        lines += [f"{number} {text}" for number, text in self.ops]
        return "\n".join([*lines, f"end {self.n_ops}", ""])


def features(wanted: dict[str, int], supported: dict[str, int]) -> dict[str, int]:
    """Return the guest's CPUID: what is wanted, as far as the host's KVM has it.

    >>> features({"la57": 1, "pku": 0, "maxphyaddr": 36}, {"la57": 0, "pku": 1, "maxphyaddr": 40})
    {'la57': 0, 'pku': 0, 'maxphyaddr': 36}
    """
    return {key: min(wanted.get(key, has), has) for key, has in supported.items()}


def of_scenario(name: str, scenario: Scenario) -> Work:
    """Return the work of a scenario that was read from text or built."""
    ops = tuple(enumerate(format_step(step) for step in scenario.steps))
    return Work(name, scenario, ops, len(ops), scenario_record(scenario))


def read_recorded(path: Path, name: str | None = None) -> Work:
    """Return the work of a recording: its scenario, to be recorded anew.

    Raises
    ------
    InputError
        It is no recording.
    """
    recording = read_recording(path)
    header = files.parse_json(read_lines(path)[0], f"{named(path)}: line 1")
    return of_recording(name or scenario_name(path), recording, header)


def of_recording(name: str, recording: KernelRecording, header: dict[str, Any]) -> Work:
    """Return the work of a recording that was read, and of its first line as JSON."""
    ops = tuple((op.index, op.text) for op in recording.steps)
    described = {key: value for key, value in header.items() if key not in _MADE_ANEW}
    return Work(name, recording.scenario, ops, recording.end, described)
