"""Bugs B1 to B9: KVM's own books go wrong; most were found in 2026.

Source: the CVEs' records (cve.org and osv.dev, as of October 2026), which name the first
stable release with a fix, the lists of what was pushed to the stable tree for 5.15.218 and
5.15.222, and Linux 6.1.192 and 6.12.117, in which the fixes were read.
"""

from __future__ import annotations

from mmulab.kvm.bug import Bug

_READ = ("6.1.192", "6.12.117")

BOOKKEEPING_BUGS: tuple[Bug, ...] = (
    Bug(
        id="B1",
        title="Fix shadow paging use-after-free due to unexpected GFN",
        commit="0cb2af2ea66a",
        cve="CVE-2026-46113",
        introduced="2.6.20",
        introduced_by="6aa8b732ca01",
        fixed="7.1",
        backports={
            "5.15": "5.15.222",
            "6.6": "6.6.140",
            "6.12": "6.12.88",
            "6.18": "6.18.30",
            "7.0": "7.0.7",
        },
        seen_in=("6.1.177", "6.12.117"),
        needs=(
            "before 5.19 2e65e842c57d, by which a child's role comes from its parent",
            "before 6.0 0cd8dc739833, by which linking a table drops what is there",
        ),
        mechanism="A table that stands below an entry is taken for the right one without a look at its "
        "gfn. If the guest's entry changed without a write that KVM saw, a direct table gets a leaf for "
        "another gfn than its place says: it is recorded under the one and looked for under the other, "
        "so the reverse map keeps an entry of a table that is freed.",
        breaks=("I6",),
        source="mmu.c:kvm_mmu_get_child_sp; no more than a wrong place until 2032a93d66fa (2.6.36), from "
        "which on a direct page's gfns are computed. 6.1.177 brought B2's fix, which stands on this one",
    ),
    Bug(
        id="B2",
        title="Fix shadow paging use-after-free due to unexpected role",
        commit="81ccda30b4e8",
        cve="CVE-2026-53359",
        introduced="2.6.36",
        introduced_by="2032a93d66fa",
        fixed="7.2",
        backports={
            "5.15": "5.15.222",
            "6.1": "6.1.177",
            "6.6": "6.6.144",
            "6.12": "6.12.95",
            "6.18": "6.18.38",
            "7.1": "7.1.3",
        },
        seen_in=_READ,
        mechanism="As B1, but the guest's huge page becomes a table, and the gfn can be the same: the direct "
        "table is used where one that shadows the guest's is needed, because roles are not compared. The "
        "leaf is recorded under the gfn of the walk and looked for under the computed one.",
        breaks=("I2", "I6"),
        needs=("B1 (0cb2af2ea66a)",),
        source="mmu.c:kvm_mmu_get_child_sp",
    ),
    Bug(
        id="B3",
        title="WARN and clear role.invalid when creating a child shadow page",
        commit="5ec42d57655c",
        cve="CVE-2026-80726",
        introduced="2.6.30",
        introduced_by="a770f6f28b1a",
        fixed="7.2",
        backports={
            "5.15": "5.15.222",
            "6.1": "6.1.183",
            "6.6": "6.6.152",
            "6.12": "6.12.104",
            "6.18": "6.18.45",
            "7.1": "7.1.9",
        },
        seen_in=_READ,
        mechanism="A child's role is a copy of its parent's, 'invalid' included. What is made below a root "
        "that reclaim put out of use (B4) is then invalid from its birth and yet among the active pages; "
        "freeing it leaves a freed page in that list.",
        breaks=("I7",),
        needs=("B4 (2abd5287f083), without which its warning can be reached",),
        source="mmu.c:kvm_mmu_child_role. Its witness needs B4 too",
    ),
    Bug(
        id="B4",
        title="Check for invalid/obsolete root *after* making MMU pages available",
        commit="2abd5287f083",
        cve="CVE-2026-64561",
        introduced="5.9",
        introduced_by="f95eec9bed76",
        fixed="7.2",
        backports={
            "5.15": "5.15.218",
            "6.1": "6.1.183",
            "6.6": "6.6.148",
            "6.12": "6.12.101",
            "6.18": "6.18.42",
            "7.1": "7.1.6",
        },
        seen_in=_READ,
        mechanism="A fault looks whether its root is still in use, then makes room, and the reclaim can put "
        "that very root out of use: of nested tables a child is zapped with its last parent, even one that "
        "is a root in use as well. The fault then maps below a root that is invalid.",
        breaks=("I7",),
        needs=(
            "in 5.15.218 came before it: 'Rename mmu_notifier_* to mmu_invalidate_*', 'Split out TDP MMU "
            "page fault handling', 'Rename __direct_map() to direct_map()'",
        ),
        source="mmu.c:direct_page_fault, paging_tmpl.h:FNAME(page_fault). With it came 7a2c70e777a0, "
        "by which mmu_page_zap_pte spares roots in use, and after which no reclaim gets there: the switch "
        "takes both back. The flaw is of 2008 (2e53d63acba7), the harm of 5.9",
    ),
    Bug(
        id="B5",
        title="Drop/zap existing present SPTE even when creating an MMIO SPTE",
        commit="aad885e77496",
        cve="CVE-2026-23401",
        introduced="5.13",
        introduced_by="a54aa15c6bda",
        fixed="7.0",
        backports={
            "5.15": "5.15.203",
            "6.1": "6.1.168",
            "6.6": "6.6.131",
            "6.12": "6.12.80",
            "6.18": "6.18.21",
            "6.19": "6.19.11",
        },
        seen_in=_READ,
        mechanism="An MMIO spte is written over whatever stands there. If the guest's entry was changed "
        "behind KVM's back, from memory to a gfn in no slot, a present leaf is lost that way, and the "
        "reverse map keeps its place.",
        breaks=("I6",),
        source="mmu.c:mmu_set_spte",
    ),
    Bug(
        id="B6",
        title="Only WARN in direct MMUs when overwriting shadow-present SPTE",
        commit="df8374607577",
        cve="CVE-2026-23402",
        introduced="6.16",
        introduced_by="11d45175111d",
        fixed="7.0",
        backports={"6.18": "6.18.21", "6.19": "6.19.11"},
        mechanism="An assertion says too much: that no present leaf is ever replaced by one of another "
        "frame. Of shadowed tables it is not true where the guest's entry was changed behind KVM's back, "
        "and the host warns (or stops, with panic_on_warn) although nothing is wrong.",
        breaks=(),
        missing="the assertion is one of 6.16 to 6.19, and neither 6.1 nor 6.12 has it",
        source="mmu.c:mmu_set_spte",
    ),
    Bug(
        id="B7",
        title="Check write tracking in all address spaces",
        commit="0f38453cdb2e",
        cve="CVE-2026-98164",
        introduced="4.2",
        introduced_by="699023e23965",
        fixed="7.2",
        backports={
            "6.1": "6.1.187",
            "6.6": "6.6.156",
            "6.12": "6.12.108",
            "6.18": "6.18.49",
            "7.1": "7.1.13",
        },
        seen_in=_READ,
        mechanism="Shadow pages of both address spaces lie in one hash, but an upper-level table is tracked "
        "in the slot of its own space alone. A vCPU outside SMM does not see that a gfn is a table of SMM's "
        "and lets it be written: an upper-level page goes out of sync.",
        breaks=("I5",),
        source="page_track.c:kvm_slot_page_track_is_active",
    ),
    Bug(
        id="B8",
        title="Use active memslots for the per-vCPU MMIO cache",
        commit="b3e6212dea2e",
        cve="CVE-2026-99082",
        introduced="4.2",
        introduced_by="699023e23965",
        fixed="",
        seen_in=_READ,
        mechanism="The cached MMIO translation is taken for current as long as address space 0 has its "
        "generation. In SMM the slots of space 1 count: memory that comes where a device was is not seen, "
        "and accesses to it still go to the device.",
        breaks=("I15",),
        source="x86.h:vcpu_cache_mmio_info, vcpu_match_mmio_gen; that it is as old as address space 1, of "
        "4.2, is an inference. On its way to mainline in October 2026",
    ),
    Bug(
        id="B9",
        title="check for nEPT/nNPT in slow flush hypercalls",
        commit="464af6fc2b1d",
        cve="CVE-2026-46131",
        introduced="6.2",
        introduced_by="aee738236dca",
        fixed="7.1",
        backports={"6.6": "6.6.140", "6.12": "6.12.88", "6.18": "6.18.30", "7.0": "7.0.7"},
        mechanism="A Hyper-V flush hypercall of L2 has its parameter's address translated as a nested one "
        "whenever L2 runs, also where L1 gave it no nested tables.",
        breaks=(),
        missing="Hyper-V's hypercalls are not modelled",
        source="hyperv.c:kvm_hv_flush_tlb",
    ),
)
