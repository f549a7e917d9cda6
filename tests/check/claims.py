"""One-line changes of the engine, each of which breaks a claim of the table of features.

Whoever says that a recording shows a feature says that it would differ without it. A
row here takes one line away, or turns it round, and names recordings of the feature's
row that differ then (:mod:`tests.check.test_claims`).
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.kvm.kernels import LINUX_6_1


class Claim(NamedTuple):
    """A line of the engine that a feature rests on.

    Attributes
    ----------
    row : str
        The feature's id.
    kernel : str
        Whose recordings.
    recordings : tuple of str
        Each differs once the line is changed.
    function : str
        ``module:name`` below :mod:`mmulab`; of a method, ``module:Class.name``.
    old, new : str
        The line, without indentation and comment, and what stands there instead.
    """

    row: str
    kernel: str
    recordings: tuple[str, ...]
    function: str
    old: str
    new: str


def parse_claim(paragraph: str) -> Claim:
    """Read a paragraph of :data:`TABLE`: row and recordings, a function, its line as in a diff."""
    told, function, old, new = paragraph.splitlines()
    of, _, recordings = told.partition(": ")
    row, _, kernel = of.partition(" of ")
    return Claim(
        row,
        kernel or LINUX_6_1.name,
        tuple(recordings.split()),
        function,
        old.removeprefix("- "),
        new.removeprefix("+ "),
    )


NOT_BROKEN = {
    "G3": "no direct page is ever out of sync, so that a sync of one would change nothing",
}
"""Conformant rows without a line that breaks them in a recording, and why."""

TABLE = """
W1: sh/basic-32 nested-ept/ept-basic-ad-l132
kvm.guest_walk:_loader
- pte = words[hpa >> 3] if width == 8 else dwords[hpa >> 2]
+ pte = words[hpa >> 3]

W2: sh/fuzz-57-mix-00
kvm.context:kvm_calc_cpu_role
- pae, la57 = bool(cr4 & X86_CR4_PAE), lma and bool(cr4 & X86_CR4_LA57)
+ pae, la57 = bool(cr4 & X86_CR4_PAE), False

W2: sh/basic-pae
kvm.guest_walk:walk_addr_generic
- pdptes=pdptes,
+ pdptes=None,

W2: sh/nonpaging
kvm.context:kvm_calc_cpu_role
- return CpuRole(direct=1, smm=smm, guest_mode=int(guest_mode), valid=1)
+ return CpuRole(smm=smm, guest_mode=int(guest_mode), valid=1)

W3: sh/perms-64
kvm.paging_tmpl:fetch
- access = ACC_ALL if above else pt_access[gw.level if kvm.bugs.B13 else child_level]
+ access = gw.pte_access

W4: nested48/nested-64-l2-64 nested-ept/ept-l2-64-ad
kvm.guest_walk:_nested_loader
- page, fault = translate_nested_gpa(vcpu, addr & ~0xFFF, access)
+ page, fault = addr & ~0xFFF, None

W5: sh/fuzz-pae-mix-18
x86.paging:_reserved
- high |= 1 << 63
+ pass

W5: sh/fuzz-57-mix-00
x86.paging:_reserved
- bit8 = 1 << 8 if cpu.vendor == "amd" else 0
+ bit8 = 0

W5: sh/reserved-bits-pae sh/reserved-bits-64
x86.paging:_reserved
- high = rsvd_bits(cpu.maxphyaddr, 62 if mode.name == "pae" else 51)
+ high = 0

W5: sh/fuzz-pae-mix-18
kvm.gpte:prefetch_invalid_gpte
- if usable and (gpte & paging.rsvd[gpte >> 7 & 1][1] or paging.bad_mt_xwr >> (gpte & 63) & 1):
+ if False:

W6: sh/fuzz-32-mix-20
x86.paging:_largest_page_level
- return 1
+ return 2

W6: sh/large-64
x86.paging:_largest_page_level
- return 3 if mode.root_level > 3 else 2
+ return 2

W7: sh/accessed-dirty-32 sh/accessed-dirty-64
kvm.guest_walk:update_accessed_dirty_bits
- pte |= paging.accessed_mask
+ pass

W7: sh/accessed-dirty-32 sh/accessed-dirty-64
kvm.guest_walk:update_accessed_dirty_bits
- pte |= paging.dirty_mask
+ pass

W7: sh/fuzz-64-thp-24
kvm.guest_walk:update_accessed_dirty_bits
- return False
+ return True

W7: nested-ept/ept-accessed-dirty-ad
kvm.guest_walk:update_accessed_dirty_bits
- if not paging.have_ad:
+ if paging.ept:

W7: nested-ept/ept-fuzz-ad-08
kvm.vmx.nested:nested_ept_new_eptp
- accessed_dirty=bool(eptp & VMX_EPTP_AD_ENABLE_BIT),
+ accessed_dirty=True,

W8: sh/efer-nx-64 sh/smep-smap-64
x86.paging:make_paging
- fetch_bit=smep or (nx and not (walker.fetch_needs_pae and mode.entry_bytes == 4)),
+ fetch_bit=False,

W8: sh/efer-nx-64 sh/smep-smap-64
x86.walk:_fault
- code |= w.pfec & _ACCESS
+ pass

W9: nested-ept/ept-perms-leaf-ad nested-ept/ept-perms-leaf-noad
kvm.guest_walk:_failed
- vcpu.exit_qualification = qualification | raw_rwx(w.pte_access) << EPT_VIOLATION_RWX_SHIFT
+ vcpu.exit_qualification = qualification

W10: sh/perms-64 sh/shared-pt-64
x86.walk:walk
- path &= entry ^ flip
+ path = entry ^ flip

W11: sh/fuzz-64-mix-00
kvm.paging_tmpl:fetch
- if not above and _gpte_changed(vcpu, gw, child_level):
+ if False:

W11: sh/fuzz-64-thp-24
kvm.gpte:prefetch_invalid_gpte
- if paging.have_ad and not gpte & paging.accessed_mask:
+ if False:

W12: sh/accessed-dirty-64 sh/dirtylog-32
kvm.paging_tmpl:pte_prefetch
- for i in range(PTE_PREFETCH_NUM):
+ for i in range(4):

W13: nested-ept/ept-misconfig-eptp-noad nested-ept-host-noad/ept-misconfig-eptp-noad
kvm.roots:mmu_check_root
- vcpu.requests |= Request.TRIPLE_FAULT
+ pass

R1: nested48/nested-fuzz-32-04
kvm.roots:mmu_alloc_root
- facts = mmu.root_facts._replace(level=level, quadrant=quadrant)
+ facts = mmu.root_facts._replace(quadrant=quadrant)

R2: sh/basic-32
kvm.context:base_facts
- has_4_byte_gpte=bool(cpu.has_4_byte_gpte),
+ has_4_byte_gpte=False,

R3: sh/quadrants-32
kvm.shadow_page:kvm_mmu_child_role
- quadrant = config.kernel.derivation.quadrant(facts, spte_index(sptep), addr)
+ quadrant = 0

R4: sh/nonpaging
kvm.context:kvm_calc_cpu_role
- return CpuRole(direct=1, smm=smm, guest_mode=int(guest_mode), valid=1)
+ return CpuRole(smm=smm, guest_mode=int(guest_mode), valid=1)

R4: sh/large-64
kvm.paging_tmpl:fetch
- vcpu, it.sptep, base_gfn, direct=True, access=direct_access, addr=fault.addr
+ vcpu, it.sptep, base_gfn, direct=False, access=direct_access, addr=fault.addr

R5: sh/perms-64
kvm.paging_tmpl:fetch
- access = ACC_ALL if above else pt_access[gw.level if kvm.bugs.B13 else child_level]
+ access = ACC_ALL

R6: sh/mmu-notifier-32 sh/memslot-64
kvm.zap:prepare_zap_page
- sp.role = kvm.config.kernel.design.invalidated(sp.role)
+ pass

R7: nested48/nested-basic-32 nested48/nested-32-l2-32
kvm.context:base_facts
- efer_nx=bool(cpu.efer_nx),
+ efer_nx=True,

R7: nested48/nested-fuzz-pae-04
kvm.context:base_facts
- efer_nx=bool(cpu.efer_nx),
+ efer_nx=False,

R7: sh/fuzz-pae-mix-18
x86.paging:_reserved
- high |= 1 << 63
+ pass

R8: sh/cr0-wp-64
kvm.context:base_facts
- cr0_wp=bool(cpu.cr0_wp),
+ cr0_wp=True,

R9: sh/cr0-wp-64 nested48/nested-roots-64
kvm.context:base_facts
- smep_andnot_wp=bool(cpu.smep_andnot_wp),
+ smep_andnot_wp=False,

R10: sh/cr0-wp-64 nested48/nested-roots-64
kvm.context:base_facts
- smap_andnot_wp=bool(cpu.smap_andnot_wp),
+ smap_andnot_wp=False,

R11: ept0-host-noad/basic-pae
kvm.context:init_kvm_tdp_mmu
- ad_disabled=not kvm.fmt.ad_enabled,
+ ad_disabled=False,

R11: nested-ept/ept-basic-noad
kvm.context:base_facts
- ad_disabled=bool(cpu.ad_disabled),
+ ad_disabled=False,

R12: nested48/nested-basic-64 nested-ept/ept-basic-ad-l132
kvm.context:base_facts
- guest_mode=bool(cpu.guest_mode),
+ guest_mode=False,

R13: nested57/nested-basic-64
kvm.context:_passes_through
- return shadow_pages and not cpu_role.direct and level > top_table_level(cpu_role)
+ return False

R16: smmtrack-sh/smm-track-paged-64 smmtrack-tdp0/smm-track-nested-32
kvm.context:base_facts
- smm=cpu.smm,
+ smm=0,

R20: sh/basic-32
kvm.shadow_page:kvm_mmu_find_shadow_page
- if sp.role != role:
+ if False:

X1: cpuid/cpuid-gbpages0-64 cpuid/cpuid-maxphyaddr36-57
kvm.cpuid:kvm_mmu_after_set_cpuid
- config.kernel.validity.mark(mmu, config.kernel.design)
+ pass

X2: nested-ept/ept-perms-leaf-ad
kvm.vmx.nested:nested_ept_new_eptp
- execonly=not vcpu.kvm.fmt.present & VMX_EPT_READABLE_MASK,
+ execonly=False,

X5: sh/cr-toggles-32
kvm.x86:kvm_set_cr4
- if (cr4 ^ old) & KVM_MMU_CR4_ROLE_BITS:
+ if (cr4 ^ old) & KVM_MMU_CR4_ROLE_BITS & ~X86_CR4_PSE:

X6: pku-tdp0/pku-57 pku-tdp1/pku-57
x86.paging:make_paging
- pke=bool(efer & EFER_LMA and cr4 & X86_CR4_PKE),
+ pke=False,

X7: sh/fuzz-pae-mix-18
kvm.context:kvm_calc_cpu_role
- cr4_smap=int(smap),
+ cr4_smap=0,

X8: sh/smep-smap-64 sh/smep-smap-pae
kvm.context:kvm_calc_cpu_role
- cr4_smep=int(smep),
+ cr4_smep=0,

X9: nested57/nested-57-l2-64
kvm.context:kvm_calc_cpu_role
- long_level, legacy_level = 5 if la57 else 4, 3 if pae else 2
+ long_level, legacy_level = 4, 3 if pae else 2

X12: sh/basic-32
kvm.context:kvm_init_mmu
- nx = bool(cpu_role.efer_nx or cpu_role.smep_andnot_wp) if vcpu.kvm.bugs.B20 else True
+ nx = bool(cpu_role.efer_nx)

C1: sh/fuzz-pae-mix-18
kvm.context:kvm_init_mmu
- cpu_role = _cpu_role(vcpu, vcpu.cr0, vcpu.cr4, vcpu.efer)
+ cpu_role = _cpu_role(vcpu, vcpu.cr0 | 0x10000, vcpu.cr4, vcpu.efer)

C2: sh/mode-switch sh/cr-toggles-64
kvm.context:kvm_calc_cpu_role
- level = long_level if lma else legacy_level
+ level = legacy_level

C3: tdp0/nonpaging tdp1/nonpaging
kvm.context:init_kvm_tdp_mmu
- cr0_wp=True,
+ cr0_wp=bool(cpu_role.cr0_wp),

C4: tdp0/large-64 nested57/nested-basic-32
kvm.context:kvm_mmu_get_tdp_level
- return 5 if config.la57 else 4
+ return 4

C5: sh/basic-32
kvm.context:kvm_init_mmu
- facts = base_facts(cpu_role)._replace(level=level, efer_nx=nx, passthrough=passthrough)
+ facts = base_facts(cpu_role)._replace(level=level, passthrough=passthrough)

C6: nested48/nested-roots-64 nested57/nested-roots-64
kvm.context:kvm_init_shadow_npt_mmu
- cpu_role = _cpu_role(vcpu, X86_CR0_PG, cr4, efer)
+ cpu_role = _cpu_role(vcpu, vcpu.cr0, cr4, efer)

C7: nested-ept/ept-roots-ad
kvm.context:kvm_init_shadow_ept_mmu
- cpu_role = CpuRole(level=level, ad_disabled=int(not accessed_dirty), guest_mode=1, execonly=int(execonly))
+ cpu_role = CpuRole(level=level, guest_mode=1, execonly=int(execonly))

C8: nested48/nested-64-l2-64 nested48/nested-64-l2-32
kvm.guest_walk:walk_addr_generic
- real: RealPages | None = {} if mmu is vcpu.nested_mmu else None
+ real: RealPages | None = None

C10: nested-noept-tdp/noept-64-l2-64 nested-noept-tdp/noept-32-l2-32
kvm.context:init_kvm_tdp_mmu
- facts = base_facts(CpuRole(access=cpu_role.access, smm=cpu_role.smm, guest_mode=cpu_role.guest_mode))
+ facts = base_facts(CpuRole(access=cpu_role.access, smm=cpu_role.smm))

C12: sh/fuzz-pae-mix-18
kvm.roles.design:role_of_child
- return design.child(parent, direct=direct, access=access, quadrant=quadrant)
+ return design.child(parent, direct=direct, access=7, quadrant=quadrant)

G1: sh/shared-pt-64 sh/multi-role-64
kvm.shadow_page:kvm_mmu_find_shadow_page
- for frame in list(kvm.page_hash.get(gfn, ())):
+ for frame in ():

G2: sh/multi-role-32
kvm.sync.unsync_children:UnsyncChildren.meets_other
- if not upper or not sp.unsync:
+ if True:

G4: sh/multi-role-32 sh/fuzz-32-mix-06
kvm.sync.unsync_children:UnsyncChildren.meets
- return not sp.unsync or sync_transiently(vcpu, sp, invalid)
+ return True

G5: sh/fuzz-64-mix-18
kvm.sync.unsync_children:UnsyncChildren.linking
- if sp.unsync_children:
+ if False:

G6: sh/dirtylog-64
kvm.page_track:account_shadowed
- if kvm_mmu_slot_gfn_write_protect(kvm, slot, sp.gfn, 1):
+ if False:

G7: nested57/nested-basic-64
kvm.mmu_page:ShadowPage.__init__
- self.has_gptes = not facts.direct and not facts.passthrough
+ self.has_gptes = not facts.direct

G7: nested57/nested-basic-64
kvm.mmu_page:ShadowPage.__init__
- self.has_gptes = not facts.direct and not facts.passthrough
+ self.has_gptes = True

G8 of 6.12.117: sh/pt-write-unsync-64
kvm.rmap:kvm_mmu_page_set_access
- kvm_mmu_page_set_translation(kvm, sp, index, gfn, access)
+ pass

G8 of 6.12.117: sh/pt-write-unsync-64 sh/shared-pt-32
kvm.rmap:kvm_mmu_page_get_access
- return sp.shadowed_translation[index] & 7
+ return 7

G8: sh/pt-write-unsync-64 sh/shared-pt-32
kvm.sync.page:_sync_spte
- if invisible or gfn != kvm_mmu_page_get_gfn(sp, index):
+ if invisible:

G9: sh/nonpaging-thp
kvm.mmu_page:kvm_mmu_page_get_gfn
- return sp.gfn + (index << 9 * (sp.level - 1))
+ return sp.gfn + index

G12: sh/fuzz-64-mix-22
kvm.shadow_page:_is_right_child
- return (child.gfn == gfn or kvm.bugs.B1) and (not differs or kvm.bugs.B2)
+ return True

Q1: sh/quadrants-32
kvm.roots:_alloc_quadrant_roots
- gfn, quadrant = root_gfn, i
+ gfn, quadrant = root_gfn, 0

Q2: sh/quadrants-32
kvm.gpte:get_level1_sp_gpa
- offset = sp.quadrant << SPTE_LEVEL_BITS if entry_bytes == 4 else 0
+ offset = 0

Q3: sh/quadrants-32
kvm.roles.derivation:_parity
- return index & 1 if parent.has_4_byte_gpte else 0
+ return 0

Q4: sh/quadrants-32pse sh/large-32
kvm.paging_tmpl:fetch
- vcpu, it.sptep, base_gfn, direct=True, access=direct_access, addr=fault.addr
+ vcpu, it.sptep, base_gfn & ~1023, direct=True, access=direct_access, addr=fault.addr

Q5: sh/nonleaf-write-32 sh/recursive-32
kvm.pte_write:get_written_sptes
- count = 2
+ count = 1

Q5: sh/nonleaf-write-32 sh/recursive-32
kvm.pte_write:get_written_sptes
- if offset >> 12 != sp.quadrant:
+ if False:

Q6: sh/fuzz-32-mix-00
kvm.gpte:get_level1_sp_gpa
- offset = sp.quadrant << SPTE_LEVEL_BITS if entry_bytes == 4 else 0
+ offset = 0

T1: sh/roots3-64 sh/roots6-64
kvm.roots:_is_root_usable
- return sp is not None and (mmu.direct or pgd == new_pgd) and sp.role == mmu.root_role
+ return False

T1: sh/roots3-64 sh/roots6-64
kvm.roots:_is_root_usable
- return sp is not None and (mmu.direct or pgd == new_pgd) and sp.role == mmu.root_role
+ return sp is not None and sp.role == mmu.root_role

T2: sh/memslot-64
kvm.zap:kvm_mmu_zap_all_fast
- kvm.make_all_cpus_request(Request.MMU_FREE_OBSOLETE_ROOTS)
+ pass

T3: sh/basic-32
kvm.roots:_alloc_quadrant_roots
- for i in range(4):
+ for i in range(2):

T4: nested48/nested-basic-32 nested57/nested-basic-32
kvm.roots:_alloc_quadrant_roots
- kvm.memory.store64(mmu.pml4_root << 12, mmu.pae_root << 12 | flags)
+ pass

T4: nested57/nested-basic-32
kvm.roots:_alloc_quadrant_roots
- kvm.memory.store64(mmu.pml5_root << 12, mmu.pml4_root << 12 | flags)
+ pass

T5: sh/roots3-64 sh/cr-toggles-64
kvm.x86:kvm_invalidate_pcid
- vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
+ vcpu.requests |= Request.TLB_FLUSH_CURRENT

T6: smp/smp-rootzap-57 smp/smp-rootzap-pae
kvm.zap:prepare_zap_page
- if zapped_root:
+ if False:

T6: sh/mmu-notifier-32 smp/smp-rootzap-57
kvm.zap:prepare_zap_page
- if not sp.root_count:
+ if True:

T6: sh/mmu-notifier-32 smp/smp-rootzap-57
kvm.roots:mmu_alloc_root
- sp.root_count += 1
+ pass

T9: sh/nonleaf-write-pae
kvm.x86:load_pdptrs
- if not vcpu.kvm.config.tdp and mmu.pdptrs != pdptrs:
+ if False:

T9: sh/nonleaf-write-pae
kvm.guest_walk:read_pdptrs
- if len(pdptrs) < 4 or any(p & PT_PRESENT_MASK and p & reserved for p in pdptrs):
+ if len(pdptrs) < 4:

T10: nested-ept/ept-roots-ad nested-ept/ept-accessed-dirty-ad
kvm.vmx.insn:_invept
- kvm_mmu_free_roots(vcpu.kvm, mmu, roots)
+ pass

U1: sh/fuzz-pae-mix-18
kvm.sync.policy:SyncPolicy.tracks
- return sp.level > 1
+ return sp.level > 2

U2: sh/recursive-32
kvm.sync.unsync:unsync_pages
- if kvm_slot_page_track_is_active(kvm, slot, gfn):
+ if False:

U2: nested48/nested-fuzz-32-04
kvm.sync.unsync:unsync_pages
- if not can_unsync:
+ if False:

U2: sh/fuzz-pae-mix-18
kvm.sync.unsync:unsync_pages
- if prefetch:
+ if False:

U3: sh/multi-role-64 sh/quadrants-32
kvm.sync.unsync:unsync_pages
- for sp in gfn_sps_with_gptes(kvm, gfn):
+ for sp in gfn_sps_with_gptes(kvm, gfn)[:1]:

U4: sh/shared-pt-64
kvm.sync.unsync_children:_leave
- kvm_mmu_mark_parents_unsync(kvm, sp)
+ pass

U4: sh/shared-pt-64
kvm.sync.unsync_children:mark_unsync
- kvm_mmu_mark_parents_unsync(kvm, sp)
+ pass

U5: sh/fuzz-pae-mix-18
kvm.sync.unsync_children:mmu_sync_children
- protected |= kvm_vcpu_write_protect_gfn(vcpu, step.sp.gfn)
+ kvm_vcpu_write_protect_gfn(vcpu, step.sp.gfn)

U6: sh/os-57-00
kvm.sync.page:_sync_spte
- access = protect_clean_gpte(paging, sp.access & gpte_access(paging, gpte), gpte)
+ access = kvm_mmu_page_get_access(sp, index)

U6: sh/shared-pt-32 sh/recursive-32
kvm.sync.page:_sync_spte
- return mmu_spte_update(kvm, sptep, new)
+ return mmu_spte_update(kvm, sptep, new) and False

U7: nested57/nested-64-l2-64 sh/quadrants-32
kvm.sync.page:sync_page
- mismatch = (sp.role ^ mmu.root_role) & design.sync_mask
+ mismatch = sp.role ^ mmu.root_role

U8: sh/roots3-64 sh/pt-write-unsync-64
kvm.x86:kvm_invalidate_pcid
- vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
+ vcpu.requests |= Request.TLB_FLUSH_CURRENT

U8: sh/cr-toggles-64 pcid/pcid-invpcid-64
kvm.x86:kvm_set_cr4
- vcpu.requests |= Request.TLB_FLUSH_GUEST
+ pass

U8: sh/cr-toggles-32
kvm.x86:kvm_set_cr0
- vcpu.requests |= Request.TLB_FLUSH_GUEST
+ pass

U8: nested48/nested-fuzz-32-04
kvm.svm.nested:_transition_tlb_flush
- vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
+ vcpu.requests |= Request.TLB_FLUSH_CURRENT

U8: sh/pt-write-unsync-64
kvm.invlpg:invlpg
- _invlpg_leaf(vcpu, it.sptep, old)
+ pass

U8: pcid/pcid-invpcid-64
kvm.invpcid:kvm_handle_invpcid
- vcpu.requests |= Request.TLB_FLUSH_GUEST
+ pass

U8: sh/cr-toggles-64 pcid/pcid-invpcid-64
kvm.x86:kvm_service_local_tlb_flush_requests
- kvm_mmu_sync_roots(vcpu, everything=True)
+ pass

U9: sh/fuzz-64-mix-18
kvm.sync.unsync_children:UnsyncChildren.linking
- if sp.unsync_children:
+ if False:

U10: sh/fuzz-pae-mix-18
kvm.sync.unsync_children:UnsyncChildren.sync_roots
- mmu_sync_children(vcpu, root)
+ pass

K1: sh/nonleaf-write-64 sh/recursive-64
kvm.page_track:account_shadowed
- if kvm.sync.tracks(kvm, sp):
+ if False:

K2: smmtrack-sh/smm-track-direct-32 smmtrack-sh/smm-track-direct-64
kvm.page_track:kvm_slot_page_track_is_active
- return other is not None and other.gfn_track.get(gfn, 0) > 0
+ return False

K3: sh/nonleaf-write-64 sh/write-flooding-64
kvm.pte_write:kvm_mmu_pte_write
- pages = gfn_sps_with_gptes(kvm, gfn)
+ pages = []

K4: sh/write-flooding-32 sh/nonleaf-write-32
kvm.pte_write:_detect_write_flooding
- return sp.write_flooding_count >= WRITE_FLOODING_LIMIT
+ return sp.write_flooding_count > WRITE_FLOODING_LIMIT

K4: sh/fuzz-pae-mix-18
kvm.sync.policy:SyncPolicy.counts_floods
- return sp.level > 1
+ return True

K6: ept0/memslot-32
kvm.pte_write:kvm_mmu_pte_write
- if not kvm.indirect_shadow_pages:
+ if False:

Z1: sh/memslot-64 sh/write-flooding-64
kvm.zap:kvm_mmu_commit_zap_page
- kvm_flush_remote_tlbs(kvm)
+ pass

Z2: sh/fuzz-32-thp-14
kvm.sync.unsync_children:UnsyncChildren.zap_below
- return mmu_zap_unsync_children(kvm, sp, invalid)
+ return 0

Z3: sh/memslot-32 sh/memslot-64
kvm.memory_region:_invalidate
- kvm_mmu_zap_all_fast(kvm)
+ pass

Z4: sh/fuzz-pae-mix-18
kvm.roots:_free_root_page
- if not sp.root_count and sp.invalid:
+ if not sp.root_count:

Z4: sh/mmu-notifier-32
kvm.zap:prepare_zap_page
- if not sp.root_count:
+ if True:

Z5: sh/mmu-pages-limit-32 sh/mmu-pages-limit-64
kvm.zap:make_mmu_pages_available
- if available >= KVM_MIN_FREE_MMU_PAGES:
+ if available:

Z5: sh/mmu-pages-limit-32 sh/mmu-pages-limit-64
kvm.zap:kvm_mmu_zap_oldest_mmu_pages
- for frame in list(kvm.active_mmu_pages):
+ for frame in reversed(list(kvm.active_mmu_pages)):

Z8: tdp1/memslot-64
kvm.zap:kvm_mmu_zap_all_fast
- kvm_tdp_mmu_zap_invalidated_roots(kvm)
+ pass

M1: sh/shared-pt-64 sh/accessed-dirty-64
kvm.rmap:rmap_add
- stat[PAGES_STAT[level]] += 1
+ pass

M3: sh/dirtylog-64 age/age-64
kvm.memory_region:_enable_log_dirty_pt_masked
- rmap_write_protect(kvm, head, pt_protect=False)
+ pass

M3: sh/mmu-notifier-64 age/age-64
kvm.rmap:kvm_zap_all_rmap_sptes
- mmu_spte_clear_track_bits(kvm, sptep)
+ pass

M3: sh/dirtylog-64 age/age-64
kvm.rmap:kvm_mmu_slot_gfn_write_protect
- flush |= rmap_write_protect(kvm, gfn_to_rmap(slot, gfn, level), pt_protect=True)
+ pass

M3: age/age-64
kvm.mmu_notifier:kvm_age_gfn
- young |= mmu_spte_age(kvm, sptep)
+ pass

M4: nested48/nested-fuzz-32-04
kvm.hugepage:kvm_mmu_max_mapping_level
- while max_level > 1 and slot.disallow_lpage[max_level].get(gfn >> 9 * (max_level - 1), 0):
+ while False:

M4: nested48/nested-fuzz-32-04
kvm.paging_tmpl:page_fault
- fault.max_level = gw.level
+ fault.max_level = 2

M5: nested48/nested-fuzz-32-04
kvm.page_track:account_shadowed
- update_gfn_disallow_lpage_count(kvm, slot, sp.gfn, 1)
+ pass

M6: sh/nonpaging-thp
kvm.shadow_page:link_shadow_page
- kvm_mmu_remote_flush_or_zap(kvm, invalid, True)
+ pass

M7: sh/large-64 sh/accessed-dirty-32
kvm.shadow_page:validate_direct_spte
- if child.access != direct_access:
+ if False:

M7: sh/large-64 sh/accessed-dirty-32
kvm.paging_tmpl:fetch
- direct_access = pt_access[gw.level] if kvm.bugs.B14 else gw.pte_access
+ direct_access = ACC_ALL

M8: sh/dirtylog-manual-thp-64 sh/nonpaging-thp
kvm.memory_region:_change_flags
- kvm_mmu_zap_collapsible_sptes(kvm, slot)
+ pass

H1: nxrecover-sh/nx-recover-64 nxrecover-tdp0/nx-recover-64
kvm.set_spte:make_spte
- if level > 1 and pte_access & ACC_EXEC_MASK and is_nx_huge_page_enabled(kvm):
+ if False:

H1: nxrecover-sh/nx-recover-64 nxrecover-tdp0/nx-recover-64
kvm.hugepage:kvm_mmu_hugepage_adjust
- fault.huge_page_disallowed = fault.exec and fault.nx_huge_page_workaround_enabled
+ pass

H1: nxrecover-sh/nx-recover-64 nxrecover-tdp0/nx-recover-64
kvm.nx_huge_page:account_nx_huge_page
- kvm.possible_nx_huge_pages[sp.frame] = None
+ pass

H2: nxswitch-sh/nx-switch-64 nxswitch-sh/nx-switch-pae
kvm.zap:set_nx_huge_pages
- kvm_mmu_zap_all_fast(kvm)
+ pass

H3: nxswitch-sh/nx-disable-64 nxswitch-tdp0/nx-disable-64
kvm.nx_huge_page:is_nx_huge_page_enabled
- return kvm.nx_huge_pages and not kvm.disable_nx_huge_pages
+ return kvm.nx_huge_pages

D1: sh/dirtylog-64 ept0-pml/dirtylog-manual-thp-64
kvm.memory_region:_change_flags
- kvm_mmu_slot_remove_write_access(kvm, slot, 2 if kvm.config.pml else 1)
+ pass

D1: ept1-pml/dirtylog-manual-thp-64
kvm.memory_region:_change_flags
- kvm_mmu_slot_leaf_clear_dirty(kvm, slot)
+ pass

D3: ept0/dirtylog-manual-thp-64 sh/nonpaging-thp
kvm.direct:_fix_spte
- if fault.write and spte & kvm.fmt.mmu_writable:
+ if False:

D3: mprotect-tdp1/mprotect-dirtylog-64
kvm.direct:_fix_spte
- if fault.write and spte & kvm.fmt.mmu_writable:
+ if fault.write:

D4: sh/dirtylog-64 sh/shared-pt-32
kvm.rmap:mmu_spte_update
- (old & fmt.mmu_writable and not is_writable_pte(new_spte))
+ False

D4: sh/fuzz-pae-mix-18
kvm.rmap:mmu_spte_update
- or (is_accessed_spte(fmt, old) and not is_accessed_spte(fmt, new_spte))
+ or False

D4: sh/shared-pt-32
kvm.rmap:mmu_spte_update
- or (is_dirty_spte(fmt, old) and not is_dirty_spte(fmt, new_spte))
+ or False

D5: ept1/dirtylog-manual-thp-64
kvm.memory_region:_change_flags
- if kvm.config.eager_page_split:
+ if False:

D6: intel-ept0-noad/age-64 intel-ept1-noad/age-64
kvm.direct:_fix_spte
- new = restore_acc_track_spte(kvm.fmt, new)
+ pass

D7: age/age-64 intel-ept0/age-64
kvm.rmap:mmu_spte_age
- kvm.memory.store64(sptep, kvm_mark_spte_for_access_track(kvm, spte))
+ pass

D8: dirtyring/dirtyring-64 new-tdp1/dirtyring-64
kvm.dirty_ring:DirtyRing.push
- self.gfns[self.dirty_index & self.size - 1] = (slot, offset, False)
+ pass

D8: dirtyring/dirtyring-full-64
kvm.dirty_ring:DirtyRing.soft_full
- return self.dirty_index - self.reset_index >= self.soft_limit
+ return False

F1: nested48/nested-fuzz-32-04
kvm.hugepage:kvm_mmu_hugepage_adjust
- fault.pfn &= ~mask
+ pass

F2: sh/fuzz-32-mix-12
kvm.page_fault:_count
- vcpu.stat[name] += 1
+ pass

F2: sh/fuzz-32-mix-12
kvm.set_spte:mmu_set_spte
- ret = RetPf.SPURIOUS
+ pass

F3: ept0/dirtylog-manual-thp-64 nested48/nested-npt-write-32
kvm.direct:direct_page_fault
- ret = fast_page_fault(vcpu, fault)
+ ret = RetPf.INVALID

F3: nested48/nested-npt-write-32
kvm.direct:direct_page_fault
- if page_fault_handle_page_track(vcpu, fault):
+ if False:

F4: sh/cr0-wp-64 sh/cr0-wp-32
kvm.paging_tmpl:_allow_supervisor_write
- gw.pte_access = (gw.pte_access | ACC_WRITE_MASK) & ~ACC_USER_MASK
+ gw.pte_access |= ACC_WRITE_MASK

F4: sh/cr0-wp-64 sh/cr0-wp-32
kvm.paging_tmpl:_allow_supervisor_write
- gw.pte_access &= ~ACC_EXEC_MASK
+ pass

F5: sh/memslot-64 sh/mmio-64
kvm.mmio:check_mmio_spte
- return kvm_gen == spte_gen
+ return True

F5: sh/memslot-64 sh/mmio-64
kvm.spte:make_mmio_spte
- gen = generation & MMIO_SPTE_GEN_MASK
+ gen = 0

F6: sh/mmio-64 ept0/mmio-64
kvm.mmio:mmio_info_in_cache
- return vcpu_match_mmio_gpa(vcpu, addr) if direct else vcpu_match_mmio_gva(vcpu, addr)
+ return False

F7: intel-sh/mmio-64 intel-sh/mmio-32
kvm.spte:make_mmio_spte
- spte |= fmt.mmio_value | access & fmt.mmio_access | gpa | fmt.nonpresent_or_rsvd
+ spte |= fmt.mmio_value | access & fmt.mmio_access | gpa
"""

CLAIMS = tuple(parse_claim(paragraph) for paragraph in TABLE.strip().split("\n\n"))
