"""What a sync policy costs a VM, counted while it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmulab.kvm.state import Kvm
from mmulab.kvm.sync.stat import REFUSED


class SyncCounts(NamedTuple):
    """What a policy did and cost.

    Attributes
    ----------
    policy : str
        Its text.
    emulated_writes : int
        Writes to shadowed tables that KVM executed, those of devices and of a
        replayed stream included.
    write_protect_faults : int
        Faults because a table was write-protected, however they ended.
    unsyncs : int
        Pages that went out of sync.
    syncs, entries : int
        Pages compared with their tables, and sptes that were compared in that;
        single entries that INVLPG compared count among `entries` only.
    cr3_writes, idle_cr3_writes : int
        Loads of CR3 that oblige to a sync, and those of them that found no page out of sync.
    evicted : int
        Pages that came back because another needed their place.
    refused : dict of str to int
        Pages that could not go out of sync when they were written, by reason.
    bytes, peak_bytes : int
        Memory of the bookkeeping, as the kernel would have it: what each shadow page
        and the VM have for it, now and when there were the most pages.
    """

    policy: str
    emulated_writes: int
    write_protect_faults: int
    unsyncs: int
    syncs: int
    entries: int
    cr3_writes: int
    idle_cr3_writes: int
    evicted: int
    refused: dict[str, int]
    bytes: int
    peak_bytes: int

    def __str__(self) -> str:
        refused = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in self.refused.items())
        return (
            f"sync {self.policy}: emulated writes {self.emulated_writes}, write-protect faults "
            f"{self.write_protect_faults}, unsynced {self.unsyncs}, synced {self.syncs} of {self.entries} "
            f"entries, CR3 writes {self.cr3_writes} with {self.idle_cr3_writes} idle, "
            f"evicted {self.evicted}, refused {refused or 'none'}, bookkeeping {self.peak_bytes} bytes"
        )

    def record(self) -> dict[str, Any]:
        """Return the counts as JSON holds them."""
        return self._asdict()


def sync_counts(kvm: Kvm) -> SyncCounts:
    """Return what the VM's sync policy has done so far."""
    stat, sync = kvm.sync_stat, kvm.sync
    return SyncCounts(
        str(sync),
        stat["emulated_writes"],
        stat["write_protect_faults"],
        stat["unsyncs"],
        stat["syncs"],
        stat["entries"],
        stat["cr3_writes"],
        stat["idle_cr3_writes"],
        stat["evicted"],
        {name.removeprefix(REFUSED): count for name, count in stat.items() if name.startswith(REFUSED)},
        sync.vm_bytes + sync.page_bytes * kvm.n_used_mmu_pages,
        sync.vm_bytes + sync.page_bytes * stat["most_pages"],
    )
