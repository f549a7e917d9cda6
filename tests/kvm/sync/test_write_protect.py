"""The policy that lets no page out of sync: what Linux does to upper levels, at every level."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.pte_write import WRITE_FLOODING_LIMIT
from mmulab.kvm.sync.write_protect import write_protect
from tests.kvm.guest import DATA, GVA, PAGE, Guest, W

WINDOW = GVA + 0x4000000
"""Under another leaf table: a table on the way to its own write is in use, and no flood."""


def with_window(mode: str = "64") -> Guest:
    guest = Guest(mode, sync=write_protect).map(GVA, DATA)
    guest.map(WINDOW, guest.table(GVA))
    guest.read(GVA)
    return guest


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_a_store_to_a_leaf_table_is_emulated(mode: str) -> None:
    guest = with_window(mode)
    guest.write(WINDOW + 0xFF0, 5)
    with guest.watch() as seen:
        guest.read(GVA)
        guest.write(WINDOW + 0xFF0, 7)
    assert [e.bytes for e in seen if isinstance(e, ev.kvm_mmu_pte_write)] == [4]
    assert not any(isinstance(e, ev.kvm_mmu_unsync_page) for e in seen)
    assert not guest.spte(WINDOW) & W
    assert guest.load(guest.table(GVA) + 0xFF0, 4) == 7
    assert violations(guest.kvm) == []


def test_a_changed_entry_counts_at_once() -> None:
    """No flush is waited for: the processor may forget a translation at any time (SDM 3, 4.10.2)."""
    guest = with_window()
    guest.write(WINDOW + (guest.entry(GVA) & 0xFFF), DATA + 0x2000 | PAGE, size=8)
    assert guest.spte(GVA) == 0
    guest.read(GVA)
    assert guest.maps(GVA, DATA + 0x2000)


def test_a_leaf_that_is_written_again_and_again_is_zapped() -> None:
    """``detect_write_flooding`` spares leaves only because they would have gone out of sync."""
    guest = with_window()
    page = guest.page(GVA)
    for _ in range(WRITE_FLOODING_LIMIT):
        assert page.frame in guest.kvm.pages
        guest.write(WINDOW + 0xFF0)
    assert page.frame not in guest.kvm.pages
    assert guest.kvm.stat["mmu_flooded"] == 1
    assert violations(guest.kvm) == []
