"""No table goes out of sync: Linux before 2.6.28, and its rule for upper levels today."""

from __future__ import annotations

from typing import ClassVar

from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.page_track import kvm_slot_page_track_is_active
from mmulab.kvm.state import Kvm
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync import gfn_sps_with_gptes


class WriteProtect(SyncPolicy):
    """Every shadowed table is write-tracked: each write to one is emulated, or floods the page."""

    name: ClassVar[str] = "write_protect"
    summary: ClassVar[str] = "no page goes out of sync: every write to a shadowed table is emulated"
    source: ClassVar[str] = "write tracking of Linux 6.1 (arch/x86/kvm/mmu/page_track.c), for all levels"

    def try_to_unsync(
        self, kvm: Kvm, slot: KvmMemslot, gfn: int, *, can_unsync: bool, prefetch: bool
    ) -> bool:
        if kvm_slot_page_track_is_active(kvm, slot, gfn):
            return self.refuse(kvm, self.tracked_because(kvm, gfn)) if can_unsync and not prefetch else False
        return True

    def tracks(self, kvm: Kvm, sp: ShadowPage) -> bool:
        return True

    def counts_floods(self, kvm: Kvm, sp: ShadowPage) -> bool:
        return True

    def tracked_because(self, kvm: Kvm, gfn: int) -> str:
        upper = any(sp.level > 1 for sp in gfn_sps_with_gptes(kvm, gfn))
        return super().tracked_because(kvm, gfn) if upper else "write_protected"


write_protect = WriteProtect()
