"""A nested guest on huge pages, and what its faults found.

L1 maps L2's memory with large pages and L0 backs them with huge ones. Without
eager splitting the first write to each huge page that is logged finds it write-protected, and
every other page of it is not present afterwards, whether it is read or written.
With it only the written pages fault, and only they count as dirty: a page that is
mapped because it was read is mapped writable, so KVM counts it as dirty at once.
The passes over memory are in :mod:`mmulab.lab.eager_split.passes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from mmulab.check.control_block import vmcb
from mmulab.events import Event, drop_spte, kvm_page_fault, kvm_tdp_mmu_spte_changed
from mmulab.kvm.spte import is_large_pte, is_shadow_present_pte
from mmulab.lab.cases.build import L1_ROOT, NPT_ROOT, TABLES, VMCB_GPA
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES
from mmulab.scenario.tables import Tables, mode_of
from mmulab.x86.pferr import PFERR_PRESENT_MASK
from mmulab.x86.regs import EFER_SVME

MEMORY = 0x400000
"""Where L2's memory begins, at the same address for L1; a multiple of the largest page used here."""
HUGE = 1 << 21
_PAGE = 4096


def huge_guest(
    huge_pages: int, *, l1: str = "64", vcpus: int = 1, host: dict[str, int] | None = None
) -> tuple[ScenarioBuilder, Tables]:
    """Return a builder with an L1 on AMD that maps L2's memory with large pages, and its nested tables.

    The builder has no op yet. L2 has no paging, and sees :data:`MEMORY` where L1 does.

    Parameters
    ----------
    huge_pages : int
        2 MiB pages of L2's memory; an even number for an L1 with ``"32"``, whose large pages have 4 MiB.
    l1 : {"32", "pae", "64", "57"}
        Paging of L1, and with it the form of its nested tables.
    vcpus : int
    host : dict of str to int, optional
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    size = MEMORY + huge_pages * HUGE
    changes = {"npt": 1, "tdp_mmu": 1, **(host or {})}
    builder = ScenarioBuilder(l1, mem=size, thp=True, vcpus=vcpus, cpu={"svm": 1}, host=changes)
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


def access(address: int, *, write: bool) -> Op:
    """Return a read, or the write of a value that tells the page."""
    if write:
        return ops.Write(Mode.SUPERVISOR, 4, address, address >> 12)
    return ops.Read(Mode.SUPERVISOR, 4, address)


def fault_kinds(events: Iterable[Event], *, present: int = PFERR_PRESENT_MASK) -> list[str]:
    """Return what each fault on the measured memory found, by the names of its causes.

    Parameters
    ----------
    events : iterable of Event
    present : int
        Bits of an error code that say that something was mapped.

    That a huge page stood in the way shows by its being dropped, or by a table in its place.
    """
    kinds: list[str] = []
    for event in events:
        if isinstance(event, kvm_page_fault) and event.fault_address >= MEMORY:
            kinds.append("write_protect" if event.error_code & present else "not_present")
        elif kinds and _drops_huge_page(event):
            kinds[-1] = "huge_write_protect"
    return kinds


def _drops_huge_page(event: Event) -> bool:
    if isinstance(event, drop_spte):
        return is_large_pte(event.old_spte)
    if not isinstance(event, kvm_tdp_mmu_spte_changed):
        return False
    before, after = (
        is_shadow_present_pte(spte) and is_large_pte(spte) for spte in (event.old_spte, event.new_spte)
    )
    return before and not after
