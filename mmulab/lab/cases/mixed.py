"""Scenarios in which the same table pages serve under more than one set of rules.

Whatever a role word leaves out, some pair of these rules differs in it alone:
the width of entries, rights by the way to a table, CR0.WP, SMEP, SMAP, EFER.NX,
paging off. A register write or INVLPG precedes every judged access, so that
nothing may be remembered of the rules before.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.check.control_block import vmcb
from mmulab.kvm.svm.nested import VMCB
from mmulab.lab.cases.build import GVA_LOWER, GVA_UPPER, L1_ROOT, LOWER, MOVED, UPPER, VALUE, VMCB_GPA
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs, Scenario
from mmulab.scenario.tables import TABLE_FLAGS, Tables, mode_of
from mmulab.x86.mode import PT64_NX_SHIFT, PT_PRESENT_MASK, PT_USER_MASK, PT_WRITABLE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    EFER_SVME,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)

_PAGE = 4096
SUPERVISOR, READ_ONLY = TABLE_FLAGS & ~PT_USER_MASK, TABLE_FLAGS & ~PT_WRITABLE_MASK
RO_PAGE, NX_PAGE = 0x304000, 0x306000
MARKED = (LOWER, UPPER, MOVED, RO_PAGE, NX_PAGE)


def _builder(mode: str, l0: int, **host: int) -> ScenarioBuilder:
    host = {"virt_bits": 57 if l0 == 5 else 48, "tdp_mmu": 0, **host}
    builder = ScenarioBuilder(mode, cpu={"svm": 1}, host=host)
    for page in MARKED:
        builder.value(4, page, 0xC0DE0000 | page >> 12)
    return builder


def _free() -> Iterator[int]:
    return iter(range(0x40000, 0x80000, _PAGE))


def _read(gva: int, mode: Mode = Mode.SUPERVISOR) -> Op:
    return ops.Read(mode, 4, gva)


def _write(gva: int, value: int = VALUE, mode: Mode = Mode.SUPERVISOR) -> Op:
    return ops.Write(mode, 4, gva, value)


def _execute(page: int) -> Op:
    """Return a fetch from the middle of a page, where the mark is not and a NOP is."""
    return ops.Execute(Mode.SUPERVISOR, page | 0x800)


def _done(builder: ScenarioBuilder, steps: list[Op]) -> Scenario:
    for op in steps:
        builder.op(op)
    return builder.build()


def _guest(mode: str) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest without TDP whose helper page is out of SMEP's and SMAP's reach."""
    builder = _builder(mode, 4)
    regs = MODES[mode]._replace(cr3=L1_ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), L1_ROOT, _free())
    tables.map(HELPER_S, HELPER_S, flags=SUPERVISOR)
    tables.identity(HELPER_U)
    return builder, tables, regs


def _rights(page: int, regs: Regs, *, smep: bool, smap: bool, wp: bool) -> list[Op]:
    """Write to a user's read-only page with CR0.WP=0, then turn on what that makes KVM careful about.

    The spte that lets the supervisor write keeps the user out (U=0), so it may
    serve neither when CR0.WP is 1, nor for a fetch under SMEP or a read under SMAP.
    """
    steps: list[Op] = [ops.WriteCr(0, regs.cr0 & ~X86_CR0_WP), _write(page)]
    if smep:
        steps += [ops.WriteCr(4, regs.cr4 | X86_CR4_SMEP), _execute(page), ops.WriteCr(4, regs.cr4)]
        steps += [_execute(page)]
    if smap:
        steps += [ops.WriteCr(4, regs.cr4 | X86_CR4_SMAP), _read(page), ops.WriteCr(4, regs.cr4), _read(page)]
    steps += [ops.WriteCr(0, regs.cr0)]
    return [*steps, _write(page), _read(page, Mode.USER)] if wp else steps


def mixed_rights(mode: str, *, smep: bool = False, smap: bool = False, wp: bool = False) -> Scenario:
    """Return a guest that writes to a read-only page with CR0.WP=0, then uses it under stricter rules.

    Parameters
    ----------
    mode : {"32", "pae", "64"}
    smep, smap, wp : bool
        Under which: CR4.SMEP or CR4.SMAP while CR0.WP is still 0, or CR0.WP=1.
    """
    builder, tables, regs = _guest(mode)
    tables.map(GVA_LOWER, RO_PAGE, flags=READ_ONLY)
    return _done(builder, _rights(GVA_LOWER, regs, smep=smep, smap=smap, wp=wp))


def mixed_access(mode: str) -> Scenario:
    """Return a guest with three directory entries to one table: of every right, read-only, supervisor.

    Parameters
    ----------
    mode : {"32", "pae", "64"}
    """
    builder, tables, _ = _guest(mode)
    tables.map(GVA_LOWER, LOWER)
    below, step = tables.entry(GVA_LOWER) & -_PAGE, 1 << tables.mode.level_shift(2)
    read_only, supervisor = GVA_LOWER + step, GVA_LOWER + 2 * step
    for address, flags in ((read_only, READ_ONLY), (supervisor, SUPERVISOR)):
        builder.value(tables.mode.entry_bytes, tables.entry(address, 2), below | flags)
    accesses = [_write(GVA_LOWER), _write(read_only), _read(read_only), _write(supervisor)]
    users = [_read(GVA_LOWER, Mode.USER), _read(supervisor, Mode.USER), _write(read_only, mode=Mode.USER)]
    return _done(builder, [*accesses, *users, _read(GVA_LOWER)])


def mixed_halves() -> Scenario:
    """Return a 32-bit guest that goes back and forth between the two halves of one table.

    Each half is a shadow page of its own, told apart by its quadrant alone.
    """
    builder, tables, _ = _guest("32")
    tables.map(GVA_LOWER, LOWER)
    tables.map(GVA_UPPER, UPPER)
    return _done(builder, [_read(GVA_LOWER), _read(GVA_UPPER), _write(GVA_LOWER), _read(GVA_UPPER)])


def mixed_direct() -> Scenario:
    """Return a PAE guest with CR0.WP=0 whose directory lies at address 0, and which turns paging off.

    With paging off KVM maps the first GiB by a direct page of the same gfn and level.
    """
    builder, tables, regs = _guest("pae")
    tables.map(0x5000, LOWER)
    table = tables.entry(HELPER_S) & -_PAGE
    # In place of the directory that was made, one at 0, and the PDPTE that leads there.
    builder.fill(0, _PAGE, 0).value(8, 0, table | TABLE_FLAGS).value(8, L1_ROOT, PT_PRESENT_MASK)
    on = regs.cr0 & ~X86_CR0_WP
    builder.sregs(*regs._replace(cr0=on))
    steps: list[Op] = [_read(0x5000), ops.WriteCr(0, on & ~X86_CR0_PG), _read(0x5000), _read(LOWER)]
    return _done(builder, [*steps, ops.WriteCr(0, on), _read(0x5000)])


def mixed_npt_nx(l0: int) -> Scenario:
    """Return an L1 that toggles EFER.NX between runs of L2 on an NPT with NX set in a leaf.

    With EFER.NX=0 the bit is reserved, and L2's access ends in a #NPF (APM 2, 5.3).

    Parameters
    ----------
    l0 : {4, 5}
    """
    builder = _builder("64", l0, npt=1)
    free = _free()
    regs = MODES["64"]._replace(cr3=L1_ROOT, efer=MODES["64"].efer | EFER_SVME)
    builder.sregs(*regs)
    Tables(builder, mode_of(regs), L1_ROOT, free).identity(HELPER_S, HELPER_U)
    npt = Tables(builder, mode_of(regs), 0x14000, free)
    npt.identity(HELPER_S, HELPER_U)
    npt.map(GVA_LOWER, NX_PAGE, flags=TABLE_FLAGS | 1 << PT64_NX_SHIFT)
    vmcb(builder, VMCB_GPA, MODES["np"], 0x14000)
    visit: list[Op] = [ops.Vmrun(VMCB_GPA), _read(GVA_LOWER)]
    off = ops.WriteEfer(regs.efer & ~(EFER_NX | EFER_LMA))
    on = ops.WriteEfer(regs.efer & ~EFER_LMA)
    # The #NPF is an exit of L2 by itself.
    return _done(builder, [*visit, ops.Vmmcall(), off, *visit, on, *visit, ops.Vmmcall()])


class _SharedTables:
    """One directory and one table that 32-bit, PAE and 4-level paging all use.

    To 32-bit paging the directory is the root. The table holds 8-byte entries
    with small addresses, whose halves are 4-byte entries: entry `k` of PAE and
    4-level paging is entry ``2 * k`` of 32-bit paging. Two odd ones, which the
    wide modes never use, map the helper pages of 32-bit paging.

    Parameters
    ----------
    builder : ScenarioBuilder
    base : int
        Address of seven pages.
    helper : int
        Flags of the supervisor's helper page.
    """

    def __init__(self, builder: ScenarioBuilder, base: int, helper: int) -> None:
        self.builder = builder
        pages = range(base, base + 7 * _PAGE, _PAGE)
        self.pml4, pdpt, self.pdptes, low, helpers, self.directory, self.table = pages
        for page in pages:
            builder.fill(page, _PAGE, 0)
        for entry, target in ((self.pml4, pdpt), (pdpt, low), (pdpt + 8, self.directory), (low, helpers)):
            builder.value(8, entry, target | TABLE_FLAGS)
        builder.value(8, self.pdptes, low | PT_PRESENT_MASK)
        builder.value(8, self.pdptes + 8, self.directory | PT_PRESENT_MASK)
        builder.value(8, self.directory, self.table | TABLE_FLAGS)
        for address, flags in ((HELPER_S, helper), (HELPER_U, TABLE_FLAGS)):
            builder.value(8, helpers + 8 * (address >> 12), address | flags)
            builder.value(4, self.table + 4 * (address >> 12), address | flags)

    def map(self, index: int, target: int, flags: int = TABLE_FLAGS) -> None:
        """Set an 8-byte entry of the table, the first two of which are not free."""
        self.builder.value(8, self.table + 8 * index, target | flags)

    def root(self, mode: str) -> int:
        """Return the CR3 of a mode."""
        return {"32": self.directory, "pae": self.pdptes, "64": self.pml4}[mode]

    def va(self, mode: str, index: int) -> int:
        """Return where a mode sees the page of an entry."""
        return 2 * index << 12 if mode == "32" else 0x40000000 | index << 12


MAPPED, OTHER, RO, SELF, NX = 4, 8, 10, 12, 14
"""Entries of the shared table."""
TURN = ("32", "pae", "64", "pae", "32", "64")
"""Paging modes in turn: every change between two of them but one, and back."""


def _enter(old: Regs, new: Regs) -> list[Op]:
    """Change the paging mode by way of paging off; from 64-bit mode by way of compatibility mode."""
    off = old.cr0 & ~X86_CR0_PG
    return [
        ops.WriteCr(0, off, compat=bool(old.efer & EFER_LMA)),
        ops.WriteCr(4, new.cr4),
        ops.WriteCr(3, new.cr3),
        ops.WriteEfer(new.efer & ~EFER_LMA),
        ops.WriteCr(0, new.cr0),
    ]


def mixed_modes(l0: int, *, nested: bool) -> Scenario:
    """Return a guest without TDP that uses one directory and one table in 32-bit, PAE and 4-level paging.

    In each it reads through the shared table, changes an entry of it, and goes
    through the toggles of CR0.WP, SMEP, SMAP and EFER.NX. While EFER.NX is 0 it
    does not read where an entry has bit 63 set: 6.1 lets such a read pass if the
    page was shadowed before, as the recording ``sh/efer-nx-64`` shows (op 31).

    Parameters
    ----------
    l0 : {4, 5}
    nested : bool
        In each mode it runs an L2 besides, without NPT, in PAE paging on the same tables.
    """
    builder = _builder("32", l0)
    tables = _SharedTables(builder, 0x10000, SUPERVISOR)
    tables.map(MAPPED, LOWER)
    tables.map(OTHER, UPPER)
    tables.map(RO, RO_PAGE, READ_ONLY)
    tables.map(SELF, tables.table, SUPERVISOR)
    tables.map(NX, NX_PAGE, TABLE_FLAGS | 1 << PT64_NX_SHIFT)
    svme = EFER_SVME if nested else 0
    regs = {
        mode: MODES[mode]._replace(cr3=tables.root(mode), efer=MODES[mode].efer | svme)
        for mode in ("32", "pae", "64")
    }
    if nested:
        vmcb(builder, VMCB_GPA, regs["pae"], None)
    builder.sregs(*regs[TURN[0]])
    steps: list[Op] = []
    for number, mode in enumerate(TURN):
        if number:
            steps += _enter(regs[TURN[number - 1]], regs[mode])
        steps += _visit(tables, mode, regs[mode], UPPER if number % 2 else MOVED)
        if nested:
            inside = tables.va("pae", MAPPED)
            l2 = [ops.WriteCr(3, tables.root("pae")), _read(inside), _write(inside + 8, number)]
            steps += [ops.Vmrun(VMCB_GPA), *l2, ops.Vmmcall(), _read(tables.va(mode, MAPPED))]
    return _done(builder, steps)


def _visit(tables: _SharedTables, mode: str, regs: Regs, target: int) -> list[Op]:
    """Use the shared table in a mode: read, let an entry point elsewhere, toggle the rules."""
    mapped, other, ro, own, nx = (tables.va(mode, index) for index in (MAPPED, OTHER, RO, SELF, NX))
    change = _write(own + 8 * MAPPED, target | TABLE_FLAGS)
    steps = [_read(mapped), _read(other), change, ops.Invlpg(mapped), _read(mapped), _write(mapped + 4)]
    steps += _rights(ro, regs, smep=True, smap=True, wp=True)
    if mode == "32":
        return steps
    plain = regs.efer & ~EFER_LMA
    off, on = ops.WriteEfer(plain & ~EFER_NX), ops.WriteEfer(plain)
    return [*steps, _read(nx), _execute(nx), off, _execute(nx), _read(mapped), on, _read(nx)]


def mixed_npt_modes(l0: int) -> Scenario:
    """Return an L1 that runs L2 on one directory and one table of NPT in each of its own paging modes.

    Its NPT has the format of its own paging, so the same pages are read as
    tables of 4- and of 8-byte entries.

    Parameters
    ----------
    l0 : {4, 5}
    """
    builder = _builder("32", l0, npt=1)
    own = _SharedTables(builder, 0x10000, SUPERVISOR)
    npt = _SharedTables(builder, 0x20000, TABLE_FLAGS)
    npt.map(MAPPED, LOWER)
    npt.map(OTHER, UPPER)
    own.map(SELF, npt.table, SUPERVISOR)
    vmcb(builder, VMCB_GPA, MODES["np"], npt.root("32"))
    own.map(RO, VMCB_GPA, SUPERVISOR)
    regs = {
        mode: MODES[mode]._replace(cr3=own.root(mode), efer=MODES[mode].efer | EFER_SVME)
        for mode in ("32", "pae", "64")
    }
    builder.sregs(*regs[TURN[0]])
    steps: list[Op] = []
    at = VMCB["nested_cr3"][0]
    for number, mode in enumerate(TURN):
        if number:
            steps += _enter(regs[TURN[number - 1]], regs[mode])
        mapped, other = npt.va(mode, MAPPED), npt.va(mode, OTHER)
        target = UPPER if number % 2 else MOVED
        steps += [_write(own.va(mode, RO) + at, npt.root(mode))]
        steps += [ops.Vmrun(VMCB_GPA), _read(mapped), _read(other), ops.Vmmcall()]
        steps += [_write(own.va(mode, SELF) + 8 * MAPPED, target | TABLE_FLAGS)]
        steps += [ops.Vmrun(VMCB_GPA), _read(mapped), ops.Vmmcall()]
    return _done(builder, steps)
