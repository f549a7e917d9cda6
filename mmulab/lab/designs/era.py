"""Which paging modes a piece of work needs, and which of them a historic design knew.

D7 and D8 are words of old kernels. Nothing that KVM could not do in their time
can be held against them, so the table of comparisons says of each case whether
it lies in a design's time. It only says so: the design is run all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.svm.nested import SVM_NESTED_CTL_NP_ENABLE, VMCB
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_EPT, VMCS12
from mmulab.machine import op as ops
from mmulab.scenario.scenario import Header, Scenario
from mmulab.workload.stream import Kind, Stream
from mmulab.x86.mode import PAGING_5LEVEL
from mmulab.x86.regs import X86_CR4_LA57, X86_CR4_SMAP, X86_CR4_SMEP

__all__ = ["LATER", "in_its_time", "modes_needed", "modes_of_stream"]

_HOST_LA57 = "5-level host"
_AFTER_5_0 = ("TDP MMU", "5-level nested NPT host")
LATER: dict[str, tuple[str, ...]] = {
    "glevels": (
        "SMEP",
        "SMAP",
        "SMM",
        "5-level paging",
        _HOST_LA57,
        "nested NPT",
        "nested EPT",
        *_AFTER_5_0,
    ),
    "cr4_pae": _AFTER_5_0,
}
"""By design, what KVM learned only after it.

After 2.6.34: nested NPT (2.6.37, f87f928882d0 and what followed), SMEP and SMAP,
nested EPT (3.12, 155a97a3d7c7), memslots of SMM (4.2, 699023e23965), 5-level
paging (4.14). After 5.0: the TDP MMU
(5.10), and shadowing NPT on a host with five levels (5.15).
"""

_CR4 = {X86_CR4_SMEP: "SMEP", X86_CR4_SMAP: "SMAP", X86_CR4_LA57: "5-level paging"}


def in_its_time(design: RoleDesign, needs: frozenset[str]) -> bool:
    """Whether KVM had the modes `needs` when `design` was its word; so for all that is not historic."""
    return needs.isdisjoint(LATER.get(design.name, ()))


def modes_needed(scenario: Scenario) -> frozenset[str]:
    """Return what a scenario needs of KVM beyond shadow and two-dimensional paging of 2.6.34."""
    return frozenset(_needed(scenario))


def modes_of_stream(stream: Stream) -> frozenset[str]:
    """Return the same of a boot, which runs on a host with as many levels as it needs."""
    loads = (stream.kind == Kind.CONTROL) & (stream.aux & 0xFF == 4)
    values = [stream.registers.cr4, *stream.val[loads].tolist()]
    return frozenset(_features(values)) | ({_HOST_LA57} if stream.mode is PAGING_5LEVEL else frozenset())


def _features(cr4: list[int]) -> Iterator[str]:
    return (name for bit, name in _CR4.items() if any(value & bit for value in cr4))


def _needed(scenario: Scenario) -> Iterator[str]:
    header = scenario.header
    host, five = header.host, header.host["virt_bits"] == 57
    if five:
        yield _HOST_LA57
    if (host["npt"] or host["ept"]) and host["tdp_mmu"] and host["x86_64"]:
        yield "TDP MMU"
    steps = [step.op for step in scenario.steps]
    values = [header.regs.cr4, *(op.value for op in steps if isinstance(op, ops.WriteCr) and op.cr == 4)]
    values += [op.cr4 for op in steps if isinstance(op, ops.SetSregs)]
    yield from _features(values)
    if any(isinstance(op, ops.Smm) for op in steps):
        yield "SMM"
    for structure in dict.fromkeys(op.gpa for op in steps if isinstance(op, ops.Vmrun)):
        yield from _nested(header, structure, five)


def _nested(header: Header, structure: int, five: bool) -> Iterator[str]:
    """Yield what the VMCB or VMCS at an address turns on."""
    if header.vendor == "amd":
        at, control, name = VMCB["nested_ctl"][0], SVM_NESTED_CTL_NP_ENABLE, "nested NPT"
    else:
        at = VMCS12["secondary_vm_exec_control"].offset
        control, name = SECONDARY_EXEC_ENABLE_EPT, "nested EPT"
    if _byte(header, structure + at) & control:
        yield name
        if five and header.vendor == "amd":
            yield "5-level nested NPT host"


def _byte(header: Header, gpa: int) -> int:
    """Return a byte of memory as it is in the beginning, 0 where a control block was not filled in."""
    found = 0
    for value in header.values:
        if value.gpa <= gpa < value.gpa + value.size:
            found = value.value >> 8 * (gpa - value.gpa) & 0xFF
    return found
