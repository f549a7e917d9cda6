"""From a scenario's header to the configuration of a machine."""

from __future__ import annotations

from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig, Stubs
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.check import check_header
from mmulab.scenario.grammar import GrammarError
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import CPUID_DEFAULTS, TDP_PARAMETER, Header, Scenario
from mmulab.scenario.text import host_settings
from mmulab.x86.regs import EFER_LMA, CpuModel

_CPU_FEATURES = tuple(name for name in CPUID_DEFAULTS if name != "maxphyaddr")
_KVM_PARAMETERS = (
    "tdp_mmu",
    "eager_page_split",
    "flush_on_reuse",
    "mmio_caching",
    "nx_huge_pages",
    "x86_64",
    "eptad",
    "pml",
    "nested",
    "l1tf",
    "decode_assists",
    "nrips",
    "ept_advanced_info",
)
_LA57_VIRT_BITS = 57


def machine_config(
    scenario: Scenario, kernel: Kernel | None = None, design: RoleDesign | None = None
) -> MachineConfig:
    """Return the configuration of the machine that a scenario begins with.

    Parameters
    ----------
    scenario : Scenario
    kernel : Kernel, optional
        Instead of the scenario's own.
    design : RoleDesign, optional
        Instead of the kernel's own.

    Raises
    ------
    InputError
        A header that contradicts itself, or that KVM would not take; a 64-bit guest on a 32-bit host.
    """
    header = scenario.header
    check_header(scenario, host_config(header), cpu_model(header))
    if not header.host["x86_64"] and header.regs.efer & EFER_LMA:
        raise InputError(f"{scenario.source}: a host with x86_64=0 runs no 64-bit guest; take another mode")
    kernel = kernel or find_kernel(header.kernel)
    return MachineConfig(
        cpu=cpu_model(header),
        host=host_config(header),
        backing_bytes=header.backing_bytes,
        thp=header.thp,
        manual_dirty=header.manual_dirty,
        disable_nx_huge_pages=header.disable_nx_huge_pages,
        dirty_ring=header.dirty_ring,
        slots=tuple(SlotConfig(*slot) for slot in header.slots),
        stubs=Stubs(supervisor=HELPER_S, user=HELPER_U),
        kernel=kernel if design is None else kernel.with_(design=design),
        vcpus=scenario.vcpus,
    )


def cpu_model(header: Header) -> CpuModel:
    """Return the guest's processor as its CPUID shows it."""
    has = header.cpuid
    return CpuModel(
        vendor=header.vendor,
        maxphyaddr=has["maxphyaddr"],
        **{name: bool(has[name]) for name in _CPU_FEATURES},
    )


def host_config(header: Header) -> HostConfig:
    """Return the host and its kernel's parameters."""
    host = header.host
    return HostConfig(
        vendor=header.vendor,
        phys_bits=host["phys_bits"],
        tdp=bool(host[TDP_PARAMETER[header.vendor]]),
        la57=host["virt_bits"] == _LA57_VIRT_BITS,
        cache_bits=host["cache_bits"],
        **{name: bool(host[name]) for name in _KVM_PARAMETERS},
        **dict.fromkeys(header.quirks, True),
    )


def parse_host(text: str) -> HostConfig:
    """Return the host that the words of a ``host`` line say: ``intel ept=1 eptad=0``.

    Raises
    ------
    InputError
        It names what is wrong and what to do.
    """
    source = f"host '{quoted(text)}'"
    try:
        scenario = ScenarioBuilder("np", **host_settings(text.split()), source=source).build()
    except GrammarError as error:
        raise InputError(f"{source}: {error}") from error
    header = scenario.header
    check_header(scenario, host_config(header), cpu_model(header))
    return host_config(header)
