"""Bugs B24 to B30: a shadow entry or a TLB is older than it may be."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

SYNC_BUGS: tuple[Bug, ...] = (
    Bug(
        id="B24",
        title="Synchronize the shadow pagetable before link it",
        commit="65855ed8b034",
        introduced="2.6.28",
        introduced_by="4731d4c7a077",
        fixed="5.15",
        mechanism="A page with an unsync one below is linked at an entry that was not present, for which no "
        "guest has to flush anything. What the guest wrote to its table before does not hold there.",
        breaks=("I4",),
        source="paging_tmpl.h:FNAME(fetch), mmu.c:mmu_sync_children; 20210918005636.3675-3",
    ),
    Bug(
        id="B25",
        title="Sync all PGDs on nested transition with shadow paging",
        commit="07ffaf343e34",
        introduced="5.8",
        introduced_by="41fab65e7c44",
        fixed="5.14",
        mechanism="If L2 has no VPID, entry and exit flush everything, but only the root in use is synced. "
        "A kept root of L2 is taken up again by a CR3 load that does not flush, as stale as it was left.",
        breaks=("I3", "I12"),
        source="vmx/nested.c:nested_vmx_transition_tlb_flush; since when is inferred from the date",
    ),
    Bug(
        id="B26",
        title="Abide to KVM_REQ_TLB_FLUSH_GUEST request on nested vmentry/vmexit",
        commit="40e5f9080472",
        introduced="5.14",
        introduced_by="07ffaf343e34",
        fixed="5.16",
        backports={"5.15": "5.15.7"},
        mechanism="At a change between L1 and L2 only one of the two requests to flush the side that is "
        "left is served. The other is served on the other side, and the flush that is still needed is lost.",
        breaks=("I3", "I12"),
        needs=("B25 (07ffaf343e34), whose request it is",),
        source="vmx/nested.c:nested_vmx_enter_non_root_mode, __nested_vmx_vmexit; 20211125014944.536398-2. "
        "The stable release is inferred from the date",
    ),
    Bug(
        id="B27",
        title="Unconditionally zap unsync SPs when creating >4k SP at GFN",
        commit="ddc16abbbae9",
        introduced="",
        fixed="5.14",
        mechanism="When an upper-level page is made for the gfn of an unsync one, that one is synced with "
        "the context in use, whichever it was made for. An entry that is legal here and reserved there "
        "stays.",
        breaks=("I2",),
        source="mmu.c:kvm_mmu_find_shadow_page, kvm_mmu_get_page of 5.13",
    ),
    Bug(
        id="B28",
        title="Fix missed remote tlb flush in rmap_write_protect()",
        commit="f81602958c11",
        introduced="2.6.38",
        introduced_by="a4ee1ca4a36e",
        fixed="5.15",
        mechanism="A sync drops sptes and puts the flush off. When the page that one led to becomes a "
        "table, write protection finds no writable spte and does not flush, and another vCPU may still "
        "write the table through its TLB. The switch flushes not at all: what the old code did later, at an "
        "MMU notifier's call, is not restored.",
        breaks=("I3", "I12"),
        source="paging_tmpl.h:FNAME(sync_page), mmu.c:rmap_write_protect of 5.14; since when is inferred "
        "from the date",
    ),
    Bug(
        id="B29",
        title="Don't treat a global pte as such if cr4.pge is cleared",
        commit="25e2343246fe",
        introduced="2.6.29",
        introduced_by="6cffe8ca4a2a",
        fixed="2.6.30",
        mechanism="An unsync page of nothing but global entries is not synced at a CR3 load. The bit counts "
        "even without CR4.PGE, where a CR3 load forgets those entries too. It needs the sync policy "
        "oos_2008: that of today knows no global pages.",
        breaks=("I3",),
        source="mmu.c:mmu_sync_roots of 2.6.29; the releases are inferred from the dates",
    ),
    Bug(
        id="B30",
        title="Use atomic XCHG to write TDP MMU SPTEs with volatile bits",
        commit="ba3a6120a4e7",
        introduced="5.10",
        fixed="5.19",
        mechanism="A spte is read, changed and written back in steps. What the processor sets in between, "
        "A, D or W by a fast fault, is lost, and with it a flush or a dirty page.",
        breaks=("I11",),
        missing="a step of a processor in the midst of an op of another",
        source="tdp_mmu.c:kvm_tdp_mmu_write_spte; 5.18 or 5.19",
    ),
)
