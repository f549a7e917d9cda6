"""A small operating system that writes itself down as a scenario: memory, address spaces, system calls' work.

It knows its own tables, so it never has to look: whatever it does becomes a
value of the header before it runs and an op afterwards. As Linux does, it sees all its memory
through a direct map of large pages, changes its tables there, shares the
kernel's part between all address spaces, keeps user memory in regions of its own and flushes by loading CR3
or with INVLPG. It runs on shadow paging and on two-dimensional paging alike.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.x86.mode import (
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    paging_mode,
)

PAGE = 4096
HUGE = 1 << 21
FIRST_TABLE = 0x100000
"""Tables are taken from here on, and all are empty at the beginning."""
MOST_TABLES = 0x100
FIRST_PAGE = FIRST_TABLE + MOST_TABLES * PAGE
"""Pages of memory are taken from here on."""
KERNEL = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK
"""Low bits of the kernel's own pages."""
READ = PT_PRESENT_MASK | PT_USER_MASK | PT_ACCESSED_MASK
WRITE = READ | PT_WRITABLE_MASK | PT_DIRTY_MASK
"""Low bits of a user's page: to read and execute, and to write too."""


class Layout(NamedTuple):
    """Where a kernel of some paging mode has things.

    Attributes
    ----------
    user, region : int
        Where user memory begins, and how much one entry of the root maps.
    direct : int
        Where the kernel sees physical address 0.
    large : int
        Bytes of a large page.
    """

    user: int
    region: int
    direct: int
    large: int


LAYOUTS = {
    "32": Layout(1 << 22, 1 << 22, 0xC0000000, 1 << 22),
    "pae": Layout(1 << 30, 1 << 30, 0xC0000000, HUGE),
    "64": Layout(1 << 39, 1 << 39, 0xFFFF888000000000, HUGE),
    "57": Layout(1 << 48, 1 << 48, 0xFF11000000000000, HUGE),
}
"""The direct maps are Linux's (``Documentation/x86/x86_64/mm.rst``; PAGE_OFFSET of 32-bit kernels)."""


class SmallOs:
    """One guest, in the making.

    Parameters
    ----------
    mode : {"32", "pae", "64", "57"}
    mem : int
        Bytes of memory, whole large pages.
    thp : bool
        The host backs it with huge pages.
    manual_dirty : bool
    source : str
        Named in messages.
    host : dict of str to int, optional
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.

    Attributes
    ----------
    layout : Layout
    builder : ScenarioBuilder
    root : int
        Of the first address space, whose kernel's part the others get.
    current : int
        Root in CR3.

    Raises
    ------
    InputError
        No such mode.
    """

    def __init__(
        self,
        mode: str,
        *,
        mem: int = 1 << 24,
        thp: bool = False,
        manual_dirty: bool = False,
        source: str = "<small os>",
        host: dict[str, int] | None = None,
    ) -> None:
        if mode not in LAYOUTS:
            raise InputError(f"mode '{mode}': a workload runs in one of {', '.join(LAYOUTS)}")
        self.layout = LAYOUTS[mode]
        self.builder = ScenarioBuilder(
            mode, mem=mem, thp=thp, manual_dirty=manual_dirty, host=host, source=source
        )
        self._paging = paging_mode(MODES[mode].cr0, MODES[mode].cr4, MODES[mode].efer)
        self._entries: dict[int, int] = {}
        self._runs = False
        self._tables = list(range(FIRST_PAGE - PAGE, FIRST_TABLE - PAGE, -PAGE))
        self._next_page = FIRST_PAGE
        self._free_pages: list[int] = []
        self.builder.fill(FIRST_TABLE, MOST_TABLES * PAGE, 0)
        self.root = self.current = self._tables.pop()
        for helper in (HELPER_S, HELPER_U):
            self.map(self.root, helper, helper, WRITE if helper == HELPER_U else KERNEL)
        for gpa in range(0, mem, self.layout.large):
            self.map(self.root, self.layout.direct + gpa, gpa, KERNEL, level=2)
        self.builder.sregs(*MODES[mode]._replace(cr3=self.root))

    # Memory ---------------------------------------------------------------------------------------

    def page(self) -> int:
        """Take a page of memory; return its address.

        Raises
        ------
        InputError
            The memory is used up.
        """
        if self._free_pages:
            return self._free_pages.pop()
        return self.pages(1, PAGE)

    def pages(self, count: int, size: int) -> int:
        """Take `count` pages of `size` bytes that lie together; return the address of the first."""
        first = -(-self._next_page // size) * size
        if first + count * size > self.builder.mem:
            raise InputError(f"{self.builder.source}: {self.builder.mem:#x} bytes of memory are too few")
        self._next_page = first + count * size
        return first

    def free(self, page: int) -> None:
        """Give a page back."""
        self._free_pages.append(page)

    # Tables ---------------------------------------------------------------------------------------

    def new_space(self) -> int:
        """Make an address space that has the kernel's part alone; return its root."""
        root = self._take_table()
        width = self._paging.entry_bytes
        user = self._paging.index(self.layout.user, self._paging.root_level)
        for at, value in sorted(self._entries.items()):
            in_root = self.root <= at < self.root + PAGE
            index = (at - self.root) // width
            if in_root and value and (not index or index > user + 1):
                self._set(root + index * width, value)
        return root

    def map(self, root: int, gva: int, gpa: int, flags: int, *, level: int = 1) -> None:
        """Map a page, making the tables above it that are not there."""
        large = PT_PAGE_SIZE_MASK if level > 1 else 0
        self._set(self._entry(root, gva, level), gpa | flags | large)

    def unmap(self, root: int, gva: int) -> int:
        """Empty the entry of a small page; return what it held."""
        at = self._entry(root, gva)
        old = self._entries.get(at, 0)
        self._set(at, 0)
        return old

    def entry(self, root: int, gva: int) -> int:
        """Return the entry of a small page, 0 if the way there ends sooner."""
        table = root
        for level in range(self._paging.root_level, 1, -1):
            value = self._entries.get(self._slot(table, gva, level), 0)
            if not value:
                return 0
            table = value & PT_BASE_ADDR_MASK
        return self._entries.get(self._slot(table, gva, 1), 0)

    def drop_tables(self, root: int, gva: int) -> None:
        """Take the tables below the root on the way to `gva` out and free them, empty but for that."""
        places, tables, table = [], [], root
        for level in range(self._paging.root_level, 1, -1):
            places.append(self._slot(table, gva, level))
            table = self._entries[places[-1]] & PT_BASE_ADDR_MASK
            tables.append(table)
        for at in places:
            self._set(at, 0)
        self._tables += tables

    def drop_space(self, root: int) -> None:
        """Empty a root and free it; its user's part is empty already."""
        for at in [at for at in self._entries if root <= at < root + PAGE and self._entries[at]]:
            self._set(at, 0)
        self._tables.append(root)

    def _entry(self, root: int, gva: int, leaf: int = 1) -> int:
        table = root
        for level in range(self._paging.root_level, leaf, -1):
            at = self._slot(table, gva, level)
            if not self._entries.get(at, 0):
                self._set(at, self._take_table() | self._table_flags(level))
            table = self._entries[at] & PT_BASE_ADDR_MASK
        return self._slot(table, gva, leaf)

    def _slot(self, table: int, gva: int, level: int) -> int:
        index = self._paging.index(gva, level)
        if level == self._paging.root_level and self._paging.has_pdptes:
            index &= 3
        return table + index * self._paging.entry_bytes

    def _table_flags(self, level: int) -> int:
        """Bits of an entry that leads to a table; a PDPTE has but P (SDM 3, 4.4.1)."""
        if level == self._paging.root_level and self._paging.has_pdptes:
            return PT_PRESENT_MASK
        return WRITE

    def _take_table(self) -> int:
        if not self._tables:
            raise InputError(f"{self.builder.source}: {MOST_TABLES} tables are too few; make it smaller")
        return self._tables.pop()

    def _set(self, at: int, value: int) -> None:
        """Write an entry: a value of the header before the guest runs, its kernel's store afterwards."""
        old, self._entries[at] = self._entries.get(at, 0), value
        width = self._paging.entry_bytes
        if not self._runs:
            self.builder.value(width, at, value)
            return
        gva = self.layout.direct + at
        if width == 4 or self.layout.direct >> 32:
            self._do(ops.Write(Mode.SUPERVISOR, width, gva, value))
            return
        # Two stores with PAE: the half with P last if it appears, first if it goes (native_set_pte).
        halves = [(gva + 4, value >> 32), (gva, value & 0xFFFFFFFF)]
        if old & PT_PRESENT_MASK and not value & PT_PRESENT_MASK:
            halves.reverse()
        for half, part in halves:
            self._do(ops.Write(Mode.SUPERVISOR, 4, half, part))

    # What the guest does --------------------------------------------------------------------------

    def read(self, gva: int) -> None:
        """Read 4 bytes as a user."""
        self._do(ops.Read(Mode.USER, 4, gva))

    def write(self, gva: int, value: int) -> None:
        """Write 4 bytes as a user."""
        self._do(ops.Write(Mode.USER, 4, gva, value))

    def execute(self, gva: int) -> None:
        """Execute an instruction in the middle of a page as a user; what nobody wrote is full of NOPs."""
        self._do(ops.Execute(Mode.USER, gva + PAGE // 2))

    def read_kernel(self, gpa: int) -> None:
        """Read memory through the direct map."""
        self._do(ops.Read(Mode.SUPERVISOR, 4, self.layout.direct + gpa))

    def write_kernel(self, gva: int, value: int) -> None:
        """Write 4 bytes as the kernel."""
        self._do(ops.Write(Mode.SUPERVISOR, 4, gva, value))

    def copy(self, old: int, new: int) -> None:
        """Copy a page: of its words, the first."""
        self.read_kernel(old)
        self.write_kernel(self.layout.direct + new, new >> 12)

    def switch(self, root: int) -> None:
        """Load CR3, also with what it holds: that flushes all but global pages."""
        self._do(ops.WriteCr(3, root))
        self.current = root

    def invlpg(self, gva: int) -> None:
        """Flush one page."""
        self._do(ops.Invlpg(gva))

    def load_cr4(self, value: int) -> None:
        """Load CR4; a change of PGE flushes global pages too."""
        self._do(ops.WriteCr(4, value))

    def vmm(self, op: Op) -> None:
        """Let the VMM do something."""
        self._do(op)

    def _do(self, op: Op) -> None:
        self._runs = True
        self.builder.op(op)

    def scenario(self) -> Scenario:
        """Return all of it."""
        return self.builder.build()
