"""Random guests: tables that lead to each other in every way, and ops that disturb them.

Addresses are few and share tables, so that a short list of ops maps, protects,
unsyncs, syncs and zaps the same pages again and again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

from hypothesis import strategies as st

from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op
from mmulab.x86.regs import (
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_PAE,
    X86_CR4_PGE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from tests.kvm.guest import MIB, MODES, NX, PS, REGS, A, D, G, P, U, W

SLOT0 = SlotConfig(0, 0, 8 * MIB, 0, 0)
SLOT1_GPA, SLOT1_MOVED = 0x1000000, 0x1100000
HOLE = 0x4000000
DATA = tuple(range(0x10000, 0x14000, 0x1000))
LARGE = (0, 2 * MIB, 4 * MIB)
ROOTS, TABLES_PER_LEVEL = 2, 3
INDEXES = {4: (0, 1, 9, 0x200, 0x203), 8: (0, 1, 9, 0x1FF)}
"""Entries in use, by their width: neighbours, one beyond a prefetch group, another quadrant."""
TOP_INDEXES = {"32": (0, 0x101, 0x200), "pae": (0, 1, 3), "64": (0, 0x1FF), "57": (0, 0x1FF)}


@dataclass(frozen=True)
class Layout:
    """Where the tables of a mode lie, and which addresses lead through them.

    Attributes
    ----------
    tables : dict of int to tuple of int
        GPAs of the tables by level.
    gvas : tuple of int
        A page each.
    targets : dict of int to tuple of int
        What an entry of a level may point to; often what it should.
    """

    name: str
    tables: dict[int, tuple[int, ...]]
    gvas: tuple[int, ...]
    targets: dict[int, tuple[int, ...]]

    @property
    def roots(self) -> tuple[int, ...]:
        """GPAs of the root tables."""
        return self.tables[MODES[self.name].root_level or 4]

    def indexes(self, level: int) -> tuple[int, ...]:
        """Return the indexes in use of a table of `level`."""
        mode = MODES[self.name]
        return TOP_INDEXES[self.name] if level == mode.root_level else INDEXES[mode.entry_bytes]


def layout_of(name: str) -> Layout:
    """Return the layout of a paging mode; without paging, tables are just data."""
    mode = MODES[name]
    levels = range(1, (mode.root_level or 4) + 1)
    pages = iter(range(0x300000, 0x400000, 0x1000))
    tables = {}
    for level in levels:
        count = ROOTS if level == max(levels) else TABLES_PER_LEVEL
        tables[level] = tuple(next(pages) for _ in range(count))
    every = tuple(gpa for level in levels for gpa in tables[level])
    data = (*DATA, SLOT1_GPA, SLOT1_MOVED, HOLE)
    targets = {level: tables[level - 1] * 6 + LARGE + every[-2:] for level in levels if level > 1}
    targets[1] = data + tables[1] * 2 + every[-4:]
    if not mode.root_level:
        gvas = tuple(gpa + 8 for gpa in (*data, *every))
        return Layout(name, tables, gvas, targets)
    indexes = [INDEXES[mode.entry_bytes][:3] for _ in range(1, mode.root_level)]
    gvas = []
    for top, *rest in product(TOP_INDEXES[name], *indexes):
        gva = top << mode.level_shift(mode.root_level)
        for level, index in zip(range(mode.root_level - 1, 0, -1), rest, strict=True):
            gva |= index << mode.level_shift(level)
        if mode.va_bits > 32 and gva >> mode.va_bits - 1:
            gva |= (1 << 64) - (1 << mode.va_bits)
        gvas.append(gva)
    random.Random(name).shuffle(gvas)
    return Layout(name, tables, tuple(gvas[:24]), targets)


def entry_of(rng: random.Random, layout: Layout, level: int) -> int:
    """Draw an entry of `level`, most often one that a walk can pass."""
    entry = rng.choice(layout.targets[level])
    rare = 0.95 if level == 1 else 0.98
    for bit, share in ((P, rare), (W, rare - 0.08), (U, rare), (A, 0.75), (D, 0.6), (G, 0.1)):
        entry |= bit if rng.random() < share else 0
    if level > 1 and entry & ~0xFFF in LARGE:
        entry |= PS if rng.random() < 0.95 else 0
    mode = MODES[layout.name]
    if mode.has_pdptes and level == mode.root_level:
        return entry & ~0xE6
    if mode.entry_bytes == 8 and rng.random() < 0.05:
        entry |= NX
    return entry


def random_host(rng: random.Random, *, tdp: bool) -> HostConfig:
    """Draw a host that shadows the guest's tables, or one with NPT or EPT."""
    vendor = rng.choice(("amd", "intel"))
    if not tdp:
        return HostConfig(vendor=vendor, nx_huge_pages=rng.random() < 0.3, mmio_caching=rng.random() < 0.5)
    return HostConfig(
        vendor=vendor,
        tdp=True,
        tdp_mmu=rng.random() < 0.5,
        eptad=rng.random() < 0.7,
        nx_huge_pages=rng.random() < 0.3,
        mmio_caching=rng.random() < 0.5,
        eager_page_split=rng.random() < 0.5,
    )


def random_machine(
    seed: int,
    layout: Layout,
    *,
    vcpus: int = 2,
    tdp: bool = False,
    kernel: Kernel = LINUX_6_1,
) -> Machine:
    """Make a machine with random tables, slots and host parameters."""
    rng = random.Random(seed)
    host = random_host(rng, tdp=tdp)
    slot1 = SlotConfig(1, SLOT1_GPA, 0x10000, rng.choice((0, 0, 1, 2)), 8 * MIB)
    config = MachineConfig(
        cpu=CpuModel(vendor=host.vendor, maxphyaddr=36),
        host=host,
        backing_bytes=9 * MIB,
        thp=rng.random() < 0.5,
        manual_dirty=rng.choice((0, 1, 3)),
        disable_nx_huge_pages=seed % 4 == 0,
        slots=(SLOT0, slot1),
        vcpus=vcpus,
        table_frames=1 << 10,
        kernel=kernel,
    )
    machine = Machine(config)
    fill_tables(machine, rng, layout)
    for vcpu in range(vcpus):
        machine.execute(sregs_op(layout.name, rng.choice(layout.roots), vcpu))
    return machine


def fill_tables(machine: Machine, rng: random.Random, layout: Layout) -> None:
    """Draw the entries in use of every table."""
    width = MODES[layout.name].entry_bytes
    for level, tables in layout.tables.items():
        if not MODES[layout.name].root_level:
            return
        for table, index in product(tables, layout.indexes(level)):
            at = (machine.memory.backing << 12) + table + index * width
            machine.memory.write(at, width, entry_of(rng, layout, level))


def sregs_op(name: str, root: int, vcpu: int) -> ops.SetSregs:
    """Return the op that puts a vCPU into a mode."""
    cr0, cr4, efer = REGS[name]
    return ops.SetSregs(cr0, root, cr4, efer, vcpu=vcpu)


# Ops ----------------------------------------------------------------------------

Ops = st.SearchStrategy[Op]
_MODES = st.sampled_from((Mode.SUPERVISOR, Mode.USER, Mode.SUPERVISOR_AC))
_SEEDS = st.integers(0, 999)


def _entries(layout: Layout, level: int) -> st.SearchStrategy[int]:
    return _SEEDS.map(lambda seed: entry_of(random.Random(seed), layout, level))


def access_ops(layout: Layout, vcpus: st.SearchStrategy[int]) -> list[Ops]:
    """Loads, stores, fetches and locked accesses of the guest; stores look like entries."""
    pages, offsets = st.sampled_from(layout.gvas), st.sampled_from((0, 8, 0x48, 0xFF8))
    gvas = st.builds(lambda page, offset: page + offset, pages, offsets)
    entries = _entries(layout, 1)
    read = st.builds(ops.Read, _MODES, st.sampled_from((4, 8, 1)), gvas, vcpu=vcpus)
    write = st.builds(ops.Write, _MODES, st.sampled_from((8, 8, 4)), gvas, entries, vcpu=vcpus)
    return [
        *[read] * 5,
        *[write] * 6,
        st.builds(ops.Touch, _MODES, gvas, fetch=st.just(True), vcpu=vcpus),
        st.builds(ops.Exchange, _MODES, st.just(4), gvas, _SEEDS, vcpu=vcpus),
        st.builds(ops.CompareExchange, _MODES, st.just(8), gvas, st.just(0), entries, vcpu=vcpus),
    ]


@st.composite
def table_ops(draw: st.DrawFn, layout: Layout, vcpus: st.SearchStrategy[int]) -> Op:
    """Draw an edit of the guest's tables: whole, in part, to zero, or behind KVM's back."""
    width = MODES[layout.name].entry_bytes
    level = draw(st.sampled_from(sorted(layout.tables)))
    table = draw(st.sampled_from(layout.tables[level]))
    index = draw(st.sampled_from(layout.indexes(level) if layout.name != "np" else (0, 1)))
    value = draw(_entries(layout, level))
    kind = draw(st.sampled_from(("store", "store", "host", "part", "zero")))
    gpa = table + index * width
    if kind == "host":
        return ops.HostWrite(width, gpa, value)
    if kind == "part":
        size = draw(st.sampled_from((1, 2, 4)))
        return ops.GuestStore(size, gpa, value & (1 << 8 * size) - 1, vcpu=draw(vcpus))
    return ops.GuestStore(width, gpa, 0 if kind == "zero" else value, vcpu=draw(vcpus))


def register_ops(layout: Layout, vcpus: st.SearchStrategy[int]) -> list[Ops]:
    """Writes of control registers and EFER, INVLPG, and whole new register sets."""
    cr0, cr4, efer = REGS[layout.name]
    bits = (X86_CR4_PGE, X86_CR4_PSE, X86_CR4_SMAP, X86_CR4_SMEP, X86_CR4_PAE)
    cr4s = st.sets(st.sampled_from(bits), max_size=2).map(lambda toggled: cr4 ^ sum(toggled))
    cr0s = st.sampled_from((cr0, cr0 ^ X86_CR0_WP, cr0 ^ X86_CR0_PG))
    roots = st.sampled_from(layout.roots)
    cr3 = st.builds(ops.WriteCr, st.just(3), roots, vcpu=vcpus)
    invlpg = st.builds(ops.Invlpg, st.sampled_from(layout.gvas), vcpu=vcpus)
    return [
        cr3,
        cr3,
        invlpg,
        invlpg,
        st.one_of(
            st.builds(ops.WriteCr, st.just(4), cr4s, vcpu=vcpus),
            st.builds(ops.WriteCr, st.just(0), cr0s, st.just(True), vcpu=vcpus),
            st.builds(ops.WriteEfer, st.sampled_from((efer, efer ^ EFER_NX)), vcpu=vcpus),
            st.builds(sregs_op, st.sampled_from((layout.name, *MODES)), roots, vcpus),
        ),
    ]


def host_ops(layout: Layout) -> Ops:
    """What the VMM and the host do: slots, dirty logs, invalidations, page limits."""
    slots = st.sampled_from(
        (
            ops.SetMemslot(0, 0, 8 * MIB, 0, 0),
            ops.SetMemslot(0, 0, 8 * MIB, 1, 0),
            ops.SetMemslot(1, SLOT1_GPA, 0x10000, 0, 8 * MIB),
            ops.SetMemslot(1, SLOT1_GPA, 0x10000, 1, 8 * MIB),
            ops.SetMemslot(1, SLOT1_GPA, 0x10000, 2, 8 * MIB),
            ops.SetMemslot(1, SLOT1_MOVED, 0x10000, 0, 8 * MIB),
            ops.DeleteMemslot(1),
        )
    )
    places = st.sampled_from((*DATA, *layout.tables[1], 2 * MIB, 8 * MIB))
    return st.one_of(
        slots,
        st.builds(ops.GetDirtyLog, st.sampled_from((0, 1))),
        st.builds(ops.ClearDirtyLog, st.just(0), st.sampled_from((0, 0x300, 0x200)), st.just(0x40)),
        st.builds(ops.InvalidateHva, places, st.sampled_from((0x1000, 0x3000))),
        st.builds(ops.Collapse, st.sampled_from((0, 2 * MIB, 4 * MIB)), st.just(2 * MIB)),
        st.builds(ops.Age, st.sampled_from((0, 2 * MIB)), st.just(2 * MIB)),
        st.builds(ops.RecoverNxHugePages, st.sampled_from((1, 2))),
        st.builds(ops.SetNxHugePages, st.booleans()),
        st.builds(ops.SetNrMmuPages, st.sampled_from((64, 400))),
    )


def op_lists(layout: Layout, *, vcpus: int = 2, length: int = 80) -> st.SearchStrategy[list[Op]]:
    """Lists of ops of all kinds, accesses most often."""
    vcpu = st.sampled_from(range(vcpus))
    kinds = [
        *access_ops(layout, vcpu),
        *[table_ops(layout, vcpu)] * 4,
        *register_ops(layout, vcpu),
        *[host_ops(layout)] * 2,
    ]
    ops_ = st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)
    return st.lists(ops_, min_size=length // 2, max_size=length)
