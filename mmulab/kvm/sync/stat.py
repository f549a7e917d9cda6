"""The counters of a VM's sync policy, always on."""

from __future__ import annotations

SYNC_STATS = (
    "emulated_writes",
    "write_protect_faults",
    "unsyncs",
    "syncs",
    "entries",
    "cr3_writes",
    "idle_cr3_writes",
    "evicted",
    "most_pages",
)
REFUSED = "refused "
"""Before the reason for which a page stayed in sync, in the counters' names."""


def count_refused(stat: dict[str, int], reason: str) -> None:
    """Count a page that was written and could not go out of sync."""
    name = REFUSED + reason
    stat[name] = stat.get(name, 0) + 1
