"""Bugs B31 to B34: faults, emulated accesses, the dirty log and roots.

Source: the commits' messages, the CVEs' records (cve.org), the reviews of stable releases,
and Linux 6.1.192 and 6.12.117, in which the fixes were read. A release that no source names
is left open.
"""

from __future__ import annotations

from mmulab.kvm.bug import Bug

_READ = ("6.1.192", "6.12.117")

FAULT_BUGS: tuple[Bug, ...] = (
    Bug(
        id="B31",
        title="Fix race condition in direct_page_fault",
        commit="47b0c2e4c220",
        cve="CVE-2022-45869",
        introduced="5.12",
        introduced_by="a2855afc7ee8",
        fixed="6.1",
        backports={"5.15": "5.15.82", "6.0": "6.0.11"},
        mechanism="A fault on the TDP MMU, under the lock held for reading, makes room among the shadow "
        "pages, which needs it held for writing. With a nested guest there are such pages, and another "
        "vCPU's fault may be among them at the same time.",
        breaks=("I7",),
        missing="a race of two vCPUs within one fault: an op of the model is never interrupted",
        source="mmu.c:direct_page_fault; kin: a955cad84cda (5.16), to retry if a memslot update put the "
        "root out of use; the stable releases by their reviews",
    ),
    Bug(
        id="B32",
        title="Refresh CR0.WP prior to checking for emulated permission faults",
        commit="cf9f4c0eb169",
        introduced="6.4",
        introduced_by="fb509f76acc8",
        fixed="6.4",
        seen_in=_READ,
        mechanism="With EPT the guest owns CR0.WP and toggles it without an exit. The context keeps the "
        "CR0.WP that it was configured for, and an emulated access is judged by that one.",
        breaks=(),
        needs=("fb509f76acc8, which lets the guest own CR0.WP and so brings the bug",),
        source="mmu.c:__kvm_mmu_refresh_passthrough_bits. Cause and fix are of one release, as in "
        "6.1.29 and 6.2.16: only a tree that took the one without the other has it",
    ),
    Bug(
        id="B33",
        title="Write-protect L2 SPTEs in TDP MMU when clearing dirty status",
        commit="2673dfb591a3",
        cve="CVE-2024-26990",
        introduced="6.4",
        introduced_by="5982a5392663",
        fixed="6.9",
        backports={"6.6": "6.6.29", "6.8": "6.8.8"},
        seen_in=_READ,
        mechanism="While L2 runs there is no PML, even if it runs on L1's own tables of the TDP MMU; its "
        "entries must lose W when the log is read. Where only D is cleared, as is right for L1, what L2 "
        "writes is not logged.",
        breaks=("I11",),
        source="tdp_mmu.c:clear_dirty_gfn_range, clear_dirty_pt_masked",
    ),
    Bug(
        id="B34a",
        title="Allocate PAE root array when using SVM's 32-bit NPT",
        commit="b6b80c78af83",
        introduced="4.19",
        introduced_by="ee6268ba3a68",
        fixed="5.2",
        backports={"4.19": "4.19.57", "5.1": "5.1.15"},
        mechanism="With two-dimensional paging no page is set aside for the four PAE roots. NPT of a 32-bit "
        "host needs them, and the first root cannot be loaded.",
        breaks=(),
        source="mmu.c:kvm_mmu_create ; the stable releases by their reviews. What was a NULL pointer then "
        "is a WARN and -EIO today",
    ),
    Bug(
        id="B34b",
        title="Fix 32 bit legacy paging with NPT",
        commit="f87f928882d0",
        introduced="",
        fixed="2.6.37",
        mechanism="In the loop over four direct roots the check that a root lies in memory comes first, and "
        "looks at the gfn that the turn before left: the first of a GiB that the guest may not have. A "
        "guest with 32-bit paging and NPT of four roots gets a triple fault.",
        breaks=(),
        source="mmu.c:mmu_alloc_roots, today mmu_alloc_direct_roots",
    ),
    Bug(
        id="B34c",
        title="Fix TDP MMU zap collapsible SPTEs",
        commit="87aa9ec939ec",
        introduced="5.10",
        introduced_by="14881998566d",
        fixed="5.11",
        mechanism="When dirty logging ends, the small pages that a huge one may replace should go. The loop "
        "over the TDP MMU's entries passed over exactly those, so nothing went and pages stayed small.",
        breaks=(),
        source="tdp_mmu.c:zap_collapsible_spte_range",
    ),
)
