"""The smallest guest that needs quadrants: one 4-byte table, and a page in each half of it.

A 4-byte guest table maps 4 MiB, a shadow table 2 MiB, so one guest table is
shadowed by two pages, told apart by their quadrant. The guest reads a page of
the lower half, one of the upper half at the same index, and both again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from mmulab.kvm.kernel import Kernel
from mmulab.machine import op as ops
from mmulab.machine.config import MachineConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Touch
from mmulab.machine.view import gpa_of, guest_walk
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import FIRST_TABLE, ScenarioBuilder
from mmulab.scenario.runner import load_memory
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.trace.judge import against_tables
from mmulab.trace.recorder import Recorder
from mmulab.trace.recording import Info, Recording

ROOT = 0x10000
REGION = 1 << 22
"""What one guest table maps: 4 MiB."""
PAGES = range(0x100, 0x1000)
"""gfns that the two pages are taken from."""


@dataclass(frozen=True, slots=True)
class Access:
    """One read of the guest, and where it went.

    Attributes
    ----------
    number : int
        Of the op; the registers are set by op 0.
    gva : int
    expected : int or None
        Guest-physical address by the guest's own tables; None: they give a fault.
    reached : int or None
        Guest-physical address of the memory that was read; None: no memory of the guest's.
    """

    number: int
    gva: int
    expected: int | None
    reached: int | None

    @property
    def wrong(self) -> bool:
        """Whether the guest's tables lead elsewhere."""
        return self.expected != self.reached

    def __str__(self) -> str:
        expected, reached = ("none" if gpa is None else f"{gpa:#x}" for gpa in (self.expected, self.reached))
        return f"op {self.number}: read of gva {self.gva:#x}: expected gpa {expected}, reached gpa {reached}"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run.

    Attributes
    ----------
    machine : Machine
        As the last read left it.
    recording : Recording
    accesses : tuple of Access
    """

    machine: Machine
    recording: Recording
    accesses: tuple[Access, ...]

    @property
    def wrong(self) -> tuple[Access, ...]:
        """The reads that went elsewhere than the guest's tables lead."""
        return tuple(access for access in self.accesses if access.wrong)


@dataclass(frozen=True, slots=True)
class TwoHalves:
    """A guest without PSE, and its four reads.

    Attributes
    ----------
    config : MachineConfig
    scenario : Scenario
        Holds the guest's memory at the beginning.
    ops : tuple of Op
        Registers, then the reads.
    pages : dict of int to int
        Guest-virtual address to the gfn that the guest's table maps there.
    seed : int
    """

    config: MachineConfig
    scenario: Scenario
    ops: tuple[Op, ...]
    pages: dict[int, int]
    seed: int

    @property
    def table_gfn(self) -> int:
        """The gfn of the guest table that maps both pages."""
        return FIRST_TABLE >> 12

    @property
    def reads(self) -> tuple[Touch, ...]:
        """The reads, in order."""
        return tuple(op for op in self.ops if isinstance(op, Touch))

    def run(self) -> Run:
        """Run the guest on a machine of its own."""
        machine = Machine(self.config)
        load_memory(machine.memory, self.scenario.header)
        recorder = Recorder(machine, info=Info("two_halves", seed=self.seed), judge=against_tables)
        accesses: list[Access] = []
        for number, op in enumerate(self.ops):
            outcome = machine.execute(op)
            if isinstance(op, Touch):
                reached = None if outcome.hpa == -1 else gpa_of(machine, outcome.hpa)
                accesses.append(Access(number, op.gva, guest_walk(machine, op.gva).gpa, reached))
        return Run(machine, recorder.finish(), tuple(accesses))


def two_halves(kernel: Kernel, seed: int) -> TwoHalves:
    """Return the guest; `seed` chooses the region, the index and the two pages."""
    choose = random.Random(seed)
    lower = choose.randrange(1, 1 << 10) * REGION + (choose.randrange(512) << 12)
    pages = dict(zip((lower, lower + REGION // 2), choose.sample(PAGES, 2), strict=True))
    registers = MODES["32"]._replace(cr3=ROOT, cr4=0)
    builder = ScenarioBuilder("32").sregs(*registers).root(ROOT)
    for gva, gfn in pages.items():
        builder.map(gva, gfn << 12)
    scenario = builder.build()
    # Bare accesses instead of instructions, so that the first fault is that of the first page.
    config = replace(machine_config(scenario, kernel), stubs=None)
    reads = (Touch(mode=Mode.USER, gva=gva) for gva in (*pages, *pages))
    return TwoHalves(config, scenario, (ops.SetSregs(**registers._asdict()), *reads), pages, seed)
