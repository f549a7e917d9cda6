"""Hypervisors in a guest: an L1 of each kind with its tables for L2, random work for both, and a judge of it.

L1 writes its tables through a window of its own, and flushes as its manual
says before L2 runs again. So no stale translation is allowed, and each access
of L2 must go where a walk in two dimensions leads at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, product

from hypothesis import strategies as st

from mmulab.check.access import Access, TwoWalks, WrongAccess
from mmulab.check.allowed import two_walks, walks_of
from mmulab.check.control_block import ept_pointer, vmcb, vmcs
from mmulab.check.oracle import Oracle
from mmulab.kvm.vmx.vmcs12 import VMCS12, VMCS12_REVISION, VMCS12_SIZE
from mmulab.lab.cases.build import host_of, marks
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import EptTables, Tables, mode_of
from mmulab.trace.judge import access_kind
from mmulab.x86.ept import EPT_4LEVEL, EPT_5LEVEL
from mmulab.x86.mode import PAGING_PAE
from mmulab.x86.regs import EFER_SVME, X86_CR4_VMXE
from tests.kvm.guest import NX, PS, A, D, P, U, W

L1_ROOT, NESTED_ROOT, L2_ROOT = 0x10000, 0x14000, 0x18000
CONTROL_PAGE, VMXON_REGION = 0xB000, 0xC000
TABLES = 0x40000
PAGES = (0x100000, 0x101000, 0x300000, 0x302000)
LARGE_PAGE = 0x400000
NGPAS = (0x40000000, 0x40001000, 0x40200000, 0x40201000, 0x40400000)
"""Addresses that the nested tables map; without those, and of an L2 without paging, what L2 accesses."""
L2_OFFSET = 0x40000000
"""From an address of :data:`NGPAS` to that at which a paging L2 sees it."""
WINDOW, L2_WINDOW = 0x50000000, 0x60000000
"""Where L1 sees the tables for L2, and where L2 sees its own."""
FULL = P | W | U | A | D
GUEST_FLAGS = (FULL,) * 3 + (FULL & ~W, FULL & ~U, FULL & ~P, FULL & ~A, FULL & ~D, P | W | U, FULL | NX)
RESERVED = 1 << 46
_RWX = (7, 7, 3, 5, 1, 4, 2, 0)
_MARKS = (0, 1 << 8, 1 << 8 | 1 << 9)
EPT_LEAF = tuple(rwx | mt << 3 | marks for rwx, mt, marks in product(_RWX, (6, 6, 6, 2), _MARKS))
EPT_TABLE = tuple(rwx | marks for rwx, marks in product(_RWX, _MARKS))


@dataclass
class World:
    """An L1 with tables for its L2, ready to be given steps.

    Attributes
    ----------
    builder : ScenarioBuilder
    nested, own : Tables or None
        L1's nested tables; L2's own.
    windows : dict of int to int
        Where L1 sees each table.
    enter, leave, flush : str
        Ops: into L2, out of it, and what L1 does after it changed its nested tables.
    addresses : tuple of int
        What L2 accesses.
    """

    builder: ScenarioBuilder
    nested: Tables | None
    own: Tables | None
    windows: dict[int, int]
    enter: str
    leave: str
    flush: str = ""
    addresses: tuple[int, ...] = ()
    steps: list[str] = field(default_factory=list)

    def scenario(self, *more: str) -> Scenario:
        """Return the scenario of all steps so far, and of some more."""
        self.steps += more
        for step in self.steps:
            self.builder.op(step)
        return self.builder.build()

    def access(self, op: str) -> None:
        """Enter L2, unless it runs, and access something."""
        self.steps += [f"?{self.enter}", f"!{op}"]

    def edit(self, entry: int, value: int, size: int) -> None:
        """Leave L2, write an entry as L1, and flush."""
        at = self.windows[entry & ~0xFFF] | entry & 0xFFF
        self.steps += [f"!{self.leave}", *_stores(at, value, size, self.builder.mode)]
        self.steps += [self.flush] if self.flush else []

    def edit_as_l2(self, entry: int, value: int) -> None:
        """Write an entry of L2's own tables as L2, and load CR3 again."""
        assert self.own is not None
        at = L2_WINDOW + (self.own.pages.index(entry & ~0xFFF) << 12) | entry & 0xFFF
        size = self.own.mode.entry_bytes
        mode = "64" if self.own.mode.va_bits > 32 else "32"
        stores = [f"!{op}" for op in _stores(at, value, size, mode)]
        self.steps += [f"?{self.enter}", *stores, f"!cr3 {L2_ROOT:x}"]


def _stores(at: int, value: int, size: int, mode: str) -> list[str]:
    """Write an entry, the upper half first where code of 32 bits has to do it in two."""
    if size == 4 or mode in ("64", "57"):
        return [f"wr s {size} {at:x} {value:x}"]
    return [f"wr s 4 {at + 4:x} {value >> 32:x}", f"wr s 4 {at:x} {value & 0xFFFFFFFF:x}"]


def _fill_tables(builder: ScenarioBuilder, l1: Tables, nested: Tables | None, l2: str) -> World:
    """Map :data:`NGPAS`, through L2's tables and the nested ones, as far as there are some."""
    l1.identity(HELPER_S, HELPER_U)
    marks(builder)
    own, addresses = None, NGPAS
    if l2 != "np":
        own = Tables(builder, mode_of(MODES[l2]), L2_ROOT, count(TABLES + 0x20000, 0x1000))
        addresses = tuple(address + L2_OFFSET for address in NGPAS)
        own.identity(HELPER_S, HELPER_U)
        for address, page in zip(NGPAS, (*PAGES, PAGES[0]), strict=True):
            own.map(address + L2_OFFSET, address if nested else page)
        for number in range(8):  # more tables than there will be, mapped before all are made
            own.entry(L2_WINDOW + number * 0x1000)
        for number, table in enumerate(own.pages):
            own.map(L2_WINDOW + number * 0x1000, table)
    if nested is not None:
        nested.identity(HELPER_S, HELPER_U, *(own.pages if own else ()))
        for address, page in zip(NGPAS, (*PAGES, PAGES[0]), strict=True):
            nested.map(address, page)
    shown = [*(nested.pages if nested else ()), *(own.pages if own else ())]
    windows = {table: WINDOW + number * 0x1000 for number, table in enumerate(shown)}
    for table, window in windows.items():
        l1.map(window, table)
    return World(builder, nested, own, windows, f"vmrun {CONTROL_PAGE:x}", "", "", addresses)


def svm(l1: str, l2: str, l0: int, *, nested_paging: bool = True, **host: int) -> World:
    """Return an L1 on AMD; its VMRUN flushes by itself, because KVM follows no ASIDs."""
    builder = ScenarioBuilder(l1, cpu={"svm": 1}, host=host_of(l0, **{"npt": 1, "tdp_mmu": 0, **host}))
    regs = MODES[l1]._replace(cr3=L1_ROOT)
    regs = regs._replace(efer=regs.efer | EFER_SVME)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), L1_ROOT, count(TABLES, 0x1000))
    nested = None
    if nested_paging:
        nested = Tables(builder, mode_of(regs), NESTED_ROOT, count(TABLES + 0x10000, 0x1000))
    world = _fill_tables(builder, tables, nested, l2)
    vmcb(builder, CONTROL_PAGE, MODES[l2]._replace(cr3=L2_ROOT), NESTED_ROOT if nested else None)
    world.leave = "vmmcall"
    return world


def vmx(l2: str, levels: int, *, ad: bool, **host: int) -> World:
    """Return a 4-level L1 on Intel with EPT, which it flushes with INVEPT."""
    builder = ScenarioBuilder(
        "64", vendor="intel", cpu={"vmx": 1}, host=host_of(5, **{"ept": 1, "tdp_mmu": 0, **host})
    )
    regs = MODES["64"]._replace(cr3=L1_ROOT)
    regs = regs._replace(cr4=regs.cr4 | X86_CR4_VMXE)
    builder.sregs(*regs).fill(VMXON_REGION, VMCS12_SIZE, 0).value(4, VMXON_REGION, VMCS12_REVISION)
    tables = Tables(builder, mode_of(regs), L1_ROOT, count(TABLES, 0x1000))
    mode = EPT_5LEVEL if levels == 5 else EPT_4LEVEL
    nested = EptTables(builder, mode, NESTED_ROOT, count(TABLES + 0x10000, 0x1000))
    world = _fill_tables(builder, tables, nested, l2)
    l2_regs = MODES[l2]._replace(cr3=L2_ROOT)
    vmcs(builder, CONTROL_PAGE, regs, l2_regs, ept_pointer(NESTED_ROOT, levels, ad=ad), vpid=0)
    if l2 == "pae":
        assert world.own is not None
        for index in range(4):
            address = index << 30
            table = world.own.entry(address, 2) & ~0xFFF
            for half in range(2):
                at = CONTROL_PAGE + VMCS12[f"guest_pdptr{index}"].offset + 4 * half
                builder.value(4, at, (table | P) if half == 0 else 0)
    world.leave, world.flush = "vmcall", "?invept 2 0 0"
    world.steps += [f"vmxon {VMXON_REGION:x}"]
    return world


# Random work ------------------------------------------------------------------------


@st.composite
def entries(draw: st.DrawFn, tables: Tables, addresses: tuple[int, ...]) -> tuple[int, int]:
    """Draw an entry on the way to some address, and what to write there."""
    mode = tables.mode
    top = 2 if mode is PAGING_PAE else min(mode.root_level, 3)
    level = draw(st.sampled_from([1, 1, 1, *range(2, top + 1)]))
    address = draw(st.sampled_from(addresses))
    below = [draw(st.sampled_from(PAGES))]
    if level > 1:
        below = [tables.entry(draw(st.sampled_from(addresses)), level - 1) & ~0xFFF]
    large = level == 2 and draw(st.integers(0, 3)) == 0
    if isinstance(tables, EptTables):
        flags = draw(st.sampled_from(EPT_LEAF if level == 1 or large else EPT_TABLE))
    else:
        flags = draw(st.sampled_from(GUEST_FLAGS))
    value = (LARGE_PAGE | PS if large else below[0]) | flags
    if mode.entry_bytes == 8 and draw(st.integers(0, 15)) == 0:
        value |= RESERVED
    return tables.entry(address, level), value & ((1 << 8 * mode.entry_bytes) - 1)


ACCESSES = ("rd s 4 {:x}", "rd u 4 {:x}", "wr s 4 {:x} 5a5a5a90", "wr u 4 {:x} a5a5a590", "xc s {:x}")
_OFFSETS = {"r": 0, "w": 8, "x": 0x800}


@st.composite
def work(draw: st.DrawFn, world: World) -> Scenario:
    """Draw accesses of L2 and edits of the tables; each edit is followed by accesses that it concerns."""
    # A paging L2 goes to CPL 3 by an instruction in PAE mode, which would be one more access.
    users = world.own is not None and world.own.mode is not PAGING_PAE
    forms = [form for form in ACCESSES if users or " u " not in form]
    for _ in range(draw(st.integers(2, 7))):
        target = draw(st.sampled_from([t for t in (world.nested, world.nested, world.own) if t is not None]))
        where = world.addresses if target is world.own else NGPAS
        entry, value = draw(entries(target, where))
        if target is world.own and world.nested is not None and draw(st.booleans()):
            world.edit_as_l2(entry, value)
        else:
            world.edit(entry, value, target.mode.entry_bytes)
        for _ in range(draw(st.integers(1, 5))):
            form = draw(st.sampled_from(forms))
            world.access(form.format(draw(st.sampled_from(world.addresses)) + _OFFSETS[form[0]]))
    return world.scenario()


# The judge ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """An access of L2: what came of it, and the walks before and after it."""

    result: Result
    access: Access
    wrong: WrongAccess | None
    before: TwoWalks
    after: TwoWalks | None
    """None: L2 was left."""

    def check(self) -> None:
        """Fail unless L2 arrived where the walks lead, or L1 or L2 was told of the fault that they give."""
        assert self.wrong is None, str(self.wrong)
        if self.result.outcome.kind is OutcomeKind.OK:
            assert self.after is not None
            assert self.after.gpa == self.before.gpa
            # What an access used is marked: A everywhere, D where it wrote.
            assert all(walk.ad_done for walk in (self.after.outer, *self.after.inner)), str(self.after)


def run(scenario: Scenario) -> Iterator[Judged]:
    """Run a scenario, and yield each access of L2."""
    runner = Runner(scenario)
    machine, running = runner.machine, runner.results()
    vcpu, oracle = machine.kvm.vcpus[0], Oracle(machine)
    oracle.judge(next(running))
    for step in scenario.steps:
        if step.when and (step.when == "!") != vcpu.guest_mode:
            continue
        access = step.op if isinstance(step.op, Access) and vcpu.guest_mode else None
        before = None if access is None else walks_of(machine, access)
        result = next(running)
        while result.op is not step.op:
            oracle.judge(result)
            result = next(running)
        _, _, wrong = oracle.judge(result)
        if access is not None and before is not None:
            kind = access_kind(access)
            after = two_walks(machine, access.gva, kind) if vcpu.guest_mode else None
            yield Judged(result, access, wrong, before, after)
        assert result.outcome.kind not in (OutcomeKind.SHUTDOWN, OutcomeKind.HANG, OutcomeKind.INTERNAL_ERROR)
