"""NX huge pages: whether a VM has them, what a fetch has split, and how it may become huge again.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``account_huge_nx_page``, ``unaccount_huge_nx_page``,
``kvm_recover_nx_lpages``), ``mmu_internal.h`` (``is_nx_huge_page_enabled``), ``tdp_mmu.c``
(``kvm_tdp_mmu_zap_sp``); 6.12 ``mmu.c``
(``track_possible_nx_huge_page``, ``kvm_recover_nx_huge_pages``).
"""

from __future__ import annotations

from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm


def is_nx_huge_page_enabled(kvm: Kvm) -> bool:
    """Whether this VM's huge pages are not executable: the host has it so, and the VMM did not opt out."""
    return kvm.nx_huge_pages and not kvm.disable_nx_huge_pages


def account_nx_huge_page(kvm: Kvm, sp: ShadowPage, *, possible: bool) -> None:
    """Say of a page that a fetch made it, and whether but for it a huge page would be `possible`.

    6.1 knows of the latter alone.
    """
    if possible or kvm.behaviours.nx_huge_page_is_tagged:
        sp.lpage_disallowed = True
    if possible and sp.frame not in kvm.possible_nx_huge_pages:
        kvm.possible_nx_huge_pages[sp.frame] = None
        kvm.stat["nx_lpage_splits"] += 1


def unaccount_nx_huge_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Undo :func:`account_nx_huge_page`."""
    sp.lpage_disallowed = False
    if sp.frame in kvm.possible_nx_huge_pages:
        del kvm.possible_nx_huge_pages[sp.frame]
        kvm.stat["nx_lpage_splits"] -= 1


def is_dirty_tracked(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether the slot of what a direct page maps has dirty logging: it would come back as small pages."""
    slot = kvm.slots[sp.smm].lookup(sp.gfn)
    return slot is not None and kvm_slot_dirty_track_enabled(slot)
