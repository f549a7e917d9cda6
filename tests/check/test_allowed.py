"""Walks with entries that the processor may remember."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmulab.check.allowed import Choices, allowed_walks, every
from mmulab.check.remembered import Forgotten, TableHistory
from mmulab.check.world import World
from mmulab.memory.host import HostMemory
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_PG, X86_CR0_WP, X86_CR4_PGE, CpuModel

DIRECTORY, TABLE, OTHER = 0x1000, 0x2000, 0x3000
GVA = 0x5000


class Guest:
    """A 32-bit guest of one page, its entries and what it flushes."""

    def __init__(self) -> None:
        self.memory = HostMemory(1 << 21, table_frames=8)
        self.base = self.memory.backing << 12
        self.put(DIRECTORY, TABLE | 0x67)
        self.put(TABLE + 4 * 5, 0x10067)
        self.history, self.forgotten, self.now = TableHistory(self.memory), Forgotten(), 0
        paging = make_paging(X86_CR0_PG | X86_CR0_WP, X86_CR4_PGE, 0, CpuModel(), KVM_WALK)
        control = (X86_CR0_PG, X86_CR4_PGE, 0)
        self.world = World((paging,), DIRECTORY, 0, control, "L1", lambda gpa: self.base + gpa)

    def put(self, gpa: int, entry: int) -> None:
        self.memory.write(self.base + gpa, 4, entry)

    def write(self, gpa: int, entry: int) -> None:
        self.now += 1
        self.put(gpa, entry)
        self.history.note(self.now)

    def ends(self, pfec: int = 0) -> list[int | None]:
        return [w.gpa for w in allowed_walks(self.world, self.history, self.forgotten, GVA, pfec)]


@given(st.lists(st.integers(1, 3), max_size=4))
def test_every_way_to_choose_is_taken_once(sizes: list[int]) -> None:
    def run(choices: Choices) -> tuple[int, ...]:
        return tuple(choices.pick(range(size)) for size in sizes)

    found = list(every(run))
    total = 1
    for size in sizes:
        total *= size
    assert len(found) == len(set(found)) == total
    assert found[0] == (0,) * len(sizes)


def test_a_changed_entry_may_be_remembered_until_it_is_flushed() -> None:
    guest = Guest()
    guest.write(TABLE + 20, 0x11067)
    assert guest.ends() == [0x11000, 0x10000]
    guest.write(TABLE + 20, 0)
    assert guest.ends() == [None, 0x10000, 0x11000]
    guest.forgotten.page("L1", 0, GVA, guest.now)
    assert guest.ends() == [None]


def test_an_absent_entry_is_never_remembered() -> None:
    guest = Guest()
    guest.write(TABLE + 20, 0)
    guest.forgotten.pcid("L1", 0, guest.now)
    guest.write(TABLE + 20, 0x12067)
    assert guest.ends() == [0x12000]


def test_levels_are_remembered_apart() -> None:
    guest = Guest()
    guest.put(OTHER + 20, 0x20067)
    guest.write(DIRECTORY, OTHER | 0x67)
    guest.write(TABLE + 20, 0x11067)
    assert guest.ends() == [0x20000, 0x11000, 0x10000]


def test_a_global_leaf_outlives_a_write_to_cr3() -> None:
    guest = Guest()
    guest.write(TABLE + 20, 0x11167)
    guest.forgotten.pcid("L1", 0, guest.now)
    guest.write(TABLE + 20, 0x12067)
    guest.forgotten.pcid("L1", 0, guest.now)
    assert guest.ends() == [0x12000, 0x11000]
    guest.forgotten.space("L1", guest.now)
    assert guest.ends() == [0x12000]


def test_remembered_rights_may_fault_and_may_allow() -> None:
    guest = Guest()
    guest.write(TABLE + 20, 0x10065)
    assert guest.ends(PFERR_WRITE_MASK) == [None, 0x10000]
