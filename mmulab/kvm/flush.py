"""Flushes of the hardware's translations.

Source: Linux 6.1 and 6.12 ``virt/kvm/kvm_main.c`` (``kvm_flush_remote_tlbs``),
``arch/x86/kvm/mmu/mmu_internal.h`` (``kvm_flush_remote_tlbs_gfn``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.mmu_internal import KVM_PAGES_PER_HPAGE
from mmulab.kvm.mmu_page import kvm_mmu_page_get_gfn
from mmulab.kvm.state import Kvm, Request, Vcpu, spte_index, sptep_to_sp
from mmulab.kvm.trace import trace


def kvm_flush_remote_tlbs(kvm: Kvm) -> None:
    """Ask every processor to forget its translations."""
    trace(kvm, ev.kvm_flush_remote_tlbs)
    kvm.stat["remote_tlb_flush_requests"] += 1
    kvm.make_all_cpus_request(Request.TLB_FLUSH)


def kvm_flush_remote_tlbs_range(kvm: Kvm, start_gfn: int, pages: int) -> None:
    """Ask for a flush of a range; without a paravirtual host that is a flush of all."""
    trace(kvm, ev.kvm_flush_remote_tlbs_with_address, start_gfn, pages)
    kvm_flush_remote_tlbs(kvm)


def kvm_flush_remote_tlbs_gfn(kvm: Kvm, gfn: int, level: int) -> None:
    """Ask for a flush of the page of `level` that holds `gfn`, from inside ``mmu.c``.

    6.1 inlines the call there, so that a probe sees nothing but the flush of all.
    """
    if kvm.behaviours.ranged_flushes_are_calls:
        pages = KVM_PAGES_PER_HPAGE[level]
        kvm_flush_remote_tlbs_range(kvm, gfn & -pages, pages)
    else:
        kvm_flush_remote_tlbs(kvm)


def kvm_flush_remote_tlbs_sptep(kvm: Kvm, sptep: int) -> None:
    """Ask for a flush of what the spte maps."""
    sp, index = sptep_to_sp(kvm, sptep), spte_index(sptep)
    # Only leaves have their gfn kept; for another entry Linux reads what the allocator left: zeros,
    # with init_on_alloc.
    kept = not sp.has_gptes or index in sp.shadowed_translation
    kvm_flush_remote_tlbs_gfn(kvm, kvm_mmu_page_get_gfn(sp, index) if kept else 0, sp.level)


def flush_tlb(vcpu: Vcpu, request: int) -> None:
    """Let the vCPU's processor forget what a ``TLB_FLUSH*`` request says (``kvm_x86_flush_tlb_*``)."""
    sink = vcpu.kvm.tlb_sink
    if sink is not None:
        sink(vcpu, request)


def tell_entry(vcpu: Vcpu) -> None:
    """Tell who follows the TLBs that the vCPU enters the guest, with the root that it has."""
    sink = vcpu.kvm.tlb_sink
    if sink is not None:
        sink(vcpu, 0)
