"""A tiny guest with tables of any mode, which tests map pages into and then run accesses on.

Its ops are bare accesses: no instruction lies in memory, so nothing but the op
itself walks the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from mmulab import events as ev
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_internal import PageFault
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import gfn_to_rmap, pte_list_iter
from mmulab.kvm.shadow_page import shadow_path
from mmulab.kvm.spte import spte_to_pfn
from mmulab.kvm.state import Kvm, Vcpu
from mmulab.kvm.x86 import serve_requests
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Outcome
from mmulab.x86.mode import (
    NONPAGING,
    PAGING_4LEVEL,
    PAGING_5LEVEL,
    PAGING_32,
    PAGING_PAE,
    PT_BASE_ADDR_MASK,
    PagingMode,
)
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
    CpuModel,
)

P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
TABLE = P | W | U | A
PAGE = P | W | U | A | D
MIB = 1 << 20
FIRST_TABLE = 0x100000
"""Where a guest's tables lie, one after the other."""
DATA = 0x10000
"""A page that no table lies in."""
GVA = 0x400000
HOLE = 0x40000000
"""A guest-physical address in no slot."""

MODES: dict[str, PagingMode] = {
    "np": NONPAGING,
    "32": PAGING_32,
    "pae": PAGING_PAE,
    "64": PAGING_4LEVEL,
    "57": PAGING_5LEVEL,
}
PAGED = ("32", "pae", "64", "57")
_LONG = EFER_LME | EFER_LMA
REGS = {
    "np": (X86_CR0_PE | X86_CR0_ET, 0, 0),
    "32": (X86_CR0_PE | X86_CR0_ET | X86_CR0_PG | X86_CR0_WP, X86_CR4_PSE, 0),
    "pae": (X86_CR0_PE | X86_CR0_ET | X86_CR0_PG | X86_CR0_WP, X86_CR4_PAE, EFER_NX),
    "64": (X86_CR0_PE | X86_CR0_ET | X86_CR0_PG | X86_CR0_WP, X86_CR4_PAE, EFER_NX | _LONG),
    "57": (X86_CR0_PE | X86_CR0_ET | X86_CR0_PG | X86_CR0_WP, X86_CR4_PAE | X86_CR4_LA57, EFER_NX | _LONG),
}
E = TypeVar("E")


KERNEL_FIELDS = (
    "design",
    "derivation",
    "root_strategy",
    "validity",
    "cpuid_after_run",
    "free_roots_lock",
    "eager_split",
    "behaviours",
    "bugs",
    "sync",
)


class Guest:
    """One VM with a guest in `mode`, its root table, and a log of what happened.

    Parameters
    ----------
    mode : {"np", "32", "pae", "64", "57"}
    mib : int
        Size of slot 0, which shows the backing at GPA 0.
    off, on : int
        Bits of CR0, CR4 (from bit 32) and EFER (from bit 64) to take away or to add; see :func:`cr4`.
    host : HostConfig
    config : Any
        Further fields of :class:`~mmulab.machine.config.MachineConfig`, or of its kernel.
    """

    def __init__(
        self,
        mode: str = "64",
        *,
        mib: int = 8,
        on: int = 0,
        off: int = 0,
        host: HostConfig | None = None,
        **config: Any,
    ) -> None:
        self.mode = MODES[mode]
        base = MachineConfig(
            cpu=CpuModel(maxphyaddr=40),
            host=host or HostConfig(),
            backing_bytes=mib * MIB,
            slots=(SlotConfig(0, 0, mib * MIB, 0, 0),),
            table_frames=1 << 10,
        )
        rules = {name: config.pop(name) for name in KERNEL_FIELDS if name in config}
        self.machine = Machine(replace(base, kernel=base.kernel.with_(**rules), **config))
        self.events: list[ev.Event] = []
        self.machine.emit = self.events.append
        self._next_table = FIRST_TABLE
        self.root = self.new_table()
        cr0, cr4_, efer = REGS[mode]
        bits = (cr0 | cr4_ << 32 | efer << 64) & ~off | on
        self.regs = (bits & 0xFFFFFFFF, self.root, bits >> 32 & 0xFFFFFFFF, bits >> 64)
        self.reset()

    def reset(self, vcpu: int = 0) -> None:
        """Set the registers of a vCPU to those that the guest begins with."""
        cr0, cr3, cr4_, efer = self.regs
        self.machine.execute(ops.SetSregs(cr0, cr3, cr4_, efer, vcpu=vcpu))

    # State ----------------------------------------------------------------------

    @property
    def kvm(self) -> Kvm:
        return self.machine.kvm

    @property
    def vcpu(self) -> Vcpu:
        return self.machine.kvm.vcpus[0]

    @property
    def slot(self) -> KvmMemslot:
        found = self.kvm.slots[0].by_id(0)
        assert found is not None
        return found

    def hpa(self, gpa: int) -> int:
        """Return where slot 0 has `gpa`."""
        return (self.machine.memory.backing << 12) + gpa

    def load(self, gpa: int, size: int = 0) -> int:
        """Read guest memory, one table entry unless `size` says more."""
        return self.machine.memory.read(self.hpa(gpa), size or self.mode.entry_bytes)

    def poke(self, gpa: int, value: int, size: int = 0) -> None:
        """Write guest memory behind KVM's back."""
        self.machine.memory.write(self.hpa(gpa), size or self.mode.entry_bytes, value)

    # Tables -----------------------------------------------------------------------

    def new_table(self) -> int:
        """Take an empty page for a table."""
        gpa, self._next_table = self._next_table, self._next_table + 0x1000
        self.machine.memory.fill(self.hpa(gpa), 0x1000, 0)
        return gpa

    def entry(self, gva: int, level: int = 1, root: int | None = None) -> int:
        """Return the GPA of the entry of `level` on the way to `gva`."""
        table = self.root if root is None else root
        for above in range(self.mode.root_level, level, -1):
            table = self.load(table + self.mode.index(gva, above) * self.mode.entry_bytes) & PT_BASE_ADDR_MASK
        return table + self.mode.index(gva, level) * self.mode.entry_bytes

    def table(self, gva: int, level: int = 1, root: int | None = None) -> int:
        """Return the GPA of the table of `level` on the way to `gva`."""
        return self.entry(gva, level, root) & ~0xFFF

    def map(
        self,
        gva: int,
        gpa: int,
        flags: int = PAGE,
        *,
        level: int = 1,
        tables: int = TABLE,
        root: int | None = None,
    ) -> Guest:
        """Map a page, making the tables above it that are not there yet."""
        for above in range(self.mode.root_level, level, -1):
            at = self.entry(gva, above, root)
            if not self.load(at) & P:
                pdpte = self.mode.has_pdptes and above == 3
                self.poke(at, self.new_table() | (P if pdpte else tables))
        self.poke(self.entry(gva, level, root), gpa | flags | (PS if level > 1 else 0))
        if self.mode.has_pdptes:
            self.reset()
        return self

    # Ops ----------------------------------------------------------------------------

    def read(self, gva: int, mode: str = "s", size: int = 4, vcpu: int = 0) -> Outcome:
        return self.machine.execute(ops.Read(Mode(mode), size, gva, vcpu=vcpu))

    def write(self, gva: int, value: int = 1, mode: str = "s", size: int = 4, vcpu: int = 0) -> Outcome:
        return self.machine.execute(ops.Write(Mode(mode), size, gva, value, vcpu=vcpu))

    def fetch(self, gva: int, mode: str = "s") -> Outcome:
        return self.machine.execute(ops.Touch(Mode(mode), gva, fetch=True))

    def store(self, gpa: int, value: int, size: int = 0) -> None:
        """Write guest memory as an emulated instruction of the guest does."""
        self.machine.execute(ops.GuestStore(size or self.mode.entry_bytes, gpa, value))

    def cr3(self, value: int | None = None, vcpu: int = 0) -> Outcome:
        """Load CR3, by default with the root it has, and enter once more."""
        done = self.machine.execute(ops.WriteCr(3, self.root if value is None else value, vcpu=vcpu))
        self.enter(vcpu)
        return done

    def invlpg(self, gva: int) -> Outcome:
        return self.machine.execute(ops.Invlpg(gva))

    def enter(self, vcpu: int = 0) -> None:
        """Do what is put off until the next entry."""
        self.machine.execute(ops.Nop(vcpu=vcpu))

    def serve(self) -> bool:
        return serve_requests(self.vcpu)

    # What came of it -------------------------------------------------------------------

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one type."""
        return [event for event in self.events if isinstance(event, kind)]

    @contextmanager
    def watch(self) -> Iterator[list[ev.Event]]:
        """Collect the events of a block of ops."""
        first = len(self.events)
        seen: list[ev.Event] = []
        yield seen
        seen += self.events[first:]

    def path(self, gva: int) -> dict[int, int]:
        """Return the shadow entries on the way to `gva` by level."""
        return {level: spte for level, _, spte in shadow_path(self.vcpu, gva)}

    def sptep(self, gva: int, level: int = 1) -> int:
        """Return the address of the shadow entry of `level` on the way to `gva`."""
        return next(sptep for at, sptep, _ in shadow_path(self.vcpu, gva) if at == level)

    def spte(self, gva: int, level: int = 1) -> int:
        """Return the shadow entry of `level` on the way to `gva`, 0 if the way ends above it."""
        return self.path(gva).get(level, 0)

    def page(self, gva: int, level: int = 1) -> ShadowPage:
        """Return the shadow page that the entry of `level` on the way to `gva` lies in."""
        return self.kvm.pages[self.sptep(gva, level) >> 12]

    def pages(self, gfn: int) -> list[ShadowPage]:
        """Return the shadow pages of `gfn`, newest first."""
        return [self.kvm.pages[frame] for frame in self.kvm.page_hash.get(gfn, [])]

    def rmap(self, gfn: int, level: int = 1) -> list[int]:
        """Return the sptes that map `gfn`."""
        return list(pte_list_iter(gfn_to_rmap(self.slot, gfn, level) or []))

    def maps(self, gva: int, gpa: int, level: int = 1) -> bool:
        """Whether the shadow entry of `level` maps `gva` to `gpa`."""
        return spte_to_pfn(self.spte(gva, level)) == self.hpa(gpa) >> 12


def fault_at(guest: Guest, gfn: int, **more: object) -> PageFault:
    """Return a fault that was resolved as far as its frame."""
    made = PageFault(gfn << 12, 0, exec=False, write=False, present=False, rsvd=False, user=False)
    made.gfn, made.slot, made.pfn, made.map_writable = gfn, guest.slot, guest.slot.frame(gfn), True
    for name, value in more.items():
        setattr(made, name, value)
    return made


def cr4(bits: int) -> int:
    """Return CR4 bits as :class:`Guest` takes them."""
    return bits << 32


def efer(bits: int) -> int:
    """Return EFER bits as :class:`Guest` takes them."""
    return bits << 64
