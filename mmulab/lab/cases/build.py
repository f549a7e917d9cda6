"""The scenarios of the cases: a guest of each kind, with two pages, one of which moves.

The two pages lie in the two halves of one 4 MiB region, so that a table of
4-byte entries needs both of its quadrants. After both were touched, the owner
of the tables changes the entry of the second page, flushes, and looks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise

from mmulab.check.control_block import vmcb, with_svme
from mmulab.kvm.vmx.vmcs12 import VMCS12
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_PML4, HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Fill, Regs, Scenario, Value
from mmulab.scenario.tables import TABLE_FLAGS, Tables, mode_of
from mmulab.x86.ept import VMX_EPTP_PWL_5, VMX_EPTP_PWL_MASK
from mmulab.x86.mode import (
    VMX_EPT_RWX_MASK,
)
from mmulab.x86.regs import X86_CR0_PG, X86_CR4_PSE

L1_ROOT, NPT_ROOT, L2_ROOT, VMCB_GPA = 0x10000, 0x14000, 0x18000, 0xB000
TABLES = 0x40000
"""Where further tables are taken from."""
LOWER, UPPER, MOVED = 0x100000, 0x300000, 0x302000
"""Guest-physical addresses of the first page, of the second, and of where the second moves."""
GVA_LOWER, GVA_UPPER = 0x40000000, 0x40200000
L2_LOWER, L2_UPPER = 0x80000000, 0x80200000
TABLE_VA = 0x40100000
"""Where the owner of the tables sees the one that maps the second page."""
VALUE = 0x55AA5590

_PAGE = 4096


def host_of(l0: int, **parameters: int) -> dict[str, int]:
    """Return the parameters of a host with so many levels of its own."""
    return {"virt_bits": 57 if l0 == 5 else 48, **parameters}


def _free() -> Iterator[int]:
    return count(TABLES, _PAGE)


def marks(builder: ScenarioBuilder) -> None:
    """Give every page a value of its own, so that a wrong one is seen by what is read."""
    for page in (LOWER, UPPER, MOVED):
        builder.value(4, page, 0xC0DE0000 | page >> 12)


def _read(address: int) -> ops.Read:
    return ops.Read(Mode.SUPERVISOR, 4, address)


def _write(address: int, value: int) -> ops.Write:
    return ops.Write(Mode.SUPERVISOR, 4, address, value)


def _add(builder: ScenarioBuilder, *steps: Op) -> None:
    for op in steps:
        builder.op(op)


def plain_guest(mode: str, l0: int, *, vendor: str = "amd", pse: bool = True, **host: int) -> Scenario:
    """Return a guest without a guest of its own.

    Parameters
    ----------
    mode : {"np", "32", "pae", "64", "57"}
    l0 : {4, 5}
        Levels of the host's own paging.
    vendor : {"amd", "intel"}
    pse : bool
        CR4.PSE of a 32-bit guest.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    builder = ScenarioBuilder(mode, vendor=vendor, host=host_of(l0, **host))
    marks(builder)
    regs = MODES[mode]
    if not regs.cr0 & X86_CR0_PG:
        _add(builder, _read(LOWER), _write(LOWER + 8, VALUE), _read(UPPER), _read(MOVED))
        return builder.build()
    if not pse:
        regs = regs._replace(cr4=regs.cr4 & ~X86_CR4_PSE)
    builder.sregs(*regs._replace(cr3=L1_ROOT))
    entry = _own_pages(builder, Tables(builder, mode_of(regs), L1_ROOT, _free()))
    _add(
        builder,
        _read(GVA_LOWER),
        _write(GVA_LOWER + 8, VALUE),
        _read(GVA_UPPER),
        _write(TABLE_VA | entry & 0xFFF, MOVED | TABLE_FLAGS),
        ops.Invlpg(GVA_UPPER),
        _read(GVA_UPPER),
    )
    return builder.build()


def _own_pages(builder: ScenarioBuilder, tables: Tables) -> int:
    """Map the helper pages, the two pages and the table of the second; return the latter's entry."""
    tables.identity(HELPER_S, HELPER_U)
    tables.map(GVA_LOWER, LOWER)
    tables.map(GVA_UPPER, UPPER)
    entry = tables.entry(GVA_UPPER)
    tables.map(TABLE_VA, entry & ~0xFFF)
    return entry


def nested_guest(l1: str, l2: str, l0: int, *, nested_paging: bool, **host: int) -> Scenario:
    """Return an L1 hypervisor on AMD with a guest of its own.

    Parameters
    ----------
    l1, l2 : {"np", "32", "pae", "64", "57"}
        Paging of L1, whose form its nested tables have too, and of L2.
    l0 : {4, 5}
    nested_paging : bool
        L1 gives L2 nested page tables.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    builder = ScenarioBuilder(l1, cpu={"svm": 1}, host=host_of(l0, **host))
    marks(builder)
    free = _free()
    regs = with_svme(MODES[l1]._replace(cr3=L1_ROOT))
    builder.sregs(*regs)
    own = Tables(builder, mode_of(regs), L1_ROOT, free)
    own.identity(HELPER_S, HELPER_U)
    lower, upper, l2_pages, shown = L2_LOWER, L2_UPPER, [], None
    if l2 == "np":
        lower, upper = (GVA_LOWER, GVA_UPPER) if nested_paging else (LOWER, UPPER)
    else:
        shown = Tables(builder, mode_of(MODES[l2]), L2_ROOT, free)
        if l2 == "pae":
            builder.pdptfix(L2_ROOT)  # so that an emulated processor can run it too
        shown.identity(HELPER_S, HELPER_U)
        shown.map(L2_LOWER, GVA_LOWER if nested_paging else LOWER)
        shown.map(L2_UPPER, GVA_UPPER if nested_paging else UPPER)
        l2_pages = shown.pages
    if nested_paging:
        shown = Tables(builder, mode_of(regs), NPT_ROOT, free)
        shown.identity(HELPER_S, HELPER_U, *l2_pages)
        shown.map(GVA_LOWER, LOWER)
        shown.map(GVA_UPPER, UPPER)
    l2_regs = MODES[l2]._replace(cr3=0 if l2 == "np" else L2_ROOT)
    vmcb(builder, VMCB_GPA, l2_regs, NPT_ROOT if nested_paging else None)
    enter, leave = ops.Vmrun(VMCB_GPA), ops.Vmmcall()
    _add(builder, enter, _read(lower), _write(lower + 8, VALUE), _read(upper), leave)
    if shown is not None:
        entry = shown.entry(GVA_UPPER if nested_paging else L2_UPPER)
        own.map(TABLE_VA, entry & ~0xFFF)
        _add(builder, _write(TABLE_VA | entry & 0xFFF, MOVED | TABLE_FLAGS))
    _add(builder, enter, _read(upper), leave)
    return builder.build()


def npt_of_nonpaging_l2(l1: str, l0: int) -> tuple[ScenarioBuilder, Tables, Tables]:
    """Return a builder with L1, an L2 without paging and L1's NPT; L1's own tables and its NPT."""
    builder = ScenarioBuilder(l1, cpu={"svm": 1}, host=host_of(l0, npt=1, tdp_mmu=0))
    marks(builder)
    free = _free()
    regs = with_svme(MODES[l1]._replace(cr3=L1_ROOT))
    builder.sregs(*regs)
    own = Tables(builder, mode_of(regs), L1_ROOT, free)
    npt = Tables(builder, mode_of(regs), NPT_ROOT, free)
    for tables in (own, npt):
        tables.identity(HELPER_S, HELPER_U)
    npt.map(GVA_LOWER, LOWER)
    vmcb(builder, VMCB_GPA, MODES["np"], NPT_ROOT)
    return builder, own, npt


def nested_fault(l1: str, l0: int) -> Scenario:
    """Return an L1 that maps a page of L2 only after L2's #NPF told it to.

    Parameters
    ----------
    l1 : {"32", "pae", "64", "57"}
    l0 : {4, 5}
    """
    builder, own, npt = npt_of_nonpaging_l2(l1, l0)
    entry = npt.entry(GVA_UPPER)
    own.map(TABLE_VA, entry & ~0xFFF)
    enter, leave = ops.Vmrun(VMCB_GPA), ops.Vmmcall()
    _add(builder, enter, _write(GVA_UPPER, VALUE), _write(TABLE_VA | entry & 0xFFF, UPPER | TABLE_FLAGS))
    _add(builder, enter, _read(GVA_UPPER), leave)
    return builder.build()


def nested_root_write(l1: str, l0: int) -> Scenario:
    """Return an L1 that writes the first entry of its nested root again, as it was, between two runs.

    Parameters
    ----------
    l1 : {"32", "64", "57"}
        The root of PAE's NPT is no table that KVM shadows.
    l0 : {4, 5}
    """
    builder, own, npt = npt_of_nonpaging_l2(l1, l0)
    own.map(TABLE_VA, NPT_ROOT)
    first = npt.pages[1]
    enter, leave = ops.Vmrun(VMCB_GPA), ops.Vmmcall()
    _add(builder, enter, _read(GVA_LOWER), leave, _write(TABLE_VA, first | TABLE_FLAGS))
    _add(builder, enter, _read(GVA_LOWER), leave)
    return builder.build()


ROOT5 = 0x11000
ENTRY_VA = 0x3000
"""Address that the tables of the LA57 switch lead to another page in each mode."""


def _two_way_tables(builder: ScenarioBuilder, root: int) -> None:
    """Write tables at `root` that hold in 4- and in 5-level paging, and differ at :data:`ENTRY_VA`.

    Four tables in a row. The fourth is a page to 4-level paging, which comes
    to a leaf one table sooner, and the table of leaves to 5-level paging.
    """
    tables = [root, TABLES, TABLES + _PAGE, TABLES + 2 * _PAGE, TABLES + 3 * _PAGE]
    for table in tables:
        builder.fill(table, _PAGE, 0)
    for table, below in pairwise(tables):
        builder.value(8, table, below | TABLE_FLAGS)
    for leaves, page in ((tables[3], LOWER), (tables[4], UPPER)):
        for helper in (HELPER_S, HELPER_U):
            builder.value(8, leaves + 8 * (helper >> 12), helper | TABLE_FLAGS)
        builder.value(8, leaves + 8 * (ENTRY_VA >> 12), page | TABLE_FLAGS)


def _switch(old: Regs, new: Regs) -> list[Op]:
    """Change CR4.LA57: paging off from compatibility mode, CR4, CR3, paging on (SDM 3, 4.1.2)."""
    return [
        ops.WriteCr(0, old.cr0 & ~X86_CR0_PG, compat=True),
        ops.WriteCr(4, new.cr4),
        ops.WriteCr(3, new.cr3),
        ops.WriteCr(0, new.cr0),
    ]


def _in_order(regs: dict[str, Regs], first: str) -> tuple[Regs, Regs]:
    return (regs["64"], regs["57"]) if first == "64" else (regs["57"], regs["64"])


def la57_switch_nested(first: str, l0: int) -> Scenario:
    """Return an L1 that runs L2 before and after a change of CR4.LA57, on the same nested root.

    Parameters
    ----------
    first : {"64", "57"}
        L1's paging before the change; it ends in the other one.
    l0 : {4, 5}
    """
    builder = ScenarioBuilder("57", cpu={"svm": 1}, host=host_of(l0, npt=1, tdp_mmu=0))
    marks(builder)
    # The root of 5-level paging has the 4-level root as its first entry.
    builder.root(ROOT5)
    _two_way_tables(builder, NPT_ROOT)
    vmcb(builder, VMCB_GPA, MODES["np"], NPT_ROOT)
    roots = {"64": HELPER_PML4, "57": ROOT5}
    regs = {mode: with_svme(MODES[mode]._replace(cr3=cr3)) for mode, cr3 in roots.items()}
    old, new = _in_order(regs, first)
    builder.sregs(*old)
    visit = [ops.Vmrun(VMCB_GPA), _read(ENTRY_VA), ops.Vmmcall()]
    _add(builder, *visit, *_switch(old, new), *visit)
    return builder.build()


def la57_switch_shadow(first: str, l0: int, **host: int) -> Scenario:
    """Return a guest that changes its own CR4.LA57 and keeps its root.

    Parameters
    ----------
    first : {"64", "57"}
    l0 : {4, 5}
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    builder = ScenarioBuilder("57", host=host_of(l0, **host))
    marks(builder)
    _two_way_tables(builder, L1_ROOT)
    regs = {mode: MODES[mode]._replace(cr3=L1_ROOT) for mode in ("64", "57")}
    old, new = _in_order(regs, first)
    builder.sregs(*old)
    _add(builder, _read(ENTRY_VA), *_switch(old, new), _read(ENTRY_VA))
    return builder.build()


def below_level_5(scenario: Scenario) -> Scenario:
    """Return the scenario of an L1 with 4-level EPT with one more level above, on a host that has five.

    Entry 0 of the new root, at :data:`TABLES`, leads to the old one and grants
    everything, so L2 sees no difference: all its addresses are below 48 bits.
    KVM offers L1 a page-walk length of 5 if the host has it, whatever L1's own
    paging (``nested_vmx_check_eptp`` in Linux 6.1's ``vmx/nested.c``).

    Parameters
    ----------
    scenario : Scenario
        Its header holds the VMCS of its first VMRUN, and nothing at :data:`TABLES`.
    """
    header = scenario.header
    vmcs = next(step.op.gpa for step in scenario.steps if isinstance(step.op, ops.Vmrun))
    at = vmcs + VMCS12["ept_pointer"].offset
    old = next(value for value in header.values if value.gpa == at)
    flags = old.value & (_PAGE - 1) & ~VMX_EPTP_PWL_MASK
    pointer = old._replace(value=TABLES | flags | VMX_EPTP_PWL_5)
    entry = Value(8, TABLES, old.value & -_PAGE | VMX_EPT_RWX_MASK)
    changed = replace(
        header,
        host={**header.host, "virt_bits": 57},
        fills=(*header.fills, Fill(TABLES, _PAGE, 0)),
        values=(*(pointer if value is old else value for value in header.values), entry),
    )
    return replace(scenario, header=changed)
