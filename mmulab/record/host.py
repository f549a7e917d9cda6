"""The host that a scenario is recorded on: parameters of KVM's modules, its own levels, its facts."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmulab.conform.record import MODULE_PARAMETERS
from mmulab.errors import InputError, quoted
from mmulab.kvm.event_words import EventWords
from mmulab.record.ring import EventFormat, parse_format
from mmulab.record.tracepoints import event_words
from mmulab.scenario.scenario import HOST_DEFAULTS, TDP_PARAMETER

__all__ = ["CPUID", "LEVELS", "MODULES", "HostFacts", "KernelParameters", "address_sizes", "parse_parameters"]

_KVM = (*MODULE_PARAMETERS["amd"]["kvm"], "force_emulation_prefix")
MODULES = {
    vendor: {"kvm": _KVM, f"kvm_{vendor}": modules[f"kvm_{vendor}"]}
    for vendor, modules in MODULE_PARAMETERS.items()
}
_WITH_TDP = ("tdp_mmu", "eptad", "unrestricted_guest", "pml")
"""Parameters that are always told, since a kernel has defaults of its own, but only where TDP is on:
kernels turn them off by themselves, and differ in whether they say so."""
_FORCED = {"nx_huge_pages": "force"}
"""Parameters whose 1 is another word; 'auto' would look for the processor's fault."""
_SHOWN = {"0": "N", "1": "Y", "force": "Y"}
"""How a module shows what it was told."""
_SETTING = re.compile(r"(?:(kvm|kvm_amd|kvm_intel)\.)?([a-z]\w*)=([\w-]+)")
LEVELS = {48: 4, 57: 5}


class KernelParameters(NamedTuple):
    """What a host is booted with; scenarios that want the same run in one boot.

    Attributes
    ----------
    vendor : {"amd", "intel"}
    levels : {4, 5}
        Of the host's own tables.
    modules : tuple of (str, str, str)
        Module, parameter and value.
    """

    vendor: str
    levels: int
    modules: tuple[tuple[str, str, str], ...]

    @classmethod
    def of_header(cls, vendor: str, host: Mapping[str, int]) -> KernelParameters:
        """Return what a scenario's header wants: npt or ept, what that brings, and what is not a default."""
        chosen, tdp = [], TDP_PARAMETER[vendor]
        for module, names in MODULES[vendor].items():
            for name in names:
                value = host[name]
                if name in _WITH_TDP and not host[tdp]:
                    continue
                if name in (tdp, *_WITH_TDP) or value != HOST_DEFAULTS[name]:
                    chosen.append((module, name, _FORCED.get(name, "1") if value else "0"))
        return cls(vendor, LEVELS[host["virt_bits"]], tuple(chosen))

    def changed(self, levels: int | None, settings: tuple[tuple[str, str, str], ...]) -> KernelParameters:
        """Return this host with other levels and parameters, those of the other vendor's module left out."""
        mine = [setting for setting in settings if setting[0] in MODULES[self.vendor]]
        told = {(module, name): value for module, name, value in (*self.modules, *mine)}
        modules = tuple((module, name, value) for (module, name), value in told.items())
        return self._replace(levels=levels or self.levels, modules=modules)

    def of_module(self, module: str) -> list[str]:
        """Return ``NAME=VALUE`` of each parameter of one module."""
        return [f"{name}={value}" for owner, name, value in self.modules if owner == module]

    def __str__(self) -> str:
        words = [f"{name}={value}" for _, name, value in self.modules]
        return f"{self.vendor}, {self.levels}-level, {' '.join(words)}"


def parse_parameters(text: str) -> tuple[tuple[str, str, str], ...]:
    """Read ``npt=0,tdp_mmu=0``: module, parameter and value of each.

    A parameter that is not known by name needs its module in front: ``kvm_amd.avic=1``. One that both
    vendors' modules have is set in both.

    Raises
    ------
    InputError

    Examples
    --------
    >>> parse_parameters("npt=0,kvm.tdp_mmu=0")
    (('kvm_amd', 'npt', '0'), ('kvm', 'tdp_mmu', '0'))
    """
    found = []
    for word in filter(None, text.split(",")):
        match = _SETTING.fullmatch(word)
        if match is None:
            raise InputError(f"--kvm '{quoted(word)}': expected NAME=VALUE or MODULE.NAME=VALUE, as npt=0")
        module, name, value = match.groups()
        modules = {m: names for vendor in MODULES.values() for m, names in vendor.items()}
        known = [module] if module else [m for m, names in modules.items() if name in names]
        if not known:
            told = ", ".join(dict.fromkeys(name for names in modules.values() for name in names))
            raise InputError(
                f"--kvm '{quoted(word)}': known are {told}; say kvm.{name}, kvm_amd.{name} or "
                f"kvm_intel.{name} of others"
            )
        found += [(owner, name, value) for owner in known]
    return tuple(found)


CPUID: dict[str, tuple[int, int, int, int, int]] = {
    "maxphyaddr": (0x80000008, 0, 0, 0, 8),
    "pse": (1, 0, 3, 3, 1),
    "pae": (1, 0, 3, 6, 1),
    "pge": (1, 0, 3, 13, 1),
    "pse36": (1, 0, 3, 17, 1),
    "nx": (0x80000001, 0, 3, 20, 1),
    "lm": (0x80000001, 0, 3, 29, 1),
    "gbpages": (0x80000001, 0, 3, 26, 1),
    "smep": (7, 0, 1, 7, 1),
    "smap": (7, 0, 1, 20, 1),
    "umip": (7, 0, 2, 2, 1),
    "pku": (7, 0, 2, 3, 1),
    "la57": (7, 0, 2, 16, 1),
    "svm": (0x80000001, 0, 2, 2, 1),
    "vmx": (1, 0, 2, 5, 1),
    "pcid": (1, 0, 2, 17, 1),
    "invpcid": (7, 0, 1, 10, 1),
    "fsgsbase": (7, 0, 1, 0, 1),
    "xsave": (1, 0, 2, 26, 1),
    "fxsr_opt": (0x80000001, 0, 3, 25, 1),
}
"""Leaf, index, register, lowest bit and width of each feature; jobs tell the VMM."""
_NESTED = {"amd": "svm", "intel": "vmx"}
_IN_HEADER = tuple(CPUID)[:16]
"""What a recording's header says of them, of the last but one and two that of its vendor."""
_ADDRESS_SIZES = re.compile(r"address sizes\s*:\s*(\d+) bits physical, (\d+) bits virtual")
_ENTRY = struct.Struct("<10I")  # struct kvm_cpuid_entry2


def address_sizes(cpuinfo: str) -> tuple[int, int] | None:
    """Return the physical and virtual address bits that ``/proc/cpuinfo`` tells; None: it does not."""
    found = _ADDRESS_SIZES.search(cpuinfo)
    return found and (int(found[1]), int(found[2]))


@dataclass(slots=True)
class HostFacts:
    """What a booted host says of itself.

    Attributes
    ----------
    texts : dict of str to str
        Files of it by name.
    formats : dict of int to EventFormat
        By ID.
    probes : dict of str to str
        Event of each probe, and the function that it stands at.
    events : list of str
        Its tracepoints of the group ``kvmmmu``.
    supported : dict of str to int
        What its KVM gives guests of CPUID.
    """

    texts: dict[str, str] = field(default_factory=dict)
    formats: dict[int, EventFormat] = field(default_factory=dict)
    probes: dict[str, str] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    supported: dict[str, int] = field(default_factory=dict)

    def add_file(self, data: bytes) -> None:
        """Take a file: its name, a zero byte, its text."""
        raw, _, content = data.partition(b"\0")
        name, text = raw.decode(), content.decode("utf-8", "replace")
        if name.startswith("format/"):
            layout = parse_format(text)
            self.formats[layout.id] = layout
        elif name.startswith("probe/"):
            self.probes[name.partition("/")[2]] = text.split()[0]
        elif name == "kvmmmu":
            self.events.append(text)
        else:
            self.texts[name] = text

    def add_cpuid(self, data: bytes) -> None:
        """Take the answer to ``KVM_GET_SUPPORTED_CPUID``."""
        leaves = {}
        for function, index, _, *registers in _ENTRY.iter_unpack(data):
            leaves[function, index] = registers
        for name, (leaf, index, register, low, bits) in CPUID.items():
            word = leaves.get((leaf, index), [0] * 4)[register]
            self.supported[name] = word >> low & (1 << bits) - 1

    @property
    def phys_bits(self) -> int:
        """Physical address bits of the processor."""
        return self._address_sizes()[0]

    def _address_sizes(self) -> tuple[int, int]:
        found = address_sizes(self.texts.get("cpuinfo", ""))
        if found is None:
            raise InputError("the host's /proc/cpuinfo has no address sizes")
        return found

    def words(self) -> EventWords:
        """Return the kernel's own numbers of events."""
        return event_words(self.formats.values())

    def check(self, parameters: KernelParameters) -> None:
        """Refuse a parameter that the host's modules do not have.

        Raises
        ------
        InputError
        """
        for module, name, _ in parameters.modules:
            if f"param/{module}/{name}" not in self.texts:
                raise InputError(f"--kvm {name}: {self.texts['release']} has no {module}.{name}")

    def otherwise(self, parameters: KernelParameters) -> list[str]:
        """Return in what the modules did not take what they were told, as where the processor lacks it."""
        found = []
        for module, name, value in parameters.modules:
            has = self.texts.get(f"param/{module}/{name}", "").strip()
            if value in _SHOWN and has not in (value, _SHOWN[value]):
                found.append(f"the host has {module}.{name}={has}, not {value}")
        return found

    def header(self, vendor: str, cpuid: Mapping[str, int]) -> dict[str, Any]:
        """Return ``cpuid`` and ``host`` of a recording's header."""
        known = {
            f"param/{module}/{name}": f"{module}.{name}"
            for module, names in MODULES[vendor].items()
            for name in names
        }
        told_of = [key for key in _IN_HEADER if key not in _NESTED.values() or key == _NESTED[vendor]]
        told = sorted(
            (label, self.texts[name].strip()) for name, label in known.items() if name in self.texts
        )
        phys_bits, virt_bits = self._address_sizes()
        return {
            "cpuid": {name: cpuid[name] for name in told_of} | ({"invpcid": 1} if cpuid["invpcid"] else {}),
            "host": {
                "kernel": f"{self.texts['release']} {self.texts['version']}",
                "host_phys_bits": phys_bits,
                "host_virt_bits": virt_bits,
                "params": dict(told),
                "kvmmmu_events": sorted(self.events),
            },
        }
