"""Bugs B1 to B9: KVM's own books go wrong, most of them found in 2026."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

BOOKKEEPING_BUGS: tuple[Bug, ...] = (
    Bug(
        id="B1",
        title="Fix shadow paging use-after-free due to unexpected GFN",
        commit="0cb2af2ea66a",
        cve="CVE-2026-46113",
        introduced="2.6.20",
        introduced_by="6aa8b732ca01",
        fixed="7.1",
        backports={"6.6": "6.6.140", "6.12": "6.12.88", "6.18": "6.18.30", "7.0": "7.0.7"},
        mechanism="A table that stands below an entry is taken for the right one without a look at its "
        "gfn. If the guest's entry changed without a write that KVM saw, a direct table gets a leaf for "
        "another gfn than its place says: it is recorded under the one and looked for under the other.",
        breaks=("I6",),
        source="mmu.c:kvm_mmu_get_child_sp; harmful since 2032a93d66fa (2.6.35), which computes a direct "
        "page's gfns",
    ),
    Bug(
        id="B2",
        title="Fix shadow paging use-after-free due to unexpected role",
        commit="81ccda30b4e8",
        cve="CVE-2026-53359",
        introduced="2.6.20",
        fixed="7.2",
        mechanism="As B1, but the guest's huge page becomes a table at the very gfn: the direct table is "
        "used where one that shadows the guest's is needed, because only the gfn is compared. The reverse "
        "map has the walk's gfn, removal computes another.",
        breaks=("I6", "I2"),
        needs=("B1 (0cb2af2ea66a)",),
        source="mmu.c:kvm_mmu_get_child_sp",
    ),
)
