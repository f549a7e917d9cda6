"""What a recording host is asked to trace: tracepoints, and probes at the entry of functions."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.kernels import KERNELS

__all__ = ["event_lines", "probe_lines"]

_ARGUMENTS = {
    "kvm_mmu_new_pgd": "new_pgd=%si:x64",
    "kvm_mmu_free_roots": "roots_to_free=%dx:x64",
    "kvm_mmu_invlpg": "gva=%si:x64",
    "kvm_mmu_unprotect_page": "gfn=%si:x64",
    "kvm_mmu_pte_write": "gpa=%si:x64 bytes=%cx:u32",
    "kvm_mmu_track_write": "gpa=%si:x64 bytes=%cx:u32",
    "kvm_flush_remote_tlbs_with_address": "start_gfn=%si:x64 pages=%dx:x64",
    "kvm_flush_remote_tlbs_range": "start_gfn=%si:x64 pages=%dx:x64",
    "drop_spte": "sptep=%si:x64 old_spte=+0(%si):x64",
}
"""The arguments of each function that are fields of the event, and the registers that hold them at entry."""

_NOT_RECORDED = {"amd": {"kvm_nested_vmenter", "kvm_nested_vmenter_failed"}, "intel": set[str]()}
"""Tracepoints that recordings of AMD hosts do not have: VMRUN is an op there, and says it."""


def probe_lines() -> list[str]:
    """Return ``EVENT FUNCTION ARGUMENT..`` for each function that any known kernel enters for an event.

    A kernel of one's own may be of any age: of an event's functions the first that it has is probed.
    """
    lines = []
    for kind in ev.FUNCTIONS:
        words = [k.events for k in KERNELS.values() if kind not in k.events.not_recorded()]
        for function in dict.fromkeys(known.name(kind) for known in words):
            arguments = _ARGUMENTS.get(function, "")
            lines.append(f"{kind.__name__} {function} {arguments}".rstrip())
    return lines


def event_lines(vendor: str) -> list[str]:
    """Return ``GROUP/NAME`` of each tracepoint that a recording has."""
    return [
        f"{group}/{kind.__name__}"
        for group, kinds in (("kvmmmu", ev.KVMMMU), ("kvm", ev.KVM))
        for kind in kinds
        if kind.__name__ not in _NOT_RECORDED[vendor]
    ]
