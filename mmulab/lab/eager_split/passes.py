"""``dirty_log_perf_test`` in the model: each phase with what it did, in counts.

All memory is written once. Then the VMM turns dirty logging on, and in each pass every vCPU
goes over its memory a 4 KiB page at a time, writing a share of the pages and reading the others;
after each pass the VMM takes the log, and where it protects by hand it clears
what it took. At last it turns logging off, and the guest goes over its memory once more.

A fault has one of three causes, as the series names them: the huge page is
write-protected; the lower level is missing, since a huge page was taken away; the 4 KiB page is
write-protected. Eager splitting removes the first two and leaves the third.

Source: 20220203010051.2813563-1 (first version), 20220422210546.458943-1 (fourth, L2);
Linux 6.1 ``tools/testing/selftests/kvm/dirty_log_perf_test.c``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count, islice
from typing import NamedTuple

from mmulab import events as ev
from mmulab.check.control_block import vmcb
from mmulab.errors import InputError, find_named
from mmulab.kvm.eager_split import EAGAIN
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.mmu_page import kvm_mmu_page_get_gfn
from mmulab.kvm.spte import is_last_spte, is_shadow_present_pte
from mmulab.kvm.state import Kvm
from mmulab.lab.cases.build import L1_ROOT, NPT_ROOT, TABLES
from mmulab.lab.eager_split.guest import HUGE, MEMORY, fault_kinds, huge_guest
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Touch
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import Tables, mode_of
from mmulab.workload.patterns import is_written
from mmulab.x86.pferr import PFERR_PRESENT_MASK

__all__ = ["CAUSES", "SETUPS", "Phase", "Setup", "dirty_log_perf", "phase"]

CAUSES = ("huge_write_protect", "not_present", "write_protect")
"""Why a fault was taken, as the series names them: the three columns."""
_FIRST_VMCB = 0x200000
_PAGE = 4096
_EPT_PRESENT = 0b111 << 3
"""Exit qualification of an EPT violation: what rights there were (SDM 3, table 28-7)."""
INITIALLY_SET = 3
"""``KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`` and ``KVM_DIRTY_LOG_INITIALLY_SET``."""


class Phase(NamedTuple):
    """What happened in one part of a run.

    Attributes
    ----------
    name : str
        ``populate``, ``enable``, ``pass 1``, ``get 1``, ``clear 1``, .., ``disable``, ``after``.
    accesses : int
        Of the guest, each to a page of its own.
    huge_write_protect, not_present, write_protect : int
        Faults by cause.
    fast : int
        Of the faults, those that took no lock.
    splits, refused : int
        Huge pages of the measured memory split, and those that were not, because something was lacking.
    flushes : int
    dirty : int
        Pages in the log that was taken.
    pages_4k, pages_2m : int
        Of the measured memory, mapped at its end.
    """

    name: str
    accesses: int = 0
    huge_write_protect: int = 0
    not_present: int = 0
    write_protect: int = 0
    fast: int = 0
    splits: int = 0
    refused: int = 0
    flushes: int = 0
    dirty: int = 0
    pages_4k: int = 0
    pages_2m: int = 0

    @property
    def faults(self) -> int:
        """All faults."""
        return self.huge_write_protect + self.not_present + self.write_protect

    def priced(self) -> dict[str, int]:
        """Return the counts under the names that :data:`mmulab.lab.costs.PRICES` knows."""
        return {
            "faults": self.faults - self.fast,
            "fast_faults": self.fast,
            "splits": self.splits,
            "flushes": self.flushes,
        }


class Setup(NamedTuple):
    """Whose tables are measured.

    Attributes
    ----------
    name, summary : str
    host : dict of str to int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    mode : str
        The guest's paging.
    vendor : str
    nested : bool
        L2 does it.
    eager_split : str
        What a host with eager splitting does (:data:`mmulab.kvm.kernel.EAGER_SPLIT`).
    """

    name: str
    summary: str
    host: dict[str, int]
    mode: str = "np"
    vendor: str = "amd"
    nested: bool = False
    eager_split: str = "nested"


_EVERY = [
    Setup("tdp_mmu", "TDP MMU", {"npt": 1, "tdp_mmu": 1}),
    Setup("nested", "L2 on a host with the TDP MMU", {"npt": 1, "tdp_mmu": 1}, "64", nested=True),
    Setup("legacy", "NPT without the TDP MMU", {"npt": 1, "tdp_mmu": 0}, eager_split="shadow"),
    Setup(
        "legacy_pml",
        "EPT without the TDP MMU, and the processor logs 4 KiB pages",
        {"ept": 1, "tdp_mmu": 0, "pml": 1},
        vendor="intel",
        eager_split="shadow",
    ),
    Setup("shadow", "shadow paging", {"npt": 0}, "64", eager_split="shadow"),
]
SETUPS = {setup.name: setup for setup in _EVERY}
"""Hosts by name. Without the TDP MMU they split as the first version of the series; 6.1 splits nothing."""


_KEPT = (
    ev.kvm_page_fault,
    ev.fast_page_fault,
    ev.drop_spte,
    ev.kvm_tdp_mmu_spte_changed,
    ev.kvm_mmu_split_huge_page,
)
"""Events that phases are made of; flushes and pages are statistics of KVM's."""


class _Rig:
    """A machine whose vCPUs all run the measured guest, each with memory of its own."""

    def __init__(self, runner: Runner, vcpus: int, huge_pages: int) -> None:
        for _ in islice(runner.results(), vcpus + len(runner.scenario.steps)):
            pass  # each vCPU's registers, and L2 entered
        self.machine = runner.machine
        self._size = runner.scenario.header.backing_bytes
        self._present = _EPT_PRESENT if self.machine.kvm.config.vendor == "intel" else PFERR_PRESENT_MASK
        self._seen: list[ev.Event] = []
        self.machine.emit = self._keep
        self._starts = [MEMORY + number * huge_pages * HUGE for number in range(vcpus)]
        self._pages = huge_pages * HUGE // _PAGE

    def _keep(self, event: ev.Event) -> None:
        if isinstance(event, _KEPT):
            self._seen.append(event)

    def go_over(self, name: str, percent: int) -> Phase:
        """Let each vCPU touch each of its pages, in turns."""
        flushes, execute = self._flushes, self.machine.execute
        for page in range(self._pages):
            write = is_written(page, percent)
            for vcpu, start in enumerate(self._starts):
                execute(Touch(Mode.SUPERVISOR, start + page * _PAGE, write=write, vcpu=vcpu))
        return self._phase(name, flushes, accesses=self._pages * len(self._starts))

    def log(self, name: str, flags: int) -> Phase:
        """Turn dirty logging on or off."""
        return self._host(name, ops.SetMemslot(0, 0, self._size, flags, 0))

    def take(self, name: str) -> Phase:
        """Take the log."""
        return self._host(name, ops.GetDirtyLog(0))

    def clear(self, name: str) -> Phase:
        """Clear what was taken: all of it."""
        return self._host(name, ops.ClearDirtyLog(0, 0, self._size // _PAGE))

    def _host(self, name: str, op: ops.Op) -> Phase:
        flushes = self._flushes
        dirty = [gfn for gfn in self.machine.execute(op).dirty or [] if gfn >= MEMORY // _PAGE]
        return self._phase(name, flushes, dirty=len(dirty))

    @property
    def _flushes(self) -> int:
        return self.machine.kvm.stat["remote_tlb_flush_requests"]

    def _phase(self, name: str, flushes: int, **known: int) -> Phase:
        seen, self._seen = self._seen, []
        kinds = fault_kinds(seen, present=self._present)
        splits = [e for e in seen if isinstance(e, ev.kvm_mmu_split_huge_page) and e.gfn >= MEMORY // _PAGE]
        mapped = _mapped(self.machine.kvm)
        return Phase(
            name,
            **{cause: kinds.count(cause) for cause in CAUSES},
            fast=sum(isinstance(event, ev.fast_page_fault) and event.ret == RetPf.FIXED for event in seen),
            splits=sum(not split.errno for split in splits),
            refused=sum(split.errno not in (0, -EAGAIN) for split in splits),
            flushes=self._flushes - flushes,
            pages_4k=mapped[1],
            pages_2m=mapped[2],
            **known,
        )


def _mapped(kvm: Kvm) -> Counter[int]:
    """Count the leaf entries over the measured memory by level."""
    found: Counter[int] = Counter()
    for sp in kvm.pages.values():
        for index, spte in enumerate(kvm.memory.words[sp.frame * 512 : sp.frame * 512 + 512].tolist()):
            if not is_shadow_present_pte(spte) or not is_last_spte(spte, sp.level):
                continue
            if kvm_mmu_page_get_gfn(sp, index) >= MEMORY // _PAGE:
                found[sp.level] += 1
    return found


def _scenario(setup: Setup, vcpus: int, huge_pages: int) -> Scenario:
    if setup.nested:
        builder, _ = huge_guest(vcpus * huge_pages, vcpus=vcpus, host=setup.host)
        for vcpu in range(vcpus):
            vmcb(builder, _FIRST_VMCB + vcpu * _PAGE, MODES["np"], NPT_ROOT)
            builder.op(ops.Vmrun(_FIRST_VMCB + vcpu * _PAGE, vcpu=vcpu))
        return builder.build()
    size = MEMORY + vcpus * huge_pages * HUGE
    builder = ScenarioBuilder(
        setup.mode, vendor=setup.vendor, mem=size, thp=True, vcpus=vcpus, host=setup.host
    )
    if setup.mode != "np":
        tables = Tables(builder, mode_of(MODES[setup.mode]), L1_ROOT, count(TABLES, _PAGE))
        for address in range(MEMORY, size, HUGE):
            tables.map(address, address, level=2)
        builder.sregs(*MODES[setup.mode]._replace(cr3=L1_ROOT))
    return builder.build()


def _rig(
    setup: Setup, vcpus: int, huge_pages: int, *, eager: bool, init_all_set: bool, kernel: Kernel
) -> _Rig:
    scenario = _scenario(setup, vcpus, huge_pages)
    base = machine_config(scenario, kernel.with_(eager_split=setup.eager_split))
    config = replace(
        base,
        host=replace(base.host, eager_page_split=eager),
        manual_dirty=INITIALLY_SET if init_all_set else 0,
    )
    return _Rig(Runner(scenario, config=config), vcpus, huge_pages)


def dirty_log_perf(
    setup: str,
    *,
    eager: bool,
    percent: int = 100,
    passes: int = 2,
    vcpus: int = 1,
    huge_pages: int = 1,
    init_all_set: bool = False,
    kernel: Kernel = LINUX_6_1,
    shorten: Callable[[Machine], object] | None = None,
) -> list[Phase]:
    """Run the test and return its phases in order.

    Parameters
    ----------
    setup : str
        One of :data:`SETUPS`.
    eager : bool
        ``eager_page_split``.
    percent : int
        Share of the pages that a pass writes.
    passes, vcpus : int
    huge_pages : int
        2 MiB pages of each vCPU.
    init_all_set : bool
        The VMM protects by hand, and all pages begin dirty.
    kernel : Kernel
    shorten : callable, optional
        Takes something from the machine before logging is turned on: memory, or shadow pages.

    Raises
    ------
    InputError
        No such setup, or a number that makes no run.
    """
    for name, value, low in (("percent", percent, 0), ("passes", passes, 1), ("vcpus", vcpus, 1)):
        if value < low:
            raise InputError(f"{name} is {value}, expected {low} or more")
    chosen = find_named(SETUPS, setup, "setup", "setups")
    rig = _rig(chosen, vcpus, huge_pages, eager=eager, init_all_set=init_all_set, kernel=kernel)
    phases = [rig.go_over("populate", 100)]
    if shorten is not None:
        shorten(rig.machine)
    phases.append(rig.log("enable", KVM_MEM_LOG_DIRTY_PAGES))
    for number in range(1, passes + 1):
        phases += [rig.go_over(f"pass {number}", percent), rig.take(f"get {number}")]
        if init_all_set:
            phases.append(rig.clear(f"clear {number}"))
    return [*phases, rig.log("disable", 0), rig.go_over("after", percent)]


def phase(phases: Iterable[Phase], name: str) -> Phase:
    """Return a phase by name."""
    return find_named({found.name: found for found in phases}, name, "phase", "phases")
