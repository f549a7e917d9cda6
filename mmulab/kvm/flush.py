"""Flushes of the hardware's translations.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``kvm_flush_remote_tlbs``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.state import Kvm, Request


def kvm_flush_remote_tlbs(kvm: Kvm) -> None:
    """Ask every processor to forget its translations."""
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_flush_remote_tlbs())
    kvm.stat["remote_tlb_flush_requests"] += 1
    kvm.make_all_cpus_request(Request.TLB_FLUSH)


def kvm_flush_remote_tlbs_with_address(kvm: Kvm, start_gfn: int, pages: int) -> None:
    """Ask for a flush of a range; without a paravirtual host that is a flush of all.

    Only calls from outside ``mmu.c`` are reported: those inside are inlined, so
    that a probe on the function does not see them.
    """
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_flush_remote_tlbs_with_address(start_gfn, pages))
    kvm_flush_remote_tlbs(kvm)
