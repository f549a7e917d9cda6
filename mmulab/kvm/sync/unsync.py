"""One page goes out of sync, or comes back.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_unsync_page``,
``kvm_unlink_unsync_page``, ``for_each_gfn_valid_sp_with_gptes``).
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.page_track import kvm_slot_page_track_is_active
from mmulab.kvm.state import Kvm, is_obsolete_sp
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.trace import trace_page


def gfn_sps_with_gptes(kvm: Kvm, gfn: int) -> list[ShadowPage]:
    """Return the usable pages that shadow the table at `gfn`, newest first."""
    frames = kvm.page_hash.get(gfn)
    if not frames:
        return []
    pages = [kvm.pages[f] for f in frames]
    return [sp for sp in pages if sp.has_gptes and not is_obsolete_sp(kvm, sp)]


def unsync_pages(
    policy: SyncPolicy,
    kvm: Kvm,
    slot: KvmMemslot,
    gfn: int,
    leave: Callable[[Kvm, ShadowPage], str],
    *,
    can_unsync: bool,
    prefetch: bool,
) -> bool:
    """Let the pages that shadow `gfn` go out of sync, as :meth:`SyncPolicy.try_to_unsync` is asked to.

    `leave` does it with one page, or says in a word why that must stay.
    """
    if kvm_slot_page_track_is_active(kvm, slot, gfn):
        return policy.refuse(kvm, policy.tracked_because(kvm, gfn)) if can_unsync and not prefetch else False
    for sp in gfn_sps_with_gptes(kvm, gfn):
        if not can_unsync:
            return False
        if sp.unsync:
            continue
        if prefetch:
            return False
        warn_on(kvm, "mmu.c:mmu_try_to_unsync_pages:level", sp.level != 1)
        reason = leave(kvm, sp)
        if reason:
            return policy.refuse(kvm, reason)
    return True


def kvm_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Let `sp` go out of sync; who must find it again is the policy's affair."""
    trace_page(kvm, ev.kvm_mmu_unsync_page, sp)
    kvm.stat["mmu_unsync"] += 1
    kvm.sync_stat["unsyncs"] += 1
    sp.unsync = True


def kvm_unlink_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """End `sp`'s being out of sync."""
    warn_on(kvm, "mmu.c:kvm_unlink_unsync_page:unsync", not sp.unsync)
    trace_page(kvm, ev.kvm_mmu_sync_page, sp)
    sp.unsync = False
    kvm.stat["mmu_unsync"] -= 1
