"""What a policy did, counted."""

from __future__ import annotations

from mmulab.kvm.sync.counts import SyncCounts, sync_counts
from mmulab.kvm.sync.oos_2008 import Oos2008
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect
from tests.kvm.guest import DATA, GVA, Guest

WINDOW = GVA + 0x40000000


def with_window(policy: SyncPolicy) -> Guest:
    """A guest with two pages in use, whose leaf table and root are mapped under another leaf."""
    guest = Guest("64", sync=policy).map(GVA, DATA).map(GVA + 0x1000, DATA + 0x1000)
    guest.map(WINDOW, guest.table(GVA)).map(WINDOW + 0x1000, guest.root)
    guest.read(GVA)
    guest.read(GVA + 0x1000)
    return guest


def written(policy: SyncPolicy) -> tuple[Guest, SyncCounts]:
    """Write the leaf table twice and the root once, load CR3 twice and flush an entry."""
    guest = with_window(policy)
    for _ in range(2):
        guest.write(WINDOW + 0xFF0)
    guest.write(WINDOW + 0x1FF0)
    guest.invlpg(GVA)
    guest.cr3()
    guest.cr3()
    return guest, sync_counts(guest.kvm)


def test_what_is_emulated_and_what_is_synced() -> None:
    _, merged = written(unsync_children)
    assert (merged.emulated_writes, merged.write_protect_faults) == (1, 2)
    assert (merged.unsyncs, merged.syncs, merged.entries) == (1, 1, 1 + 2)
    assert (merged.cr3_writes, merged.idle_cr3_writes) == (2, 1)
    assert merged.refused == {"upper_level": 1}


def test_without_unsync_every_write_is_a_fault_and_every_cr3_idle() -> None:
    _, protected = written(write_protect)
    assert protected.emulated_writes == protected.write_protect_faults == 3
    assert (protected.unsyncs, protected.syncs, protected.entries) == (0, 0, 0)
    assert protected.cr3_writes == protected.idle_cr3_writes == 2
    assert protected.refused == {"write_protected": 2, "upper_level": 1}


def test_memory_follows_the_pages() -> None:
    """A bitmap, a count and a flag; two list heads, a gfn and two flags, seven places and an index."""
    guest, merged = written(unsync_children)
    pages = guest.kvm.n_used_mmu_pages
    assert merged.bytes == pages * (64 + 4 + 1)
    assert merged.peak_bytes >= merged.bytes
    _, old = written(Oos2008())
    assert old.bytes == pages * (2 * 16 + 8 + 2) + 7 * 8 + 4
    _, counters = written(Oos2008(global_by="counters", globals="list"))
    assert counters.bytes == pages * (2 * 16 + 8 + 1 + 4) + 16
    assert written(write_protect)[1].peak_bytes == 0


def test_in_words() -> None:
    assert str(written(unsync_children)[1]).startswith("sync unsync_children: emulated writes 1, ")
