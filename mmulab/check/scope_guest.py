"""The pieces of a scope's guest: its tables, and the addresses that all scopes share."""

from __future__ import annotations

from itertools import count

from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs
from mmulab.scenario.tables import PAGE, TABLE_FLAGS, Tables, mode_of
from mmulab.x86.mode import (
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)

MEMORY = 0x100000
ROOT, TABLES, PAGES = 0x10000, 0x20000, 0x80000
"""Guest-physical addresses of the first root, of further tables, of data pages."""
ROOT2, TABLES2 = 0x11000, 0xA0000
"""The same of the second root and its tables."""
OUTSIDE = 0x8000000
"""An address in no memslot."""
GVA, TABLE_VA = 0x40000000, 0x40080000
"""Where the data lies for the guest, and the tables that it writes itself."""
FULL = TABLE_FLAGS
READ_ONLY, SUPERVISOR = FULL & ~PT_WRITABLE_MASK, FULL & ~PT_USER_MASK


def guest(
    mode: str,
    *,
    vendor: str = "amd",
    vcpus: int = 1,
    mem: int = MEMORY,
    thp: int = 0,
    cpu: dict[str, int] | None = None,
    **host: int,
) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest whose tables map only the pages of stubs, and three marked pages from PAGES on.

    Parameters
    ----------
    mode : str
        A key of :data:`~mmulab.scenario.scenario.MODES`, but for ``np``.
    vendor, vcpus, mem, thp, cpu
        As :class:`~mmulab.scenario.builder.ScenarioBuilder` has them.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    levels = {"virt_bits": 57 if mode == "57" else 48}
    builder = ScenarioBuilder(
        mode, vendor=vendor, mem=mem, vcpus=vcpus, thp=bool(thp), cpu=cpu, host={**levels, **host}
    )
    for page in range(PAGES, PAGES + 4 * PAGE, PAGE):
        builder.value(4, page, 0xC0DE0000 | page >> 8)
    regs = MODES[mode]._replace(cr3=ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), ROOT, count(TABLES, PAGE))
    tables.put(HELPER_S, HELPER_S | SUPERVISOR)
    tables.identity(HELPER_U)
    return builder, tables, regs


def as_text(how: str, width: int, at: int, value: int) -> str:
    """Return the op that stores an entry: ``wr s`` to a virtual address, ``hw`` behind KVM's back."""
    return f"{how} {width} {at:x} {value:x}"
