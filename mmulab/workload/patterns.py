"""What guests do to their page tables all day, as data: each workload a few numbers and a seed.

A workload makes a scenario, which every machine runs: with shadow paging, where each
of these patterns is what a synchronization policy stands or falls by, and with
two-dimensional paging, where KVM hardly notices. The same numbers and seed give the same ops.

Text patching is the loop that a boot of Linux on one CPU runs through some 8,500 times
(``data/stream``): map the page to patch in an address space of its own, load that, write, unmap,
load the old one, read what was written.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from mmulab.errors import InputError, find_named
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.workload.small_os import HUGE, KERNEL, PAGE, READ, WRITE, SmallOs
from mmulab.x86.mode import PT_GLOBAL_MASK, PT_WRITABLE_MASK
from mmulab.x86.regs import X86_CR4_PGE

HOSTS: dict[str, dict[str, int]] = {
    "shadow": {"npt": 0},
    "tdp": {"npt": 1, "tdp_mmu": 1},
    "legacy": {"npt": 1, "tdp_mmu": 0},
}
"""Hosts by name: shadow paging, the TDP MMU, and NPT by the shadow MMU's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(ABC):
    """A pattern of guest work.

    Attributes
    ----------
    seed : int
        Draws what the numbers leave open.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that make no work."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and value < (0 if field.name.endswith("percent") else 1):
                raise InputError(f"{self.name}: {field.name} is {value}, expected a larger number")

    def scenario(self, mode: str = "64", host: str = "shadow", **parameters: int) -> Scenario:
        """Return the work as a scenario.

        Parameters
        ----------
        mode : {"32", "pae", "64", "57"}
        host : {"shadow", "tdp", "legacy"}
        **parameters : int
            Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.

        Raises
        ------
        InputError
            No such mode or host, or more work than the guest's memory holds.
        """
        chosen = {**find_named(HOSTS, host, "host", "hosts"), **parameters}
        return self._run(mode, chosen, random.Random(self.seed)).scenario()

    @abstractmethod
    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        """Let an operating system do the work; return it."""


class Process:
    """A user's address space with small pages, by demand and by copy-on-write."""

    def __init__(self, os: SmallOs, root: int) -> None:
        self.os, self.root = os, root
        self.pages: dict[int, int] = {}

    def gva(self, page: int) -> int:
        """Return the address of a page by number."""
        return self.os.layout.user + page * PAGE

    def place(self, page: int, gpa: int, flags: int) -> None:
        """Map memory at a page."""
        self.pages[page] = gpa
        self.os.map(self.root, self.gva(page), gpa, flags)

    def demand(self, page: int, flags: int) -> None:
        """Touch a page that is not there: the guest's fault, then memory for it, then the access again."""
        self._touch(page, flags)
        self.place(page, self.os.page(), flags)
        self._touch(page, flags)

    def _touch(self, page: int, flags: int) -> None:
        if flags & PT_WRITABLE_MASK:
            self.os.write(self.gva(page), page)
        else:
            self.os.execute(self.gva(page))

    def fork(self) -> Process:
        """Return a child that shares all pages, which neither may write any more."""
        child = Process(self.os, self.os.new_space())
        for page, gpa in self.pages.items():
            self.os.map(self.root, self.gva(page), gpa, READ)
            child.place(page, gpa, READ)
        self.os.switch(self.root)
        return child

    def write_shared(self, page: int, *, copy: bool) -> None:
        """Write a page of a fork: the guest's fault, a copy or the page itself, INVLPG, the write again."""
        self.os.write(self.gva(page), page)
        if copy:
            old, self.pages[page] = self.pages[page], self.os.page()
            self.os.copy(old, self.pages[page])
        self.os.map(self.root, self.gva(page), self.pages[page], WRITE)
        self.os.invlpg(self.gva(page))
        self.os.write(self.gva(page), page)

    def unmap_all(self, kept: Process) -> None:
        """Empty every entry, page by page, and give back what no other process has."""
        for page, gpa in self.pages.items():
            self.os.unmap(self.root, self.gva(page))
            if gpa != kept.pages.get(page):
                self.os.free(gpa)
        self.pages = {}
        self.os.switch(self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkExec(Workload):
    """A shell that starts processes: fork, copy-on-write, exec, exit.

    Attributes
    ----------
    processes : int
    pages : int
        Of the shell, and as many of each program.
    """

    name: ClassVar[str] = "fork-exec"
    summary: ClassVar[str] = "fork, copy-on-write, exec and exit, one process after the other"
    processes: int = 8
    pages: int = 12

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os = SmallOs(mode, source=self.name, host=host)
        shell = Process(os, os.new_space())
        for page in range(self.pages):
            shell.place(page, os.page(), WRITE)
        os.switch(shell.root)
        for page in range(self.pages):
            os.write(shell.gva(page), page)
        for _ in range(self.processes):
            self._one(os, shell, draw)
        return os

    def _one(self, os: SmallOs, shell: Process, draw: random.Random) -> None:
        written = draw.sample(range(self.pages), -(-self.pages // 3))
        child = shell.fork()
        shell.write_shared(written[0], copy=True)
        os.switch(child.root)
        for page in written:
            child.write_shared(page, copy=page != written[0])
        child.unmap_all(shell)  # exec
        for page in draw.sample(range(self.pages), self.pages):
            child.demand(page, WRITE if page % 2 else READ)
        child.unmap_all(shell)  # exit
        os.drop_tables(child.root, os.layout.user)
        os.switch(shell.root)
        os.drop_space(child.root)
        for page in range(self.pages):
            if page != written[0]:
                shell.write_shared(page, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPatching(Workload):
    """The kernel patches its own text through an address space of its own (``__text_poke``).

    Attributes
    ----------
    patches : int
    sites : int
        Pages that are patched, one drawn for each patch.
    """

    name: ClassVar[str] = "text-patching"
    summary: ClassVar[str] = "map, CR3, write, unmap, CR3, read: most of the CR3 loads of a boot"
    patches: int = 200
    sites: int = 16

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os = SmallOs(mode, source=self.name, host=host)
        poking = os.new_space()
        text = os.pages(self.sites, PAGE)
        # The address is drawn once, at boot; text_poke_init makes the tables there.
        at = os.layout.user + os.layout.region + draw.randrange(512) * PAGE
        os.map(poking, at, 0, 0)
        for number in range(self.patches):
            site = text + draw.randrange(self.sites) * PAGE
            os.map(poking, at, site, KERNEL)
            home = os.current
            os.switch(poking)
            os.write_kernel(at, number)
            os.unmap(poking, at)
            os.switch(home)
            os.read_kernel(site)
        return os


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSwitches(Workload):
    """Processes take turns, each with tables of its own and pages that all share.

    Attributes
    ----------
    roots : int
    switches : int
    touches : int
        Pages that a process touches in its turn.
    changes_percent : int
        Of the turns in which a process is given another page, as ``mmap`` and ``munmap`` do.
    """

    name: ClassVar[str] = "context-switches"
    summary: ClassVar[str] = "processes that take turns on several roots"
    roots: int = 6
    switches: int = 120
    touches: int = 4
    changes_percent: int = 25

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os = SmallOs(mode, source=self.name, host=host)
        size = 4 * self.touches
        shared = [os.page() for _ in range(self.touches)]
        processes = [Process(os, os.new_space()) for _ in range(self.roots)]
        for process in processes:
            for page in range(size):
                process.place(page, shared[page] if page < len(shared) else os.page(), WRITE)
        for _ in range(self.switches):
            process = draw.choice(processes)
            os.switch(process.root)
            if draw.random() * 100 < self.changes_percent:
                page = draw.randrange(self.touches, size)
                os.free(process.pages[page])
                os.unmap(process.root, process.gva(page))
                os.invlpg(process.gva(page))
                process.demand(page, WRITE)
            for page in draw.sample(range(size), self.touches):
                if draw.random() < 0.5:
                    os.write(process.gva(page), page)
                else:
                    os.read(process.gva(page))
        return os


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMaps(Workload):
    """The kernel maps pages for a moment each, at addresses that all address spaces share (``kmap``).

    The entries are global, in more tables than the patches of 2008 had places for.

    Attributes
    ----------
    tables : int
        Page tables of the window.
    changes : int
        Entries that are changed, each in a table that is drawn.
    hot, hot_percent : int
        So many of the tables get at least so many of the changes.
    load_every, flush_every : int
        Changes between two loads of CR3, which spare global entries, and between two flushes of those too.
    """

    name: ClassVar[str] = "kernel-maps"
    summary: ClassVar[str] = "short-lived global mappings of the kernel in many tables"
    tables: int = 12
    changes: int = 240
    hot: int = 4
    hot_percent: int = 50
    load_every: int = 3
    flush_every: int = 80

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os = SmallOs(mode, source=self.name, host=host)
        pages = [os.page() for _ in range(8)]
        window = os.layout.direct + 8 * os.builder.mem
        starts = [window + number * os.layout.large for number in range(self.tables)]
        for start in starts:
            os.map(os.root, start, pages[0], KERNEL | PT_GLOBAL_MASK)
        cr4 = MODES[mode].cr4
        os.load_cr4(cr4 | X86_CR4_PGE)
        for number in range(1, self.changes + 1):
            few = draw.random() * 100 < self.hot_percent
            at = draw.choice(starts[: self.hot] if few else starts) + draw.randrange(16) * PAGE
            os.map(os.root, at, draw.choice(pages), KERNEL | PT_GLOBAL_MASK)
            os.invlpg(at)
            os.write_kernel(at, number)
            if not number % self.flush_every:
                os.load_cr4(cr4)
                os.load_cr4(cr4 | X86_CR4_PGE)
            elif not number % self.load_every:
                os.switch(os.root)
        return os


def is_written(page: int, percent: int) -> bool:
    """Whether a pass that writes `percent` of the pages, evenly, writes this one."""
    return page * percent // 100 != (page + 1) * percent // 100


def _large_memory(
    name: str, mode: str, host: dict[str, int], large_pages: int, *, manual: bool
) -> tuple[SmallOs, list[int]]:
    """Return a guest with a user's large pages over the host's huge ones, and its small pages' addresses."""
    os = SmallOs(mode, mem=32 * HUGE, thp=True, manual_dirty=manual, source=name, host=host)
    large = os.layout.large
    if large_pages * large > os.layout.region:
        raise InputError(f"{name}: {large_pages} large pages do not lie below one entry of the root")
    first = os.pages(large_pages, large)
    space = os.new_space()
    for at in range(0, large_pages * large, large):
        os.map(space, os.layout.user + at, first + at, WRITE, level=2)
    os.switch(space)
    return os, list(range(os.layout.user, os.layout.user + large_pages * large, PAGE))


def _pass(os: SmallOs, addresses: list[int], percent: int) -> None:
    """Go over all pages once: a share of them is written, the others are read."""
    for page, address in enumerate(addresses):
        if is_written(page, percent):
            os.write(address, page)
        else:
            os.read(address)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseWrites(Workload):
    """A user goes over large pages, a small page at a time, and writes a share of them.

    Attributes
    ----------
    written_percent : int
        Evenly spread; the others are read.
    large_pages : int
    passes : int
    """

    name: ClassVar[str] = "sparse-writes"
    summary: ClassVar[str] = "passes over large pages that write a share of the small ones"
    written_percent: int = 50
    large_pages: int = 1
    passes: int = 2

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os, addresses = _large_memory(self.name, mode, host, self.large_pages, manual=False)
        for _ in range(self.passes):
            _pass(os, addresses, self.written_percent)
        return os


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRounds(Workload):
    """A live migration: the VMM logs dirty pages while the guest goes on, and stops.

    Each round the guest goes over its memory and the VMM takes the log; with
    manual protection it then clears what it took.

    Attributes
    ----------
    written_percent, large_pages : int
        As :class:`SparseWrites` has them; all is written once before.
    rounds : int
    manual : bool
        ``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2``.
    """

    name: ClassVar[str] = "migration"
    summary: ClassVar[str] = "rounds of dirty logging, then a pass after it has ended"
    written_percent: int = 50
    large_pages: int = 1
    rounds: int = 2
    manual: bool = False

    def __post_init__(self) -> None:
        """`manual` is no number."""
        if min(self.large_pages, self.rounds) < 1:
            raise InputError(f"{self.name}: large_pages and rounds are at least 1")

    def _run(self, mode: str, host: dict[str, int], draw: random.Random) -> SmallOs:
        os, addresses = _large_memory(self.name, mode, host, self.large_pages, manual=self.manual)
        _pass(os, addresses, 100)
        size = os.builder.mem
        os.vmm(ops.SetMemslot(0, 0, size, KVM_MEM_LOG_DIRTY_PAGES, 0))
        for _ in range(self.rounds):
            _pass(os, addresses, self.written_percent)
            os.vmm(ops.GetDirtyLog(0))
            if self.manual:
                os.vmm(ops.ClearDirtyLog(0, 0, size // PAGE))
        os.vmm(ops.SetMemslot(0, 0, size, 0, 0))
        _pass(os, addresses, self.written_percent)
        return os


WORKLOADS: dict[str, Workload] = {
    "fork-exec": ForkExec(),
    "text-patching": TextPatching(),
    "context-switches": ContextSwitches(),
    "kernel-maps": KernelMaps(),
    **{f"sparse-writes-{percent}": SparseWrites(written_percent=percent) for percent in (5, 50, 100)},
    "migration": MigrationRounds(),
    "migration-manual": MigrationRounds(manual=True),
}
"""Workloads by name, with the numbers they have by default."""


def named_workloads(seed: int = 0) -> Iterator[tuple[str, Workload, str, str]]:
    """Yield ``NAME/MODE/HOST``, the workload, the mode and the host, for all of them."""
    for name, default in WORKLOADS.items():
        workload = replace(default, seed=seed)
        for mode in ("32", "pae", "64", "57"):
            for host in HOSTS:
                yield f"{name}/{mode}/{host}", workload, mode, host
