"""Witnesses of role validity: sequences in which CPUID changes under a context that KVM has configured.

The guest has 40 physical-address bits or 36. Bit 38 of a table entry is then
part of an address, or reserved; a memslot at :data:`HIGH` holds what lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from mmulab.check.control_block import vmcb
from mmulab.kvm.vmx.vmcs12 import VMCS12, VMCS12_REVISION
from mmulab.lab.cases.build import (
    GVA_LOWER,
    GVA_UPPER,
    L1_ROOT,
    L2_ROOT,
    LOWER,
    NPT_ROOT,
    TABLES,
    UPPER,
    VMCB_GPA,
)
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import DEFAULT_MEM, ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import Tables, mode_of
from mmulab.x86.mode import (
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)
from mmulab.x86.regs import EFER_SVME, X86_CR4_PGE, X86_CR4_VMXE

WIDE, NARROW = 40, 36
"""MAXPHYADDR: bit 38 of an entry is an address bit, or reserved."""
HIGH = 1 << 38
"""Where the second memslot begins."""
_HALF = DEFAULT_MEM // 2
GIGABYTE_GVA = 0x8000000000
VMCS_GPA, VMXON_GPA, EPT_ROOT = 0xB000, 0xC000, 0x14000
_EPT_TABLES = 0x60000
_RWX_WB = 7 | 6 << 3
_ENTRY = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK


class Witness(NamedTuple):
    """A sequence, and under which rules of KVM it is run.

    Attributes
    ----------
    name : str
        The context that is at stake, and what happens to it.
    question : str
    build : callable
        Makes the scenario.
    cpuid_after_run : str
        ``refuse`` if CPUID changes only before the vCPU has run; ``allow`` stands
        for kernels to 5.15.
    free_roots_lock : str
    interrupted : bool
        Before the first op KVM_RUN is ended by a signal: the context has a root,
        but the vCPU has not run.
    """

    name: str
    question: str
    build: Callable[[], Scenario]
    cpuid_after_run: str = "refuse"
    free_roots_lock: str = "write"
    interrupted: bool = False


def _read(address: int) -> Op:
    return ops.Read(Mode.SUPERVISOR, 4, address)


def _cpuid(feature: str, value: int) -> Op:
    return ops.SetCpuid(feature, value)


def _width(bits: int) -> Op:
    return _cpuid("maxphyaddr", bits)


def _builder(
    mode: str,
    *,
    maxphyaddr: int = WIDE,
    vendor: str = "amd",
    offset: int = _HALF,
    host: dict[str, int] | None = None,
) -> ScenarioBuilder:
    """Return a guest with the first half of the backing at 0 and what is at `offset` of it at HIGH."""
    virtualization = {"svm": 1} if vendor == "amd" else {"vmx": 1, "la57": 0}
    cpu = {"maxphyaddr": maxphyaddr, **virtualization}
    builder = ScenarioBuilder(mode, vendor=vendor, cpu=cpu, host={"virt_bits": 48, **(host or {})})
    for page in (LOWER, UPPER, _HALF + LOWER, _HALF + UPPER):
        builder.value(4, page, 0xC0DE0000 | page >> 12)
    return builder.slot(0, 0, _HALF).slot(1, HIGH, _HALF, 0, offset)


def _built(builder: ScenarioBuilder, *steps: Op) -> Scenario:
    for op in steps:
        builder.op(op)
    return builder.build()


# root_mmu -------------------------------------------------------------------------


def _plain(*steps: Op, maxphyaddr: int = WIDE, code: int = 0, host: dict[str, int] | None = None) -> Scenario:
    """Return a 4-level guest whose two pages are mapped with bit 38.

    `code`: bits of the address at which its code is mapped; the second slot shows it there.
    """
    builder = _builder("64", maxphyaddr=maxphyaddr, offset=0 if code else _HALF, host=host)
    regs = MODES["64"]._replace(cr3=L1_ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), L1_ROOT, count(TABLES, 0x1000))
    tables.map(HELPER_S, code | HELPER_S)
    tables.identity(HELPER_U)
    tables.map(GVA_LOWER, HIGH | LOWER)
    tables.map(GVA_UPPER, HIGH | UPPER)
    return _built(builder, *steps)


def _gigabyte() -> Scenario:
    """Return a guest with a 1 GiB page at :data:`GIGABYTE_GVA`."""
    builder = _builder("64")
    regs = MODES["64"]._replace(cr3=L1_ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), L1_ROOT, count(TABLES, 0x1000))
    tables.identity(HELPER_S, HELPER_U)
    directory = 0x1F000
    builder.fill(directory, 0x1000, 0)
    builder.value(8, L1_ROOT + 8 * (GIGABYTE_GVA >> 39), directory | _ENTRY)
    builder.value(8, directory, PT_PAGE_SIZE_MASK | _ENTRY)
    return _built(builder, _cpuid("gbpages", 0), _read(GIGABYTE_GVA + LOWER))


def _nonpaging() -> Scenario:
    return _built(_builder("np"), _width(NARROW), _read(LOWER))


_TDP = {"npt": 1, "tdp_mmu": 1}
_WRITE_CR4 = ops.WriteCr(4, MODES["64"].cr4 | X86_CR4_PGE)
"""Intercepted; KVM emulates it, and to that end reads the opcode through the guest's tables."""

# guest_mmu and nested_mmu -----------------------------------------------------------

_ENTER, _LEAVE = ops.Vmrun(VMCB_GPA), ops.Vmmcall()


def _npt(*steps: Op, l2: str = "64", maxphyaddr: int = WIDE, code: int = 0) -> Scenario:
    """Return an L1 whose NPT maps two pages of L2 with bit 38.

    `code`: bits of the address at which L2's tables map its code.
    """
    builder = _builder("64", maxphyaddr=maxphyaddr, host={"npt": 1, "tdp_mmu": 0})
    regs = MODES["64"]._replace(cr3=L1_ROOT, efer=MODES["64"].efer | EFER_SVME)
    builder.sregs(*regs)
    free = count(TABLES, 0x1000)
    own = Tables(builder, mode_of(regs), L1_ROOT, free)
    npt = Tables(builder, mode_of(regs), NPT_ROOT, free)
    for tables in (own, npt):
        tables.identity(HELPER_S, HELPER_U)
    npt.map(GVA_LOWER, HIGH | LOWER)
    npt.map(GVA_UPPER, HIGH | UPPER)
    l2_regs = MODES[l2]
    if l2 != "np":
        l2_regs = l2_regs._replace(cr3=L2_ROOT)
        shown = _l2_tables(builder, free, code)
        npt.map(code | HELPER_S, HELPER_S)
        npt.identity(*shown.pages)
    vmcb(builder, VMCB_GPA, l2_regs, NPT_ROOT)
    return _built(builder, *steps)


def _l2_tables(builder: ScenarioBuilder, free: Iterator[int], code: int) -> Tables:
    """Return tables of a 4-level L2 in which all is where it is, but its code perhaps."""
    shown = Tables(builder, mode_of(MODES["64"]), L2_ROOT, free)
    shown.map(HELPER_S, code | HELPER_S)
    shown.identity(HELPER_U, GVA_LOWER, GVA_UPPER)
    return shown


def _ept(*steps: Op) -> Scenario:
    """Return an L1 on Intel whose EPT maps two pages of a 4-level L2 with bit 38."""
    builder = _builder("64", vendor="intel", host={"ept": 1, "tdp_mmu": 0})
    regs = MODES["64"]._replace(cr3=L1_ROOT, cr4=MODES["64"].cr4 | X86_CR4_VMXE)
    builder.sregs(*regs)
    free = count(TABLES, 0x1000)
    Tables(builder, mode_of(regs), L1_ROOT, free).identity(HELPER_S, HELPER_U)
    shown = _l2_tables(builder, free, 0)
    for page in (EPT_ROOT, VMCS_GPA, VMXON_GPA, *range(_EPT_TABLES, _EPT_TABLES + 0x6000, 0x1000)):
        builder.fill(page, 0x1000, 0)
    pdpt, low, low_leaves, data, lower, upper = range(_EPT_TABLES, _EPT_TABLES + 0x6000, 0x1000)
    entries = {
        EPT_ROOT: pdpt | 7,
        pdpt: low | 7,
        low: low_leaves | 7,
        **{low_leaves + 8 * (page >> 12): page | _RWX_WB for page in (HELPER_S, HELPER_U, *shown.pages)},
        pdpt + 8 * (GVA_LOWER >> 30): data | 7,
        data: lower | 7,
        data + 8: upper | 7,
        lower: HIGH | LOWER | _RWX_WB,
        upper: HIGH | UPPER | _RWX_WB,
    }
    for at, entry in entries.items():
        builder.value(8, at, entry)
    image = {
        "revision_id": VMCS12_REVISION,
        "cpu_based_vm_exec_control": 1 << 31,
        "secondary_vm_exec_control": 1 << 1 | 1 << 7,
        "vm_exit_controls": 1 << 9 | 1 << 20 | 1 << 21,
        "vm_entry_controls": 1 << 15 | 1 << 9,
        "guest_cr0": regs.cr0,
        "guest_cr3": L2_ROOT,
        "guest_cr4": regs.cr4,
        "guest_ia32_efer": regs.efer,
        "host_rip": 0x19C0,
        "ept_pointer": EPT_ROOT | 3 << 3 | 6 | 1 << 6,
        "host_cr0": regs.cr0,
        "host_cr3": regs.cr3,
        "host_cr4": regs.cr4,
        "host_ia32_efer": regs.efer,
    }
    for name, value in image.items():
        offset, size, *_ = VMCS12[name]
        for at in range(0, size, 4):
            builder.value(4, VMCS_GPA + offset + at, value >> 8 * at & 0xFFFFFFFF)
    builder.value(4, VMXON_GPA, VMCS12_REVISION)
    return _built(builder, ops.Vmxon(VMXON_GPA), *steps)


_ENTER_VMX, _LEAVE_VMX = ops.Vmrun(VMCS_GPA), ops.Vmcall()

_WITNESSES = (
    Witness(
        "root-shadow-narrows",
        "before the first run bit 38 becomes reserved; the guest then reads a page mapped with it",
        lambda: _plain(_width(NARROW), _read(GVA_LOWER)),
    ),
    Witness(
        "root-shadow-widens",
        "before the first run bit 38 becomes an address bit; the guest then reads a page mapped with it",
        lambda: _plain(_width(WIDE), _read(GVA_LOWER), maxphyaddr=NARROW),
    ),
    Witness(
        "root-shadow-gbpages",
        "before the first run CPUID loses 1 GiB pages; the guest then reads one",
        _gigabyte,
    ),
    Witness(
        "root-shadow-twice",
        "before the first run bit 38 becomes reserved and then an address bit again",
        lambda: _plain(_width(NARROW), _width(WIDE), _read(GVA_LOWER)),
    ),
    Witness(
        "root-shadow-unrelated",
        "before the first run CPUID loses SMEP, which no reserved bit depends on",
        lambda: _plain(_cpuid("smep", 0), _read(GVA_LOWER)),
    ),
    Witness(
        "root-shadow-nonpaging",
        "before the first run bit 38 becomes reserved while CR0.PG=0",
        _nonpaging,
    ),
    Witness(
        "root-shadow-after-run",
        "after a run bit 38 becomes reserved; the guest reads another page mapped with it",
        lambda: _plain(_read(GVA_LOWER), _width(NARROW), _read(GVA_UPPER)),
        cpuid_after_run="allow",
    ),
    Witness(
        "root-shadow-reuse",
        "after a run bit 38 becomes reserved; the guest reads the same page again",
        lambda: _plain(_read(GVA_LOWER), _width(NARROW), _read(GVA_LOWER)),
        cpuid_after_run="allow",
    ),
    Witness(
        "root-tdp-narrows",
        "with TDP bit 38 becomes reserved; KVM's emulator, not the processor, goes by the guest's width",
        lambda: _plain(_width(NARROW), _WRITE_CR4, code=HIGH, host=_TDP),
    ),
    Witness(
        "root-tdp-widens",
        "with TDP bit 38 becomes an address bit, and the emulator must find the code mapped with it",
        lambda: _plain(_width(WIDE), _WRITE_CR4, code=HIGH, maxphyaddr=NARROW, host=_TDP),
    ),
    Witness(
        "guest-npt-narrows",
        "L2 has run on L1's NPT; bit 38 becomes reserved while L1 runs; L2 reads a page mapped with it",
        lambda: _npt(_ENTER, _read(GVA_LOWER), _LEAVE, _width(NARROW), _ENTER, _read(GVA_UPPER)),
        cpuid_after_run="allow",
    ),
    Witness(
        "guest-npt-widens",
        "L2 has met bit 38 as a reserved bit of NPT; it becomes an address bit while L1 runs",
        lambda: _npt(_ENTER, _read(GVA_UPPER), _width(WIDE), _ENTER, _read(GVA_UPPER), maxphyaddr=NARROW),
        cpuid_after_run="allow",
    ),
    Witness(
        "guest-npt-twice",
        "bit 38 of NPT becomes reserved and then an address bit again, all while L1 runs",
        lambda: _npt(
            _ENTER, _read(GVA_LOWER), _LEAVE, _width(NARROW), _width(WIDE), _ENTER, _read(GVA_UPPER)
        ),
        cpuid_after_run="allow",
    ),
    Witness(
        "guest-npt-in-l2",
        "bit 38 of NPT becomes reserved while L2 runs on guest_mmu; L2 reads on, is left and entered",
        lambda: _npt(
            _ENTER, _read(GVA_LOWER), _width(NARROW), _read(GVA_LOWER), _LEAVE, _ENTER, _read(GVA_UPPER)
        ),
        cpuid_after_run="allow",
    ),
    Witness(
        "guest-ept-narrows",
        "as with NPT, with EPT: there only the CPU role of guest_mmu is compared",
        lambda: _ept(_ENTER_VMX, _read(GVA_LOWER), _LEAVE_VMX, _width(NARROW), _ENTER_VMX, _read(GVA_UPPER)),
        cpuid_after_run="allow",
    ),
    Witness(
        "nested-nonpaging",
        "L2 has CR0.PG=0, so the level of nested_mmu is 0; CPUID changes while L1 runs; L2 is entered again",
        lambda: _npt(_ENTER, _LEAVE, _width(NARROW), _ENTER, ops.Nop(), _LEAVE, l2="np"),
        cpuid_after_run="allow",
    ),
    Witness(
        "nested-paging",
        "L2 has 4-level paging and its code mapped with bit 38, which becomes reserved while L1 runs; "
        "KVM emulates an instruction of L2",
        lambda: _npt(_ENTER, _LEAVE, _width(NARROW), _ENTER, _WRITE_CR4, code=HIGH),
        cpuid_after_run="allow",
    ),
    Witness(
        "free-roots-lock",
        "a signal ends KVM_RUN when the TDP MMU has a root already; CPUID changes, and the root is freed",
        lambda: _plain(_width(NARROW), ops.Nop(), host=_TDP),
        free_roots_lock="by_root_role",
        interrupted=True,
    ),
)


def witnesses() -> dict[str, Witness]:
    """Return the witnesses by name."""
    return {witness.name: witness for witness in _WITNESSES}
