"""The record of a scenario: how a machine begins and what is done to it.

Everything is data: the header says which processor, host and memory, the steps
say which ops. Text (:mod:`mmulab.scenario.text`), recordings
(:mod:`mmulab.conform.recording`) and Python
(:mod:`mmulab.scenario.builder`) are makers of the same record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab.kvm.kernels import LINUX_6_1
from mmulab.scenario.grammar import Step, format_step
from mmulab.x86.markup import facts_html, table_html
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_ET,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PSE,
)

BACKGROUND = 0x90
"""Every byte of a guest's memory before anything is put there: a NOP."""

_X86_CR0_NE = 1 << 5
_CR0 = X86_CR0_PE | X86_CR0_ET | _X86_CR0_NE
_LONG = EFER_LME | EFER_LMA | EFER_NX


class Regs(NamedTuple):
    """The registers that a vCPU begins with."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


MODES = {
    "np": Regs(_CR0, 0, 0, 0),
    "32": Regs(_CR0 | X86_CR0_WP | X86_CR0_PG, 0, X86_CR4_PSE, 0),
    "pae": Regs(_CR0 | X86_CR0_WP | X86_CR0_PG, 0, X86_CR4_PAE, EFER_NX),
    "64": Regs(_CR0 | X86_CR0_WP | X86_CR0_PG, 0, X86_CR4_PAE, _LONG),
    "57": Regs(_CR0 | X86_CR0_WP | X86_CR0_PG, 0, X86_CR4_PAE | X86_CR4_LA57, _LONG),
}
"""What a scenario's ``mode`` line stands for; ``sregs`` overrides it."""

CPUID_DEFAULTS = {
    "maxphyaddr": 40,
    "pse": 1,
    "pae": 1,
    "pge": 1,
    "pse36": 1,
    "nx": 1,
    "lm": 1,
    "gbpages": 1,
    "smep": 1,
    "smap": 1,
    "umip": 1,
    "fsgsbase": 1,
    "xsave": 1,
    "fxsr_opt": 0,
    "pku": 0,
    "la57": 1,
    "pcid": 0,
    "invpcid": 0,
    "svm": 0,
    "vmx": 0,
}
"""Features of the guest's CPUID that a ``cpu`` line may change."""

TDP_PARAMETER = {"amd": "npt", "intel": "ept"}
"""What turns two-dimensional paging on, by the host's vendor."""

HOST_DEFAULTS = {
    "phys_bits": 40,
    "virt_bits": 57,
    "x86_64": 1,
    "cache_bits": 40,
    "l1tf": 0,
    "decode_assists": 0,
    "ept_advanced_info": 0,
    "npt": 0,
    "ept": 0,
    "eptad": 1,
    "pml": 0,
    "vpid": 1,
    "tdp_mmu": 1,
    "eager_page_split": 1,
    "flush_on_reuse": 0,
    "mmio_caching": 1,
    "nx_huge_pages": 0,
    "nested": 1,
    "nrips": 0,
    "vgif": 1,
    "sev": 0,
    "unrestricted_guest": 0,
    "enable_shadow_vmcs": 1,
    "force_emulation_prefix": 0,
}
"""The host: its processor, and parameters of kvm, kvm_amd and kvm_intel under their own names.

The values are those of the machine of the AMD recordings. ``virt_bits`` of 57: it runs with
5-level paging. ``x86_64`` of 0: its kernel is a 32-bit one, with PAE. ``cache_bits``: physical bits
that the cache compares, which Linux corrects to 44 on Intel's client processors before 2019
(``override_cache_bits``, ``arch/x86/kernel/cpu/bugs.c``).
"""

QUIRKS = {
    "rmw_reads_first": "XCHG and CMPXCHG8B report their access as a read before the write",
    "rsvd_without_p": "a page fault on a reserved bit has P=0 in its error code",
    "marks_pdptes": "under nested paging A is set in the PDPTEs that are read",
    "ad_ignores_ept_w": "without A/D bits in EPT, A and D are stored into tables that EPT maps without W",
    "cr0_reloads_pdptes": "with PAE paging and EPT each MOV to CR0 reads the PDPTEs again",
}
"""Departures of an emulated processor from a real one, by name."""


class Slot(NamedTuple):
    """One memslot of the beginning: ``KVM_SET_USER_MEMORY_REGION``."""

    id: int
    gpa: int
    size: int
    flags: int
    offset: int
    """Byte offset into the guest's backing."""


class Fill(NamedTuple):
    """`length` bytes from `gpa` hold `byte`. The address is an offset into the backing."""

    gpa: int
    length: int
    byte: int


class Value(NamedTuple):
    """`size` bytes at `gpa`, an offset into the backing."""

    size: int
    gpa: int
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """How a scenario's machine begins.

    Attributes
    ----------
    vendor : {"amd", "intel"}
    mode : str
        A key of :data:`MODES`; for readers, `regs` decides.
    regs : Regs
        Given to the vCPU by the op ``init``.
    backing_bytes : int
        Size of the guest's backing, a multiple of 4096.
    thp : bool
        The backing consists of 2 MiB huge pages of the host.
    manual_dirty : bool
        ``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`` is on.
    disable_nx_huge_pages : bool
        ``KVM_CAP_VM_DISABLE_NX_HUGE_PAGES`` is on.
    vcpus : int
        At least as many as the steps name.
    dirty_ring : int
        Entries of each vCPU's dirty ring (``KVM_CAP_DIRTY_LOG_RING``); 0: the VM has none.
    slots : tuple of Slot
    fills, values : tuple
        Memory after the background and the helper pages: fills, then values.
    pdptfix : tuple of int
        Addresses of page-directory-pointer tables whose entries lose bit 5
        before each op.
    cpuid, host : dict of str to int
        As :data:`CPUID_DEFAULTS` and :data:`HOST_DEFAULTS`.
    quirks : tuple of str
        Keys of :data:`QUIRKS` that the processor under the host has.
    kernel : str
        The host's kernel, as :func:`mmulab.kvm.kernel.find_kernel` takes it.
    """

    vendor: str
    mode: str
    regs: Regs
    backing_bytes: int
    thp: bool = False
    manual_dirty: bool = False
    disable_nx_huge_pages: bool = False
    vcpus: int = 1
    dirty_ring: int = 0
    slots: tuple[Slot, ...] = ()
    fills: tuple[Fill, ...] = ()
    values: tuple[Value, ...] = ()
    pdptfix: tuple[int, ...] = ()
    cpuid: dict[str, int] = field(default_factory=lambda: dict(CPUID_DEFAULTS))
    host: dict[str, int] = field(default_factory=lambda: dict(HOST_DEFAULTS))
    quirks: tuple[str, ...] = ()
    kernel: str = LINUX_6_1.name


@dataclass(frozen=True, slots=True)
class Scenario:
    """A header and its steps.

    Attributes
    ----------
    header : Header
    steps : tuple of Step
        Without ``init`` and ``teardown``, which every run has.
    source : str
        The file it came from, for messages.
    lines : dict of str to int
        Where in that file the lines of the header stand, by their first word; a
        memslot's by the first two.
    """

    header: Header
    steps: tuple[Step, ...]
    source: str = "<built>"
    lines: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def vcpus(self) -> int:
        """How many vCPUs there are: as many as the header says, or the steps need."""
        return max(self.header.vcpus, 1 + max((step.op.vcpu for step in self.steps), default=0))

    def __repr__(self) -> str:
        header = self.header
        return (
            f"<Scenario {self.source}: {header.mode} guest, CR3 {header.regs.cr3:#x}, {header.vendor} host, "
            f"{len(self.steps)} ops>"
        )

    def _repr_html_(self) -> str:
        header = self.header
        facts = {name.upper(): f"{value:#x}" for name, value in header.regs._asdict().items()}
        facts |= {"memory": f"{header.backing_bytes:#x}", "vCPUs": str(self.vcpus), "kernel": header.kernel}
        steps = [[index, format_step(step)] for index, step in enumerate(self.steps)]
        return facts_html(facts, repr(self)) + table_html(["op", "text"], steps, "what is done")
