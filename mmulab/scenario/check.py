"""What a scenario's header may not say: values out of range, and hosts that contradict themselves.

Values are checked where they are read (:func:`check_values`), in text, in
recordings and in Python alike; what holds between them, and whether KVM takes
registers and memslots, before a machine is made (:func:`check_header`).

Source: Linux 6.1 ``arch/x86/kvm/svm/svm.c``, ``vmx/vmx.c`` (``module_param``,
``hardware_setup``), ``x86.c`` (``kvm_is_valid_sregs``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmulab.errors import InputError
from mmulab.kvm.dirty_ring import check_dirty_ring
from mmulab.kvm.memory_region import check_memory_region, kvm_mmu_max_gfn
from mmulab.kvm.sregs import invalid_sregs, unknown_efer
from mmulab.machine.config import MAXPHYADDR_LIMITS, HostConfig
from mmulab.scenario.grammar import GrammarError
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, Header, Scenario
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SVME,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PGE,
    X86_CR4_PSE,
    CpuModel,
)

WIDTHS = dict.fromkeys(("maxphyaddr", "phys_bits", "cache_bits"), MAXPHYADDR_LIMITS)
"""Lowest and highest number of bits."""
VIRT_BITS = (48, 57)
"""Of 4- and 5-level paging."""
OF_VENDOR = {
    "npt": "amd",
    "nrips": "amd",
    "vgif": "amd",
    "sev": "amd",
    "ept": "intel",
    "eptad": "intel",
    "pml": "intel",
    "vpid": "intel",
    "unrestricted_guest": "intel",
    "enable_shadow_vmcs": "intel",
    "ept_advanced_info": "intel",
    "l1tf": "intel",
}
"""What only one vendor's hosts have."""
NEEDED = {
    "pml": ("ept", "eptad"),
    "unrestricted_guest": ("ept",),
    "ept_advanced_info": ("ept",),
    "sev": ("npt",),
}
"""Parameters that Linux turns off at once where another is off."""
VIRTUALIZATION = {"svm": "amd", "vmx": "intel"}
BEGINS_WITH = (
    ("lm", "efer", EFER_LME | EFER_LMA, "EFER.LME or LMA"),
    ("nx", "efer", EFER_NX, "EFER.NX"),
    ("svm", "efer", EFER_SVME, "EFER.SVME"),
    ("pae", "cr4", X86_CR4_PAE, "CR4.PAE"),
    ("pse", "cr4", X86_CR4_PSE, "CR4.PSE"),
    ("pge", "cr4", X86_CR4_PGE, "CR4.PGE"),
    ("la57", "cr4", X86_CR4_LA57, "CR4.LA57"),
)
"""CPUID features, and the bits with which no guest without them begins."""


def check_values(values: Mapping[str, int]) -> None:
    """Check the value of each parameter of a host, or of each feature of a guest's CPUID.

    Raises
    ------
    GrammarError
    """
    for name, value in values.items():
        if name in WIDTHS:
            low, high = WIDTHS[name]
            if not low <= value <= high:
                raise GrammarError(f"{name} is {value:x}, expected {low:x} to {high:x} (hexadecimal)")
        elif name == "virt_bits":
            if value not in VIRT_BITS:
                known = " or ".join(f"{v:x}" for v in VIRT_BITS)
                raise GrammarError(f"{name} is {value:x}, expected {known}")
        elif name in {**HOST_DEFAULTS, **CPUID_DEFAULTS} and value not in (0, 1):
            raise GrammarError(f"{name} is {value:x}, expected 0 or 1")


def check_header(scenario: Scenario, host: HostConfig, cpu: CpuModel) -> None:
    """Refuse a header that contradicts itself, or that KVM would not take.

    Raises
    ------
    InputError
        Naming the file, and the line if it is known.
    """
    header = scenario.header
    for place, wrong in (*_of_host(header), *_of_registers(header, host, cpu), *_of_slots(header, host)):
        line = next((scenario.lines[key] for key in (*place, "mode") if key in scenario.lines), None)
        where = "header" if line is None else f"line {line}"
        raise InputError(f"{scenario.source}: {where}: {wrong}")


def _of_host(header: Header) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong, after the header lines that it may stand in."""
    for name, vendor in OF_VENDOR.items():
        value = header.host[name]
        if header.vendor != vendor and value != HOST_DEFAULTS[name]:
            yield ("host",), f"host {header.vendor} has {name}={value:x}, a matter of {vendor}; leave it out"
    for name, others in NEEDED.items():
        for other in others:
            if header.host[name] and not header.host[other]:
                yield ("host",), f"the host has {name}=1 and {other}=0; {name} needs {other}=1"
    if header.dirty_ring and check_dirty_ring(header.dirty_ring, pml=bool(header.host["pml"])):
        sizes = f"a power of two from {400 if header.host['pml'] else 100} to 10000 (hexadecimal)"
        yield ("dirtyring",), f"KVM refuses a dirty ring of {header.dirty_ring:x} entries, expected {sizes}"
    for feature, vendor in VIRTUALIZATION.items():
        if header.cpuid[feature] and header.vendor != vendor:
            yield ("cpu",), f"cpu has {feature}=1 on host {header.vendor}; only {vendor} has {feature}"


def _of_registers(header: Header, host: HostConfig, cpu: CpuModel) -> Iterator[tuple[tuple[str, ...], str]]:
    for feature, register, bits, name in BEGINS_WITH:
        if getattr(header.regs, register) & bits and not header.cpuid[feature]:
            where = ("cpu", "sregs") if CPUID_DEFAULTS[feature] else ("sregs", "cpu")
            yield where, f"the guest begins with {name} (mode {header.mode}), but cpu has {feature}=0"
    if header.regs.efer & EFER_SVME and not header.host["nested"]:
        yield ("host", "sregs"), "the guest begins with EFER.SVME, but the host has nested=0"
    wrong = invalid_sregs(host, cpu, *header.regs)
    if wrong:
        yield ("sregs",), f"KVM_SET_SREGS refuses the registers: {wrong}"
    wrong = unknown_efer(host, header.regs.efer)
    if wrong:
        yield ("sregs",), wrong


def _of_slots(header: Header, host: HostConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    max_gfn = kvm_mmu_max_gfn(tdp=host.tdp, host_phys_bits=host.phys_bits)
    for slot in header.slots:
        errno = check_memory_region(slot.id, slot.gpa, slot.size, slot.flags, slot.offset)
        beyond = (slot.gpa + slot.size - 1) >> 12 > max_gfn
        if errno or beyond:
            last = f"its last page lies above gfn {max_gfn:x}" if beyond else "size, address, flags or number"
            place = ("slot0" if f"{slot.id:x}" == "0" else "", f"slot {slot.id:x}")
            yield place, f"KVM_SET_USER_MEMORY_REGION refuses slot {slot.id:x}: {last}"
