"""What KVM's MMU does one way in one kernel and another way in the next: each a named switch.

A :class:`Behaviours` is the set that a kernel has. The engine asks for one by
name, where it happens, and never for a version: distributions backport, and a
patch on a mailing list has no version. Each says with which commit and release
of mainline it came or went.

Source: Linux 6.1.192 and 6.12.117, read side by side; the commits are mainline's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from mmulab.errors import InputError, find_named, quoted


class Change(NamedTuple):
    """The commit that brought a behaviour, or removed it.

    Attributes
    ----------
    name : str
    summary : str
        What KVM does with it.
    commit : str
        Of mainline; empty if no release has it.
    release : str
        The first release with the commit; empty if none has it.
    removed : bool
        The commit took the behaviour away.
    source : str
        Functions, before and after.
    shows : str
        Recording and op where it first shows, in ``data/conformance`` or ``data/conformance-more``; empty
        if no recording reaches it.
    """

    name: str
    summary: str
    commit: str
    release: str
    removed: bool
    source: str
    shows: str

    def __str__(self) -> str:
        if not self.release:
            return f"{self.name}: {self.summary} (in no release)"
        verb = "until" if self.removed else "since"
        return f"{self.name}: {self.summary} ({verb} {self.release}, {self.commit})"


def _since(release: str, commit: str, summary: str, source: str, *, shows: str = "") -> Any:
    """Declare a behaviour that the commit brought; 6.1 is without it."""
    change = (summary, commit, release, False, source, shows)
    return field(default=False, metadata={"change": change})


def _proposed(summary: str, source: str) -> Any:
    """Declare a fix that no release has."""
    return field(default=False, metadata={"change": (summary, "", "", False, source, "")})


def _until(release: str, commit: str, summary: str, source: str, *, shows: str = "") -> Any:
    """Declare a behaviour that the commit took away; 6.1 has it."""
    change = (summary, commit, release, True, source, shows)
    return field(default=True, metadata={"change": change})


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviours:
    """A kernel's behaviours; the defaults are Linux 6.1's."""

    invalidate_syncs_in_place: bool = _since(
        "6.4",
        "9fd4a4e3a3d9",
        "INVLPG, and the invalidation before an injected #PF, sync the spte of an unsync page in place; "
        "a hole stays a hole",
        "paging_tmpl.h:FNAME(invlpg) -> mmu.c:__kvm_mmu_invalidate_addr",
        shows="sh/dirtylog-32 op 35",
    )
    sync_keeps_clean_sptes: bool = _since(
        "6.4",
        "e6722d9211b2",
        "A sync leaves an spte alone whose gfn and rights are what its gpte says",
        "paging_tmpl.h:FNAME(sync_page) -> FNAME(sync_spte)",
        shows="sh/fuzz-32-mix-00 op 67",
    )
    unprotect_on_reinjection: bool = _until(
        "6.12",
        "b299c273c06f",
        "A #PF during the delivery of an event unprotects the gfn at its address, whatever the fault is; "
        "without it only if the fault hit a write-protected page",
        "mmu.c:kvm_handle_page_fault -> kvm_mmu_write_protect_fault",
        shows="sh/fuzz-32-mix-00 op 122",
    )
    is_self_change_mapping: bool = _until(
        "6.4",
        "9a967700496f",
        "A huge page that maps the guest's own tables of the walk is mapped as a small one",
        "paging_tmpl.h:FNAME(is_self_change_mapping) -> FNAME(fetch)",
        shows="nested48/nested-large-thp-64 op 12",
    )
    roots_all_is_four_bits: bool = _since(
        "6.4",
        "cd42853e9530",
        "'All roots' is the mask 0xf, not all ones",
        "kvm_host.h:KVM_MMU_ROOTS_ALL",
        shows="sh/accessed-dirty-32 op init",
    )
    ranged_flushes_are_calls: bool = _since(
        "6.6",
        "d4788996051e",
        "A flush of a range of gfns is a call into kvm_main.c, which a probe sees, with the gfn of the spte",
        "mmu.c:kvm_flush_remote_tlbs_with_address -> kvm_main.c:kvm_flush_remote_tlbs_range",
        shows="sh/accessed-dirty-32 op 34",
    )
    nx_recovery_spares_logged: bool = _since(
        "6.2",
        "eb298605705a",
        "The recovery of NX huge pages spares what lies in a slot with dirty logging, and stops counting it",
        "mmu.c:kvm_recover_nx_lpages -> kvm_recover_nx_huge_pages",
        shows="nxrecover-sh/nx-recover-dirtylog-32 op 19",
    )
    nonpaging_counts_nx: bool = _since(
        "6.2",
        "b5b0977f4aa2",
        "Splits of NX huge pages count, and are recovered, for a guest without paging on shadow tables too",
        "mmu.c:direct_map",
        shows="nxrecover-sh/nx-recover-dirtylog-np op 0",
    )
    nx_huge_page_is_tagged: bool = _since(
        "6.2",
        "76901e56fb51",
        "With nx_huge_pages a table gives way to a huge page unless a fetch made it",
        "mmu.c:disallowed_hugepage_adjust",
        shows="nxrecover-sh/nx-recover-dirtylog-32 op 63",
    )
    sregs_flush_guest: bool = _since(
        "6.7",
        "4346db6e6e7a",
        "KVM_SET_SREGS that resets the MMU also asks for a flush as if the guest had made it",
        "x86.c:__set_sregs",
        shows="sh/accessed-dirty-32 op 0",
    )
    cr0_wp_needs_paging: bool = _since(
        "6.4",
        "e40bcf9f3a18",
        "CR0.WP that changes while CR0.PG is 0 changes nothing of the MMU",
        "x86.c:kvm_post_set_cr0",
        shows="sh/nonpaging op 24",
    )
    nonpresent_is_bit_63: bool = _since(
        "6.10",
        "7f01cab84928",
        "An empty or frozen spte of a 64-bit host has bit 63",
        "spte.h:SHADOW_NONPRESENT_VALUE",
        shows="tdp1/accessed-dirty-64 op 0",
    )
    zap_root_level_by_level: bool = _since(
        "6.9",
        "8ca983631f3c",
        "A TDP MMU root is zapped at 4 KiB, 2 MiB, 1 GiB and its own level, not at 1 GiB and its own",
        "tdp_mmu.c:tdp_mmu_zap_root",
        shows="tdp1/accessed-dirty-64 op 41",
    )
    zap_flushes_before_children: bool = _since(
        "6.10",
        "aca48556c592",
        "An entry that the TDP MMU zaps under the shared lock is flushed before what is below it goes",
        "tdp_mmu.c:tdp_mmu_zap_spte_atomic",
        shows="ept1-host-noad/dirtylog-manual-thp-64 op 46",
    )
    zap_leafs_skips_invalid_roots: bool = _since(
        "6.9",
        "99b85fda91b1",
        "Zapping a range of gfns passes over TDP MMU roots that are on their way out",
        "tdp_mmu.c:kvm_tdp_mmu_zap_leafs",
    )
    tdp_fault_splits_huge_page: bool = _since(
        "6.3",
        "c4b33d28ea51",
        "A fault that needs a small page splits the TDP MMU's huge one; its other parts stay mapped",
        "tdp_mmu.c:kvm_tdp_mmu_map -> tdp_mmu_split_huge_page",
        shows="nested48/nested-fuzz-32-04 op 12",
    )
    error_code_has_64_bits: bool = _since(
        "6.10",
        "c9710130ccae",
        "The page-fault handler gets all 64 bits of the error code, PFERR_GUEST_FINAL and _PAGE among them",
        "mmu.c:kvm_mmu_page_fault",
        shows="tdp0/dirtylog-64 op 8",
    )
    retry_only_if_write_protected: bool = _since(
        "6.12",
        "989a84c93f59",
        "An instruction is run again instead of emulated only if it hit a write-protected page",
        "x86.c:retry_instruction -> mmu.c:kvm_mmu_write_protect_fault",
        shows="tdp0/memslot-64 op 29",
    )
    pageout_ignores_references: bool = _since(
        "6.9",
        "2864f3d0f583",
        "MADV_PAGEOUT takes a page away without asking whether it was accessed",
        "mm/vmscan.c:reclaim_pages",
        shows="swapout-sh/swapout-32 op 3",
    )
    swapin_is_writable: bool = _since(
        "6.11",
        "c18160dba5ff",
        "A page that comes back from swap to be read may be written at once, so KVM maps it writable",
        "mm/memory.c:do_swap_page",
        shows="swapout-sh/swapout-32 op 4",
    )
    pte_list_keeps_tail_full: bool = _since(
        "6.4",
        "141705b78381",
        "A reverse map grows at its head, and a removed entry is replaced by the head block's last",
        "mmu.c:pte_list_add, pte_list_remove",
    )
    ept_suppresses_ve: bool = _since(
        "6.10",
        "7fa5e2929198",
        "Every EPT spte has SUPPRESS_VE, bit 63, as part of the present mask",
        "spte.c:kvm_mmu_set_ept_masks",
        shows="nested-ept/ept-basic-ad-l132 op 0",
    )
    misconfig_has_no_qualification: bool = _since(
        "6.12",
        "96b067b59ad9",
        "An EPT misconfiguration that KVM gives to L1 has exit qualification 0 (a backport: 6.12.117 has it)",
        "vmx/nested.c:nested_ept_inject_page_fault",
        shows="nested-ept/ept-misconfig-ad op 3",
    )
    dummy_root: bool = _since(
        "6.7",
        "0e3223d8d00a",
        "A root outside all memslots is a page of zeros, not a triple fault",
        "mmu.c:mmu_check_root -> kvm_mmu_get_dummy_root",
        shows="nested-ept/ept-misconfig-eptp-ad op 41",
    )
    pdpte_violation_is_no_guest_page: bool = _since(
        "6.12",
        "f3009482512e",
        "An EPT violation without a linear address is neither GUEST_FINAL nor GUEST_PAGE",
        "vmx/vmx.c:handle_ept_violation -> vmx/common.h:__vmx_handle_ept_violation",
        shows="ept0-host-noad/roots3-pae op 0",
    )
    smm_needs_smram: bool = _since(
        "6.2",
        "89dccf82e99e",
        "An SMI whose state-save area cannot be written ends the VM",
        "x86.c:enter_smm -> smm.c:enter_smm",
        shows="smm/smm-nosmram-64 op 1",
    )
    sregs_check_efer: bool = _since(
        "6.12",
        "184bd464bdb6",
        "KVM_SET_SREGS refuses what the guest itself may not set in EFER (a backport: 6.12.117 has it)",
        "x86.c:kvm_is_valid_sregs -> regs.c:kvm_is_valid_sregs",
        shows="cpuid/cpuid-before-run-57 op 19",
    )

    svm_vmexit_restores_cr4: bool = _proposed(
        "A #VMEXIT gives L1 its own CR4 without nested paging too, where L1 pages and L2 does not, or the "
        "other way round",
        "svm/nested.c:nested_svm_vmexit calls svm_set_cr0 first, which writes L2's CR4 to vmcb01 "
        "(svm.c:svm_set_cr4) before it is read from there; 6.1.192 and 6.12.117 do so",
    )

    def names(self) -> tuple[str, ...]:
        """Return the names of the behaviours that are on, in the order of the table."""
        return tuple(name for name in CHANGES if getattr(self, name))


CHANGES: dict[str, Change] = {f.name: Change(f.name, *f.metadata["change"]) for f in fields(Behaviours)}
"""Every behaviour, in the order of the table above."""
RELEASED = {name: change for name, change in CHANGES.items() if change.release}
"""Those that releases differ in: all but fixes that none has."""


def find_behaviour(name: str) -> Change:
    """Return what is known of a behaviour.

    Raises
    ------
    InputError
        The name is unknown.
    """
    return find_named(CHANGES, name, "behaviour", "behaviours")


def with_behaviours(base: Behaviours, wanted: dict[str, bool]) -> Behaviours:
    """Return the behaviours with some turned on or off.

    Raises
    ------
    InputError
        The name is unknown, or it is already as wanted, which is a mistake of the caller's.
    """
    for name, on in wanted.items():
        find_behaviour(name)
        if getattr(base, name) == on:
            state = "on" if on else "off"
            raise InputError(f"behaviour {quoted(name)} is {state} already; leave it out")
    return Behaviours(**{name: wanted.get(name, getattr(base, name)) for name in CHANGES})
