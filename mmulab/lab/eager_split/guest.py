"""What eager page splitting saves: the faults of a nested guest whose writes are logged, by kind.

L1 maps L2's memory with large pages and L0 backs them with huge ones. After
all of them were written once, the VMM turns dirty logging on, and L2 goes over
its memory a 4 KiB page at a time: a share of the pages is written, the others are read.
Without splitting the first write to each huge page finds it write-protected, and
every other page of it is not present afterwards, whether it is read or written.
With it only the written pages fault, and only they count as dirty: a page that is
mapped because it was read is mapped writable, so KVM counts it as dirty at once.
Nothing is timed; the counts show where the time of ``dirty_log_perf_test`` goes
(20220422210546.458943-1).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from mmulab.events import Event, drop_spte, kvm_flush_remote_tlbs, kvm_mmu_split_huge_page, kvm_page_fault
from mmulab.kvm.spte import is_large_pte
from mmulab.lab.cases.build import L1_ROOT, NPT_ROOT, TABLES, VMCB_GPA, Tables, mode_of, vmcb
from mmulab.machine import op as ops
from mmulab.machine.config import MachineConfig
from mmulab.machine.op import Mode, Op
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.workload.patterns import is_written
from mmulab.x86.pferr import PFERR_PRESENT_MASK
from mmulab.x86.regs import EFER_SVME

MEMORY = 0x400000
"""Where L2's memory begins, at the same address for L1; a multiple of the largest page used here."""
HUGE = 1 << 21
_PAGE = 4096


class FaultCounts(NamedTuple):
    """The faults of one pass over L2's memory with dirty logging on.

    Attributes
    ----------
    written_percent : int
        Share of the pages that are written.
    eager : bool
        ``eager_page_split``.
    huge_write_protect : int
        Writes that found a write-protected huge page.
    not_present : int
        Accesses that found nothing, since a huge page was taken away.
    write_protect : int
        Writes that found a write-protected 4 KiB page.
    splits, flushes : int
        Huge pages split, of L1's own memory too, and flushes, while logging was turned on.
    dirty : int
        Pages in the dirty log after the pass.
    """

    written_percent: int
    eager: bool
    huge_write_protect: int
    not_present: int
    write_protect: int
    splits: int
    flushes: int
    dirty: int


def huge_guest(huge_pages: int, *, l1: str = "64", **host: int) -> tuple[ScenarioBuilder, Tables]:
    """Return a builder with an L1 on AMD that maps L2's memory with large pages, and its nested tables.

    The builder has no op yet. L2 has no paging, and sees :data:`MEMORY` where L1 does.

    Parameters
    ----------
    huge_pages : int
        2 MiB pages of L2's memory; an even number for an L1 with ``"32"``, whose large pages have 4 MiB.
    l1 : {"32", "pae", "64", "57"}
        Paging of L1, and with it the form of its nested tables.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    size = MEMORY + huge_pages * HUGE
    changes = {"npt": 1, "tdp_mmu": 1, **host}
    builder = ScenarioBuilder(l1, mem=size, thp=True, cpu={"svm": 1}, host=changes)
    regs = MODES[l1]._replace(cr3=L1_ROOT, efer=MODES[l1].efer | EFER_SVME)
    builder.sregs(*regs)
    free = count(TABLES, _PAGE)
    own, npt = (Tables(builder, mode_of(regs), root, free) for root in (L1_ROOT, NPT_ROOT))
    for tables in (own, npt):
        tables.identity(HELPER_S, HELPER_U)
    for address in range(MEMORY, size, 1 << mode_of(regs).level_shift(2)):
        npt.map(address, address, level=2)
    vmcb(builder, VMCB_GPA, MODES["np"], NPT_ROOT)
    return builder, npt


def log_all(builder: ScenarioBuilder) -> ops.SetMemslot:
    """Return the op that turns dirty logging on for all of a builder's memory."""
    return ops.SetMemslot(0, 0, builder.mem, KVM_MEM_LOG_DIRTY_PAGES, 0)


def logged_guest(written_percent: int, *, eager: bool, huge_pages: int = 1, l1: str = "64") -> Scenario:
    """Return a guest that goes over its memory after dirty logging was turned on.

    Parameters
    ----------
    written_percent : int
        0 to 100.
    eager : bool
    huge_pages, l1
        As :func:`huge_guest` has them.
    """
    builder, _ = huge_guest(huge_pages, l1=l1, eager_page_split=int(eager))
    builder.op(ops.Vmrun(VMCB_GPA))
    for address in range(MEMORY, builder.mem, HUGE):
        builder.op(access(address, write=True))
    builder.op(log_all(builder))
    for page, address in enumerate(range(MEMORY, builder.mem, _PAGE)):
        builder.op(access(address, write=is_written(page, written_percent)))
    return builder.op(ops.GetDirtyLog(0)).build()


def access(address: int, *, write: bool) -> Op:
    """Return a read, or the write of a value that tells the page."""
    if write:
        return ops.Write(Mode.SUPERVISOR, 4, address, address >> 12)
    return ops.Read(Mode.SUPERVISOR, 4, address)


def fault_kinds(events: Iterable[Event]) -> list[str]:
    """Return what each fault on L2's memory found, as :class:`FaultCounts` names it.

    That a huge page stood in the way shows by its being dropped.
    """
    kinds: list[str] = []
    for event in events:
        if isinstance(event, kvm_page_fault) and event.fault_address >= MEMORY:
            present = event.error_code & PFERR_PRESENT_MASK
            kinds.append("write_protect" if present else "not_present")
        elif isinstance(event, drop_spte) and is_large_pte(event.old_spte) and kinds:
            kinds[-1] = "huge_write_protect"
    return kinds


def count_faults(
    written_percent: int,
    *,
    eager: bool,
    huge_pages: int = 1,
    l1: str = "64",
    config: MachineConfig | None = None,
) -> FaultCounts:
    """Run :func:`logged_guest` and count its faults.

    Parameters
    ----------
    written_percent, eager, huge_pages, l1
        As :func:`logged_guest` has them.
    config : MachineConfig, optional
        Instead of the scenario's own: another role design or derivation, say.
    """
    scenario = logged_guest(written_percent, eager=eager, huge_pages=huge_pages, l1=l1)
    kinds: list[str] = []
    turned_on: list[Event] = []
    dirty = 0
    for result in Runner(scenario, config=config).results():
        if isinstance(result.op, ops.SetMemslot):
            turned_on = result.events
        elif turned_on:
            kinds += fault_kinds(result.events)
        if isinstance(result.op, ops.GetDirtyLog):
            dirty = len(result.outcome.dirty or [])
    return FaultCounts(
        written_percent,
        eager,
        huge_write_protect=kinds.count("huge_write_protect"),
        not_present=kinds.count("not_present"),
        write_protect=kinds.count("write_protect"),
        splits=sum(isinstance(e, kvm_mmu_split_huge_page) and not e.errno for e in turned_on),
        flushes=sum(isinstance(e, kvm_flush_remote_tlbs) for e in turned_on),
        dirty=dirty,
    )


def eager_split(
    written_percents: Iterable[int] = (100, 50, 5), huge_pages: int = 1, l1: str = "64"
) -> list[FaultCounts]:
    """Count the faults for each share of written pages, without eager splitting and with it."""
    return [
        count_faults(percent, eager=eager, huge_pages=huge_pages, l1=l1)
        for percent in written_percents
        for eager in (False, True)
    ]
