"""What a machine is made of: host, guest processor, memory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.spte import SpteFormat
from mmulab.limits import BACKING_BYTES
from mmulab.memory.host import FRAME_BYTES
from mmulab.x86.regs import CpuModel

MAXPHYADDR_LIMITS = 32, 52
"""Bits: of a processor without PAE, and what the tables' formats have room for (SDM 3, 4.1.4)."""


VENDORS = ("amd", "intel")
MAX_VCPUS = 256
MAX_TABLE_FRAMES = 1 << 20
"""Frames for tables of a machine: 4 GiB, of which only those in use take memory."""


def changed_cpu(cpu: CpuModel, feature: str, value: int) -> CpuModel:
    """Return a guest's processor with one feature changed.

    Raises
    ------
    InputError
        The model has no such feature, or it cannot be `value`.
    """
    known = [f.name for f in fields(cpu) if f.name != "vendor"]
    if feature not in known:
        raise InputError(f"CPUID feature {feature!r}: the MMU knows {', '.join(known)}")
    if feature != "maxphyaddr":
        if value not in (0, 1):
            raise InputError(f"CPUID feature {feature} is {value:x}, expected 0 or 1")
        return replace(cpu, **{feature: bool(value)})  # type: ignore[arg-type]
    low, high = MAXPHYADDR_LIMITS
    if not low <= value <= high:
        raise InputError(f"maxphyaddr is {value:x}, expected {low:x} to {high:x} (hexadecimal)")
    return replace(cpu, maxphyaddr=value)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The host: its processor, its kernel's module parameters.

    Attributes
    ----------
    vendor : {"amd", "intel"}
    phys_bits : int
        Physical-address width.
    tdp : bool
        ``npt`` or ``ept``.
    tdp_mmu, eager_page_split, flush_on_reuse, mmio_caching, nx_huge_pages : bool
        Parameters of ``kvm.ko``.
    eptad, pml : bool
        Parameters of ``kvm-intel.ko``.
    nested : bool
        Parameter of ``kvm-amd.ko`` and ``kvm-intel.ko``: the guest may run guests of its own.
    x86_64 : bool
        The host's kernel is a 64-bit one. A 32-bit one (with PAE, AMD here) has
        neither 64-bit guests nor the TDP MMU.
    la57 : bool
        The host runs with 5-level paging.
    l1tf : bool
        The processor has the L1 terminal fault; MMIO sptes look different then.
    cache_bits : int
        Physical-address bits of its L1 cache. Linux takes 44 for Intel's client
        processors up to Broadwell (``override_cache_bits``).
    ept_advanced_info : bool
        EPT violations tell the rights of the linear address (IA32_VMX_EPT_VPID_CAP bit 22).
    decode_assists : bool
        The processor tells KVM the operands of intercepted instructions, so
        that they need not be emulated. Intel's always does (VMX).
    nrips : bool
        It tells where the next instruction lies, so that one that KVM has executed
        need not be decoded. Intel's always does.
    rmw_reads_first : bool
        Quirk of an emulated processor (QEMU TCG): XCHG and CMPXCHG8B report
        their access as a read before the write. A real one reports a write.
    rsvd_without_p : bool
        Quirk of the same: a fault on a reserved bit has P=0.
    marks_pdptes : bool
        Quirk of the same: under nested paging it sets A in the PDPTEs it reads.
    ad_ignores_ept_w : bool
        Quirk of an emulated processor (Bochs): without A/D bits in EPT it stores A and D
        into guest tables that EPT maps without W. A real one has an EPT violation
        (SDM 3, 29.3.3.2).
    cr0_reloads_pdptes : bool
        Quirk of the same: with PAE paging each MOV to CR0 reads the PDPTEs again. A
        real one does so if CD, NW or PG changes (SDM 3, 4.4.1).
    """

    vendor: str = "amd"
    phys_bits: int = 40
    tdp: bool = False
    tdp_mmu: bool = False
    eager_page_split: bool = True
    flush_on_reuse: bool = False
    mmio_caching: bool = True
    nx_huge_pages: bool = False
    eptad: bool = True
    pml: bool = False
    nested: bool = True
    x86_64: bool = True
    la57: bool = False
    l1tf: bool = False
    cache_bits: int = 40
    ept_advanced_info: bool = False
    decode_assists: bool = False
    nrips: bool = False
    rmw_reads_first: bool = False
    rsvd_without_p: bool = False
    marks_pdptes: bool = False
    ad_ignores_ept_w: bool = False
    cr0_reloads_pdptes: bool = False

    def spte_format(self, kernel: Kernel) -> SpteFormat:
        """Return the format of the host's tables under a kernel."""
        return kernel.spte_format(
            ept=self.tdp and self.vendor == "intel",
            phys_bits=self.phys_bits,
            has_ad=self.eptad,
            cache_bits=self.cache_bits if self.l1tf else 0,
            x86_64=self.x86_64,
        )


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """A memslot at the beginning; `offset` into the backing."""

    id: int
    gpa: int
    size: int
    flags: int
    offset: int


@dataclass(frozen=True, slots=True)
class Stubs:
    """Where the pages of instruction stubs lie (GPA = GVA)."""

    supervisor: int
    user: int


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """All that a run depends on besides its ops.

    Attributes
    ----------
    cpu : CpuModel
        The guest's processor, as its CPUID shows it.
    host : HostConfig
    backing_bytes : int
    thp : bool
        The host backs the guest with 2 MiB pages.
    manual_dirty : int
        Argument of ``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2``: 1 protects pages
        only when the VMM clears the log, 3 begins with all pages dirty too.
    disable_nx_huge_pages : bool
        ``KVM_CAP_VM_DISABLE_NX_HUGE_PAGES``: the host's ``nx_huge_pages`` does not hold for this VM.
    dirty_ring : int
        Entries of each vCPU's dirty ring (``KVM_CAP_DIRTY_LOG_RING``); 0: there is none.
    slots : tuple of SlotConfig
    stubs : Stubs or None
        None: guest ops are bare accesses with no instruction around them.
    vcpus : int
    kernel : Kernel
    table_frames : int
        Host frames for shadow tables.
    """

    cpu: CpuModel = field(default_factory=CpuModel)
    host: HostConfig = field(default_factory=HostConfig)
    backing_bytes: int = 1 << 24
    thp: bool = False
    manual_dirty: int = 0
    disable_nx_huge_pages: bool = False
    dirty_ring: int = 0
    slots: tuple[SlotConfig, ...] = ()
    stubs: Stubs | None = None
    vcpus: int = 1
    kernel: Kernel = LINUX_6_1
    table_frames: int = 1 << 15


def check_bounds(config: MachineConfig) -> None:
    """Refuse what no machine can have, before memory is taken for it.

    Raises
    ------
    InputError
    """
    low, high = MAXPHYADDR_LIMITS
    ranges = {
        "backing_bytes": (config.backing_bytes, FRAME_BYTES, BACKING_BYTES),
        "table_frames": (config.table_frames, 1, MAX_TABLE_FRAMES),
        "vcpus": (config.vcpus, 1, MAX_VCPUS),
        "manual_dirty": (config.manual_dirty, 0, 3),
        "phys_bits": (config.host.phys_bits, low, high),
        "cache_bits": (config.host.cache_bits, low, high),
        "maxphyaddr": (config.cpu.maxphyaddr, low, high),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise InputError(f"{name} of the machine is {value}, expected {least} to {most}")
    if config.backing_bytes % FRAME_BYTES:
        raise InputError(f"backing_bytes of the machine is {config.backing_bytes}, expected whole pages")
    for vendor in (config.host.vendor, config.cpu.vendor):
        if vendor not in VENDORS:
            raise InputError(f"vendor of the machine is '{quoted(vendor)}', expected {' or '.join(VENDORS)}")
