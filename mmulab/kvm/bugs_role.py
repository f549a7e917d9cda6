"""Bugs B10 to B23: a page or a context is found again by a key that says too little."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

ROLE_BUGS: tuple[Bug, ...] = (
    Bug(
        id="B10",
        title="The role of a page lacks cr0_wp",
        commit="3dbe141595fa",
        introduced="",
        fixed="2.6.35",
        backports={"2.6.32": "2.6.32.16", "2.6.33": "2.6.33.7", "2.6.34": "2.6.34.14"},
        mechanism="While CR0.WP is 0 a write of the kernel's to a read-only user page gets a writable spte "
        "of the supervisor's. With CR0.WP=1 the same page is found again, and the kernel writes what it may "
        "not.",
        breaks=("I2",),
        source="mmu.c:kvm_init_shadow_mmu, kvm_calc_cpu_role; stable releases as in mmulab.kvm.roles.history",
    ),
    Bug(
        id="B11",
        title="fix CR4.SMEP=1, CR0.WP=0 with shadow pages",
        commit="898761158be7",
        introduced="3.1",
        introduced_by="411c588dfb86",
        fixed="4.1",
        mechanism="The spte of B10 grants the kernel to execute a user's page, so under SMEP it needs "
        "another page. The bit for it stood in the role, but not among those that an emulated write to a "
        "table compared before it filled a spte. 6.1 fills none there: the switch takes the bit out of the "
        "role.",
        breaks=("I2",),
        needs=("B10 (3dbe141595fa)",),
        source="kvm_mmu_pte_write of 4.0; mmu.c:kvm_calc_cpu_role of 6.1. The release is inferred from the "
        "date",
    ),
    Bug(
        id="B12",
        title="fix SMAP virtualization",
        commit="0be0226f07d1",
        introduced="",
        fixed="4.1",
        backports={"3.18": "3.18.20", "4.0": "4.0.5"},
        mechanism="As B10, but the guest turns SMAP on: the role lacks smap_andnot_wp, the spte of the "
        "supervisor's is found again, and the kernel reaches a user's page.",
        breaks=("I2",),
        needs=("B10 (3dbe141595fa)",),
        source="mmu.c:kvm_calc_cpu_role; stable releases as in mmulab.kvm.roles.history",
    ),
    Bug(
        id="B13",
        title="Use the correct inherited permissions to get shadow page",
        commit="b1bd5cba3306",
        cve="CVE-2021-38198",
        introduced="2.6.20",
        introduced_by="cea0f0e7ea54",
        fixed="5.13",
        backports={"5.12": "5.12.11"},
        mechanism="Each page on the way gets the rights of the whole way above the last entry, not of the "
        "way down to it. A directory made for a read-only way below a writable entry is then found for a "
        "read-only entry, and has a writable way in it. The switch also leaves a linked page alone whose "
        "role differs in the rights only, as all kernels did before the fix of B2, which hides this bug.",
        breaks=("I2",),
        source="paging_tmpl.h:FNAME(fetch), FNAME(walk_addr_generic); Documentation/virt/kvm/mmu.rst",
    ),
    Bug(
        id="B14",
        title="fix conflict access permissions in direct sp",
        commit="5fd5387c89ec",
        introduced="",
        fixed="2.6.36",
        mechanism="The direct page that stands for a guest's huge page has the rights of the way above the "
        "last entry. Two huge pages of one frame, one of them read-only, share it: the guest writes through "
        "the read-only one, or faults on the writable one.",
        breaks=("I2", "I11"),
        source="paging_tmpl.h:FNAME(fetch); also merged as 6aa0b9dec5d6. The release is inferred from the "
        "date",
    ),
    Bug(
        id="B15",
        title="fix Dirty bit missed if CR0.WP = 0",
        commit="c22885050e65",
        introduced="",
        fixed="3.9",
        mechanism="With CR0.WP=0 the rights of a write of the kernel's are widened after the direct page "
        "was chosen by them. The read-only direct page gets a writable spte, and a second huge page of the "
        "frame is written through it without its D bit.",
        breaks=("I11",),
        needs=("B14 (5fd5387c89ec)",),
        source="paging_tmpl.h:FNAME(page_fault); the release is inferred from the date",
    ),
    Bug(
        id="B16",
        title="Fix shadowing 5-level NPT for 4-level NPT L1 guest",
        commit="84e5ffd045f3",
        introduced="5.15",
        fixed="5.19",
        mechanism="On a host with five levels the root above L1's 4-level NPT is made as if it shadowed the "
        "table that it only leads to. When L1 uses the same page as a 5-level root, the portal is found for "
        "it, and L2 is translated by the tables of four levels.",
        breaks=("I1", "I2", "I13"),
        needs=("767d8d8d503f (sp_has_gptes)",),
        source="mmu.c:kvm_init_shadow_npt_mmu; 20220420131204.2850-1. Since when is inferred from the date "
        "at which such hosts were allowed",
    ),
    Bug(
        id="B17",
        title="The quadrant of a child is its parent's (first version of eager page splitting)",
        commit="",
        introduced="6.0",
        fixed="6.0",
        mechanism="The role of a child is the parent's with its quadrant, so both halves of a table of "
        "4-byte entries get one page, and the guest sees one half in the place of the other. No release had "
        "it: review found it, and the series went into 6.0 without.",
        breaks=("I14",),
        source="mmu.c:kvm_mmu_child_role; 20220203010051.2813563-3 and its reply",
    ),
    Bug(
        id="B18",
        title="Do not inherit quadrant and invalid for the root shadow EPT",
        commit="",
        introduced="",
        fixed="5.1",
        mechanism="The role of the root that shadows L1's EPT begins as a copy of the role in use, so it "
        "has that one's quadrant and invalid.",
        breaks=("I7", "I14"),
        missing="a sequence that could show it: where L1 has EPT the role copied is that of a direct map, "
        "which never has a quadrant, and the context's role is not marked invalid in those kernels",
        source="mmu.c:kvm_calc_shadow_ept_root_page_role of 5.0; the parent of 47c42e6b4192",
    ),
    Bug(
        id="B19",
        title='Calculate and check "full" mmu_role for nested MMU',
        commit="654430efde27",
        introduced="",
        fixed="5.14",
        mechanism="The role of the context that walks L2's own tables does not say how many levels they "
        "have. An L2 with 4-level paging after one with PAE paging finds the context as it was, and what "
        "KVM emulates for it is translated by three levels.",
        breaks=(),
        source="mmu.c:init_kvm_nested_mmu, kvm_calc_nested_mmu_role of 5.13",
    ),
    Bug(
        id="B20",
        title="Treat NX as used (not reserved) for all !TDP shadow MMUs",
        commit="112022bdb5bc",
        introduced="",
        fixed="5.14",
        mechanism="Without EFER.NX bit 63 counts as reserved in KVM's own sptes, though KVM sets it for huge "
        "pages that must not be executed (nx_huge_pages): it warns of its own spte. The switch lets the root "
        "role, by which 6.1 tells, have the guest's EFER.NX, or SMEP without CR0.WP.",
        breaks=("I16",),
        source="mmu.c:kvm_init_shadow_mmu, reset_shadow_zero_bits_mask; spte.c:make_spte",
    ),
    Bug(
        id="B21",
        title="Set the shadow root level to the TDP level for nested NPT",
        commit="a3322d5cd87f",
        introduced="",
        fixed="5.12",
        mechanism="The tables that shadow L1's NPT have as many levels as L1's. The processor walks as many "
        "as the host has: one more level, and it takes each table for the one above.",
        breaks=(),
        source="mmu.c:kvm_init_shadow_npt_mmu; APM 2, 15.25.3",
    ),
    Bug(
        id="B22",
        title="Force all MMUs to reinitialize if guest CPUID is modified",
        commit="49c6f8756cdf",
        introduced="",
        fixed="5.14",
        mechanism="A change of CPUID leaves the roles of the contexts as they are, so the next "
        "configuration is skipped, and the guest's entries are judged by the reserved bits of the old "
        "CPUID.",
        breaks=("I2",),
        source="mmu.c:kvm_mmu_after_set_cpuid; 5.0 to 5.13 compared MAXPHYADDR, which the switch does not",
    ),
    Bug(
        id="B23",
        title="Precisely invalidate MMU root_role during CPUID update",
        commit="4fa96da3e6fe",
        introduced="6.9",
        introduced_by="576a15de8d29",
        fixed="6.10",
        mechanism="The root role is zeroed when CPUID changes, and with it the bit that says that its roots "
        "are the TDP MMU's: they are freed with the MMU lock held in the wrong way.",
        breaks=(),
        source="mmu.c:kvm_mmu_free_roots, mmu_free_root_page of 6.9",
    ),
)
