"""One page goes out of sync, or comes back.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_unsync_page``,
``kvm_unlink_unsync_page``, ``for_each_gfn_valid_sp_with_gptes``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm, is_obsolete_sp


def gfn_sps_with_gptes(kvm: Kvm, gfn: int) -> list[ShadowPage]:
    """Return the usable pages that shadow the table at `gfn`, newest first."""
    frames = kvm.page_hash.get(gfn)
    if not frames:
        return []
    pages = [kvm.pages[f] for f in frames]
    return [sp for sp in pages if sp.has_gptes and not is_obsolete_sp(kvm, sp)]


def kvm_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Let `sp` go out of sync; who must find it again is the policy's affair."""
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_mmu_unsync_page(sp.gfn, sp.role, sp.mmu_valid_gen, sp.root_count, sp.unsync))
    kvm.stat["mmu_unsync"] += 1
    kvm.sync_stat["unsyncs"] += 1
    sp.unsync = True


def kvm_unlink_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """End `sp`'s being out of sync."""
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_mmu_sync_page(sp.gfn, sp.role, sp.mmu_valid_gen, sp.root_count, sp.unsync))
    sp.unsync = False
    kvm.stat["mmu_unsync"] -= 1
