"""Builds a scenario step by step, from Python or from the text format.

>>> from mmulab.scenario.builder import ScenarioBuilder
>>> b = ScenarioBuilder("32")
>>> b.root(0x10000).map(0x40000000, 0x100000)
<ScenarioBuilder: 32 guest, CR3 0x10000, amd host, 0 ops>
>>> scenario = b.op("rd u 40000000").op("wr u 40000008 1").build()
>>> len(scenario.steps)
2
"""

from __future__ import annotations

from bisect import bisect
from itertools import pairwise

from mmulab import limits
from mmulab.errors import InputError, quoted
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.machine.config import MAX_VCPUS
from mmulab.machine.op import Op
from mmulab.memory.memslots import KVM_ADDRESS_SPACE_NUM, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.scenario.check import check_values
from mmulab.scenario.grammar import GrammarError, Step, parse_step
from mmulab.scenario.helpers import (
    HELPER_PD,
    HELPER_PDPT,
    HELPER_PML4,
    HELPER_PT,
    HELPER_S,
    HELPER_U,
    STUBS,
)
from mmulab.scenario.scenario import (
    CPUID_DEFAULTS,
    HOST_DEFAULTS,
    MODES,
    QUIRKS,
    Fill,
    Header,
    Regs,
    Scenario,
    Slot,
    Value,
)
from mmulab.x86.mode import (
    NONPAGING,
    PAGING_PAE,
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_DIRTY_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    PagingMode,
    paging_mode,
)
from mmulab.x86.regs import X86_CR0_PG

DEFAULT_MEM = 0x1000000
"""Bytes of backing where a scenario does not say: 16 MiB."""
MAX_MEM = limits.BACKING_BYTES
FIRST_TABLE = 0x20000
"""Where :meth:`ScenarioBuilder.map` takes its tables from."""
NOP = 0x90

_PAGE = 4096
_TABLE = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK
_SUPERVISOR = _TABLE & ~PT_USER_MASK
_HELPER_TABLES = (HELPER_PT, HELPER_PD, HELPER_PDPT, HELPER_PML4)
_VENDORS = ("amd", "intel")


def within(name: str, value: int, low: int, high: int) -> int:
    """Return `value` if it lies in ``low..high``.

    Raises
    ------
    GrammarError
    """
    if not low <= value <= high:
        raise GrammarError(f"{name} is {value:x}, expected {low:x} to {high:x}")
    return value


def aligned(name: str, value: int, step: int = _PAGE) -> int:
    """Return `value` if it is a multiple of `step`.

    Raises
    ------
    GrammarError
    """
    if value % step:
        raise GrammarError(f"{name} is {value:x}, expected a multiple of {step:x}")
    return value


class ScenarioBuilder:
    """A scenario in the making.

    Every method that adds something returns the builder. Addresses of memory
    are offsets into the backing, which slot 0 shows at GPA 0.

    Parameters
    ----------
    mode : {"np", "32", "pae", "64", "57"}
        Paging mode in which vCPU 0 begins.
    vendor : {"amd", "intel"}
    mem : int
        Bytes of backing.
    thp, manual_dirty, disable_nx_huge_pages : bool
    vcpus, dirty_ring : int
        See :class:`~mmulab.scenario.scenario.Header`.
    cpu, host : dict of str to int, optional
        Changes to :data:`~mmulab.scenario.scenario.CPUID_DEFAULTS` and
        :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    source : str
        Named in messages.

    Raises
    ------
    GrammarError
        Here and in the methods: a value out of range; the message says what was expected.
    """

    def __init__(
        self,
        mode: str,
        *,
        vendor: str = "amd",
        mem: int = DEFAULT_MEM,
        thp: bool = False,
        manual_dirty: bool = False,
        disable_nx_huge_pages: bool = False,
        vcpus: int = 1,
        dirty_ring: int = 0,
        cpu: dict[str, int] | None = None,
        host: dict[str, int] | None = None,
        source: str = "<built>",
    ) -> None:
        if mode not in MODES:
            raise GrammarError(f"mode is '{quoted(mode)}', expected one of {' '.join(MODES)}")
        if vendor not in _VENDORS:
            raise GrammarError(f"host is '{quoted(vendor)}', expected one of {' '.join(_VENDORS)}")
        self.mode = mode
        self.vendor = vendor
        self.mem = aligned("mem", within("mem", mem, HELPER_PML4 + _PAGE, MAX_MEM))
        self.thp = thp
        self.manual_dirty = manual_dirty
        self.disable_nx_huge_pages = disable_nx_huge_pages
        if not 1 <= vcpus <= MAX_VCPUS:
            raise GrammarError(f"vcpus is {vcpus:x}, expected 1 to {MAX_VCPUS:x} (hexadecimal)")
        self.vcpus, self.dirty_ring = vcpus, dirty_ring
        self.cpuid = _merged("CPUID feature", CPUID_DEFAULTS, cpu or {})
        self.host = _merged("host parameter", HOST_DEFAULTS, host or {})
        self.source = source
        self.regs: Regs | None = None
        self._slots: list[Slot] = []
        self._ids: set[int] = set()
        self._spaces: tuple[list[Slot], ...] = tuple([] for _ in range(KVM_ADDRESS_SPACE_NUM))
        self._filled = 0
        self._fills: list[Fill] = []
        self._values: list[Value] = []
        self._pdptfix: list[int] = []
        self._quirks: list[str] = []
        self._kernel = LINUX_6_1.name
        self._steps: list[Step] = []
        self._roots: list[int] = []
        self._next_table = FIRST_TABLE

    def __repr__(self) -> str:
        return repr(self.build()).replace(f"<Scenario {self.source}", "<ScenarioBuilder")

    def _repr_html_(self) -> str:
        return self.build()._repr_html_()

    def kernel(self, name: str) -> ScenarioBuilder:
        """Run on another kernel than the default: ``6.12``, ``6.12-dummy_root``."""
        if ":" in name:  # a scenario is data, and runs no code of its own
            raise GrammarError(f"kernel is '{quoted(name)}', expected a release; give --kernel for a file's")
        try:
            self._kernel = find_kernel(name).name
        except InputError as error:
            raise GrammarError(str(error)) from error
        return self

    def sregs(self, cr0: int, cr3: int, cr4: int, efer: int) -> ScenarioBuilder:
        """Begin with these registers instead of the mode's own."""
        self.regs = Regs(cr0, cr3, cr4, efer)
        return self

    def slot(self, id: int, gpa: int, size: int, flags: int = 0, offset: int = 0) -> ScenarioBuilder:
        """Add a memslot; without any of address space 0, slot 0 shows the whole backing at GPA 0."""
        within("ID", id, 0, (KVM_ADDRESS_SPACE_NUM << 16) - 1)
        within("FLAGS", flags, 0, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
        aligned("GPA", gpa)
        aligned("SIZE", within("SIZE", size, _PAGE, self.mem))
        aligned("OFFSET", within("OFFSET", offset, 0, self.mem - size))
        slot = Slot(id, gpa, size, flags, offset)
        if id in self._ids:
            raise GrammarError(f"ID is {id:x}, expected one that no slot has yet")
        space = self._spaces[id >> 16]
        at = bisect(space, gpa, key=lambda other: other.gpa)
        below, above = space[at - 1 : at] if at else [], space[at : at + 1]
        if (below and below[0].gpa + below[0].size > gpa) or (above and gpa + size > above[0].gpa):
            raise GrammarError(f"GPA {gpa:x} and SIZE {size:x} overlap another slot")
        space.insert(at, slot)
        self._ids.add(id)
        self._slots.append(slot)
        return self

    def alloc(self, gpa: int) -> ScenarioBuilder:
        """Clear a page for a table; at +800 it gets the NOP that ``xc`` executes."""
        aligned("GPA", within("GPA", gpa, 0, self.mem - _PAGE))
        return self.fill(gpa, _PAGE, 0).value(self._entry_bytes, gpa + STUBS, NOP)

    def root(self, gpa: int) -> ScenarioBuilder:
        """Clear a page for a root table whose first entry leads to the helper pages.

        The first root becomes CR3 unless :meth:`sregs` says otherwise.
        """
        if self._mode is NONPAGING:
            raise GrammarError(f"mode {self.mode} has no root table")
        if not self._roots:
            self._helper_tables()
        self.alloc(gpa)
        self._roots.append(gpa)
        top = _HELPER_TABLES[self._mode.root_level - 2]
        return self.value(self._entry_bytes, gpa, top | self._table_flags(self._mode.root_level))

    def fill(self, gpa: int, length: int, byte: int) -> ScenarioBuilder:
        """Set `length` bytes from `gpa` to `byte`; fills come before values."""
        within("GPA", gpa, 0, self.mem - 1)
        within("LEN", length, 1, self.mem - gpa)
        self._filled += length
        within("the sum of all LEN", self._filled, 1, limits.FILLED_BYTES)
        self._fills.append(Fill(gpa, length, within("BYTE", byte, 0, 0xFF)))
        return self

    def value(self, size: int, gpa: int, value: int) -> ScenarioBuilder:
        """Put `size` bytes (1, 2, 4 or 8) at `gpa`."""
        if size not in (1, 2, 4, 8):
            raise GrammarError(f"the size of a value is {size:x}, expected 1, 2, 4 or 8")
        within("GPA", gpa, 0, self.mem - size)
        aligned("GPA", gpa, size)
        self._values.append(Value(size, gpa, within("VAL", value, 0, (1 << 8 * size) - 1)))
        return self

    def map(self, gva: int, gpa: int, flags: int = _TABLE, level: int = 1) -> ScenarioBuilder:
        """Map a page in the first root's tables; missing ones are taken from :data:`FIRST_TABLE` on.

        Below the first entry of the root lie the helper tables, which all roots share.

        Parameters
        ----------
        gva, gpa : int
        flags : int
            Low bits (and bit 63) of the leaf entry; present, writable, user,
            accessed and dirty if left out.
        level : int
            2 or 3 for a large page: `flags` then must have bit 7.
        """
        if not self._roots:
            raise GrammarError("map needs a root, expected root before it")
        table = self._roots[0]
        for at in range(self._mode.root_level, level, -1):
            table = self._next(table + self._mode.index(gva, at) * self._entry_bytes, at)
        entry = table + self._mode.index(gva, level) * self._entry_bytes
        return self.value(self._entry_bytes, entry, gpa | flags)

    def pdptfix(self, gpa: int) -> ScenarioBuilder:
        """Clear bit 5 of the four PDPTEs at `gpa` before each op."""
        self._pdptfix.append(aligned("GPA", within("GPA", gpa, 0, self.mem - 32), 32))
        return self

    def quirk(self, name: str) -> ScenarioBuilder:
        """Give the processor under the host a known departure from a real one."""
        if name not in QUIRKS:
            raise GrammarError(f"quirk is '{quoted(name)}', expected one of {' '.join(QUIRKS)}")
        self._quirks.append(name)
        return self

    def op(self, op: str | Op, *, line: int = 0) -> ScenarioBuilder:
        """Add an op, as text of the scenario language or as a record."""
        self._steps.append(parse_step(op, line) if isinstance(op, str) else Step(op, "", line))
        return self

    @classmethod
    def of(cls, scenario: Scenario) -> ScenarioBuilder:
        """Return a builder that holds `scenario`, to add to it."""
        header = scenario.header
        builder = cls(
            header.mode,
            vendor=header.vendor,
            mem=header.backing_bytes,
            thp=header.thp,
            manual_dirty=header.manual_dirty,
            disable_nx_huge_pages=header.disable_nx_huge_pages,
            vcpus=header.vcpus,
            dirty_ring=header.dirty_ring,
            cpu=header.cpuid,
            host=header.host,
            source=scenario.source,
        )
        builder.regs = header.regs
        for slot in header.slots:
            builder.slot(*slot)
        builder._fills = list(header.fills)
        builder._values = list(header.values)
        builder._pdptfix = list(header.pdptfix)
        builder._quirks = list(header.quirks)
        builder._kernel = header.kernel
        builder._steps = list(scenario.steps)
        if header.regs.cr0 & X86_CR0_PG:
            builder._roots = [header.regs.cr3 & PT_BASE_ADDR_MASK]
        return builder

    def build(self) -> Scenario:
        """Return the scenario."""
        regs = self.regs or MODES[self.mode]._replace(cr3=self._roots[0] if self._roots else 0)
        header = Header(
            vendor=self.vendor,
            mode=self.mode,
            regs=regs,
            backing_bytes=self.mem,
            thp=self.thp,
            manual_dirty=self.manual_dirty,
            disable_nx_huge_pages=self.disable_nx_huge_pages,
            vcpus=self.vcpus,
            dirty_ring=self.dirty_ring,
            slots=self._all_slots(),
            fills=tuple(self._fills),
            values=tuple(self._values),
            pdptfix=tuple(self._pdptfix),
            cpuid=self.cpuid,
            host=self.host,
            quirks=tuple(self._quirks),
            kernel=self._kernel,
        )
        return Scenario(header, tuple(self._steps), self.source)

    def _all_slots(self) -> tuple[Slot, ...]:
        whole = () if any(not slot.id >> 16 for slot in self._slots) else (Slot(0, 0, self.mem, 0, 0),)
        return (*whole, *self._slots)

    @property
    def _mode(self) -> PagingMode:
        regs = MODES[self.mode]
        return paging_mode(regs.cr0, regs.cr4, regs.efer)

    @property
    def _entry_bytes(self) -> int:
        return self._mode.entry_bytes if self._mode is not NONPAGING else 4

    def _table_flags(self, level: int) -> int:
        """Bits of an entry of `level` that leads to a table; a PDPTE has but P (SDM 3, 4.4.1)."""
        return PT_PRESENT_MASK if level == 3 and self._mode is PAGING_PAE else _TABLE

    def _helper_tables(self) -> None:
        tables = _HELPER_TABLES[: self._mode.root_level - 1]
        for table in tables:
            self.alloc(table)
        width = self._entry_bytes
        self.value(width, HELPER_PT + (HELPER_S >> 12) * width, HELPER_S | _SUPERVISOR)
        self.value(width, HELPER_PT + (HELPER_U >> 12) * width, HELPER_U | _TABLE)
        for lower, upper in pairwise(tables):
            self.value(width, upper, lower | _TABLE)

    def _next(self, entry_gpa: int, level: int) -> int:
        """Return the table that an entry leads to, making one if it is empty."""
        for value in reversed(self._values):
            if value.gpa == entry_gpa:
                return value.value & ~0xFFF
        table = self._next_table
        self._next_table += _PAGE
        self.alloc(table).value(self._entry_bytes, entry_gpa, table | self._table_flags(level))
        return table


def _merged(what: str, defaults: dict[str, int], changes: dict[str, int]) -> dict[str, int]:
    for name in changes:
        if name not in defaults:
            raise GrammarError(f"unknown {what} '{quoted(name)}', expected one of {' '.join(defaults)}")
    check_values(changes)
    return {**defaults, **changes}
