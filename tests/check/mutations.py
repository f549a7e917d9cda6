"""One-line changes of the MMU, and who notices each."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A line of a function changed, and how that shows.

    Attributes
    ----------
    function : str
        ``module:name`` below :mod:`mmulab.kvm`; of a method, ``module:Class.name``.
    old, new : str
        The line, without indentation and comment, and what stands there instead.
    watcher : str
        Who notices: the name of a class of :data:`tests.check.test_mutations.WATCHERS`.
    guest : str
        A key of :data:`mmulab.check.guests.GUESTS`.
    steps : str
        The whole scenario, ops between semicolons.
    """

    function: str
    old: str
    new: str
    watcher: str
    guest: str
    steps: str


def parse_mutation(paragraph: str) -> Mutation:
    """Read a row of :data:`TABLE`: a function, its line as in a diff, and who notices where by which ops."""
    function, old, new, *rest = paragraph.splitlines()
    told, _, steps = " ".join(line.strip() for line in rest).partition(": ")
    watcher, _, guest = told.partition(" in ")
    return Mutation(function, old.removeprefix("- "), new.removeprefix("+ "), watcher, guest, steps)


TABLE = """
shadow_page:kvm_mmu_child_role
- quadrant = config.kernel.derivation.quadrant(facts, spte_index(sptep), addr)
+ quadrant = 0
oracle in shadow-32: xc s 40600800; rd s 4 40400000; rd s 4 40600000

paging_tmpl:fetch
- access = ACC_ALL if above else pt_access[gw.level if kvm.bugs.B13 else child_level]
+ access = ACC_ALL
oracle in shadow-64: xc s 8000201800; cr3 11000; xc s 8040000000; wr s 4 8000001000 0

gpte:gpte_access
- return gpte & (PT_WRITABLE_MASK | PT_USER_MASK) | (~gpte >> PT64_NX_SHIFT & ACC_EXEC_MASK)
+ return gpte & (PT_WRITABLE_MASK | PT_USER_MASK) | ACC_EXEC_MASK
oracle in shadow-pae: xc s 80001800; wr s 4 1600c 80000000; cr4 a0; xc s 80001800

set_spte:make_spte
- spte |= fmt.x if pte_access & ACC_EXEC_MASK else fmt.nx
+ spte |= fmt.x
oracle in shadow-64: wr s 8 16000 8000000000019067; cr3 10000; rd s 4 40001000; xc s 40001800

set_spte:make_spte
- if pte_access & ACC_USER_MASK:
+ if True:
oracle in shadow-64: cr3 11000; wr s 8 11008 15063; invlpg 8000200000; rd s 4 8000200000; rd u 4 8000200000

set_spte:make_spte
- if pte_access & ACC_WRITE_MASK:
+ if True:
oracle in shadow-64: rd s 4 8040000000; wr s 4 8040000000 0

page_track:account_shadowed
- if kvm_mmu_slot_gfn_write_protect(kvm, slot, sp.gfn, 1):
+ if False:
oracle in shadow-64: rd s 8 12000; rd s 4 8040000000; wr s 8 16000 0; invlpg 8000201000; rd s 4 8040001000

pte_write:kvm_mmu_pte_write
- pages = gfn_sps_with_gptes(kvm, gfn)
+ pages = []
oracle in shadow-64: rd s 4 8000200000; wr s 8 16008 0; cr3 10000; rd s 4 40001000; rd s 4 40200000

pte_write:get_written_sptes
- count = 2
+ count = 1
oracle in shadow-32: rd s 4 40200000; wr s 4 10400 0; cr3 10000; rd s 4 40200000

pte_write:get_written_sptes
- if offset >> 12 != sp.quadrant:
+ if sp.quadrant:
oracle in shadow-32: rd s 4 40401000; wr s 4 10404 0; invlpg 40401000; rd s 4 40401000

invlpg:invlpg
- _invlpg_leaf(vcpu, it.sptep, old)
+ pass
oracle in shadow-64: rd s 4 80000000; wr s 8 18000 0; invlpg 80000000; rd s 4 80000000

x86:kvm_invalidate_pcid
- vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
+ vcpu.requests |= Request.TLB_FLUSH_CURRENT
oracle in shadow-64: cr3 11000; rd s 4 40001000; wr s 8 18000 0; cr3 11000; rd s 4 40000000

x86:kvm_invalidate_pcid
- if kvm_get_pcid(vcpu, pgd) == pcid:
+ if False:
oracle in intel-shadow-64: cr4 20020; cr3 11001; rd s 4 8000001000; cr3 10000; wr s 8 18008 0; invpcid 1 1
    0; cr3 8000000000011001; rd s 4 8000001000

invpcid:kvm_mmu_invpcid_gva
- if pcid == kvm_get_pcid(vcpu, vcpu.cr3):
+ if False:
oracle in intel-shadow-64: rd s 4 40001000; wr s 8 18008 0; invpcid 0 0 40001000; rd s 4 40001000

invpcid:kvm_mmu_invpcid_gva
- if hpa != INVALID_PAGE and pcid == kvm_get_pcid(vcpu, pgd):
+ if False:
oracle in intel-shadow-64: cr4 20020; cr3 11001; rd s 4 8000001000; cr3 10000; wr s 8 18008 0; invpcid 0 1
    8000001000; cr3 8000000000011001; rd s 4 8000001000

invpcid:kvm_handle_invpcid
- vcpu.requests |= Request.TLB_FLUSH_GUEST
+ pass
oracle in intel-shadow-64: rd s 4 40001000; wr s 8 18008 0; invpcid 2 0 0; rd s 4 40001000

invpcid:kvm_handle_invpcid
- kvm_invalidate_pcid(vcpu, pcid)
+ pass
oracle in intel-shadow-64: rd s 4 40001000; wr s 8 18008 0; invpcid 1 0 0; rd s 4 40001000

memory_region:_invalidate
- kvm_mmu_zap_all_fast(kvm)
+ pass
oracle in shadow-64: rd s 4 8040201000; slotdel 1; rd s 4 8040201000

dirty:mark_page_dirty_in_slot
- slot.dirty_bitmap[gfn - slot.base_gfn] = 1
+ pass
oracle in shadow-64: slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1

memory_region:_enable_log_dirty_pt_masked
- rmap_write_protect(kvm, head, pt_protect=False)
+ pass
oracle in shadow-64: slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1; wr s 4 40201000 1; getdirty
    1

memory_region:_enable_log_dirty_pt_masked
- _rmap_clear_dirty(kvm, head)
+ pass
oracle in nested-ept-pml-64: vmxon d000; vmrun a000; slot 1 200000 8000 1 50000; wr s 4 40001000 0; getdirty
    1; wr s 4 40001000 1; getdirty 1

memory_region:_change_flags
- kvm_mmu_slot_remove_write_access(kvm, slot, 2 if kvm.config.pml else 1)
+ pass
oracle in shadow-64: rd s 4 40200000; slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1

guest_walk:update_accessed_dirty_bits
- pte |= paging.accessed_mask
+ pass
oracle in shadow-64: wr s 8 18008 41007; invlpg 40001000; rd s 4 40001000

guest_walk:update_accessed_dirty_bits
- pte |= paging.dirty_mask
+ pass
oracle in shadow-64: wr s 8 18008 41027; invlpg 40001000; wr s 4 40001000 0

guest_walk:walk_addr_generic
- w.pte_access &= ~ACC_WRITE_MASK
+ pass
oracle in shadow-64: wr s 8 18008 41027; invlpg 40001000; rd s 4 40001000; wr s 4 40001000 0

gpte:protect_clean_gpte
- access &= ~ACC_WRITE_MASK
+ pass
oracle in shadow-64: rd s 4 40001000; wr s 8 18008 41027; invlpg 40001000; wr s 4 40001000 0

mmio:check_mmio_spte
- return kvm_gen == spte_gen
+ return True
oracle in shadow-64: hw 8 18008 900067; rd s 4 40001000; slot 5 900000 1000 0 40000; rd s 4 40001000

mmio:vcpu_match_mmio_gva
- known = vcpu.mmio_gen == _generation(vcpu) and vcpu.mmio_gva
+ known = vcpu.mmio_gva
oracle in shadow-64: hw 8 18008 900067; rd s 4 40001000; rd s 4 40001000; slot 5 900000 1000 0 40000; rd s 4
    40001000

mmio:vcpu_match_mmio_gpa
- known = vcpu.mmio_gen == _generation(vcpu) and vcpu.mmio_gfn
+ known = vcpu.mmio_gfn
oracle in npt-64: slotdel 1; rd s 4 80200000; slot 1 200000 8000 0 50000; rd s 4 40201000

paging_tmpl:page_fault
- fault.max_level = gw.level
+ fault.max_level = 3
oracle in shadow-64-thp: wr s 8 18000 200067; rd s 4 40000000

roots:_is_root_usable
- return sp is not None and (mmu.direct or pgd == new_pgd) and sp.role == mmu.root_role
+ return sp is not None and (mmu.direct or pgd == new_pgd)
oracle in nested-shadow-64: cr0 80000031; wr s 4 80000000 0; vmrun a000; wr s 4 80000000 0

roots:_is_root_usable
- return sp is not None and (mmu.direct or pgd == new_pgd) and sp.role == mmu.root_role
+ return sp is not None and sp.role == mmu.root_role
oracle in shadow-64: rd s 4 8000200000; cr3 11000; wr s 4 8000200000 0

context:base_facts
- cr0_wp=bool(cpu.cr0_wp),
+ cr0_wp=True,
oracle in shadow-64: cr0 80000031; wr s 4 80001000 0; cr0 80010031; wr s 4 80001000 0

context:base_facts
- smm=cpu.smm,
+ smm=0,
oracle in shadow-64-smm: rd s 4 40201000; smm on; cr4 20; cr3 10000; efer 900; cr0 80010031; rd s 4 40201000

context:base_facts
- smep_andnot_wp=bool(cpu.smep_andnot_wp),
+ smep_andnot_wp=False,
oracle in shadow-64: cr0 80000031; wr s 4 80000000 0; cr4 100020; xc s 80000800

context:base_facts
- has_4_byte_gpte=bool(cpu.has_4_byte_gpte),
+ has_4_byte_gpte=False,
oracle in shadow-32: xc s 40600800; rd s 4 40400000; rd s 4 40600000

vmx.nested:nested_ept_new_eptp
- accessed_dirty=bool(eptp & VMX_EPTP_AD_ENABLE_BIT),
+ accessed_dirty=False,
oracle in nested-ept-64: vmxon d000; vmrun a000; rd s 4 8000001000; wr s 8 23008 0; rd s 4 8000001000

x86:load_pdptrs
- if not vcpu.kvm.config.tdp and mmu.pdptrs != pdptrs:
+ if False:
oracle in shadow-pae: rd s 4 40001000; hw 8 10008 0; cr3 10000; rd s 4 40001000

gpte:prefetch_invalid_gpte
- if paging.have_ad and not gpte & paging.accessed_mask:
+ if False:
oracle in shadow-64: rd s 4 40001000; wr s 8 18008 41047; invlpg 40001000; rd s 4 40001000

gpte:get_level1_sp_gpa
- offset = sp.quadrant << SPTE_LEVEL_BITS if entry_bytes == 4 else 0
+ offset = 0
oracle in shadow-32: rd s 4 40600000; rd s 4 14000; invlpg 40600000; rd s 4 40600000

sync.page:_sync_spte
- if invisible or gfn != kvm_mmu_page_get_gfn(sp, index):
+ if invisible:
oracle in shadow-64: rd s 4 40001000; wr s 8 18000 42067; cr3 11000; rd s 4 40000000

sync.page:_sync_spte
- access = protect_clean_gpte(paging, sp.access & gpte_access(paging, gpte), gpte)
+ access = protect_clean_gpte(paging, gpte_access(paging, gpte), gpte)
oracle in shadow-64: rd s 4 8040000000; rd s 8 18000; cr3 10000; wr s 4 8040000000 0

sync.unsync_children:mark_unsync
- kvm_mmu_mark_parents_unsync(kvm, sp)
+ pass
oracle in shadow-64: rd s 4 40001000; wr s 8 18000 0; cr3 11000; rd s 4 40000000

sync.unsync_children:_leave
- kvm_mmu_mark_parents_unsync(kvm, sp)
+ pass
oracle in shadow-64: rd s 4 40001000; wr s 8 18008 0; cr3 10000; rd s 4 40001000

sync.unsync_children:UnsyncChildren.is_unsync_root
- return bool(sp.unsync or sp.unsync_children)
+ return False
oracle in intel-shadow-64: cr4 20020; cr3 11001; rd s 4 8000001000; cr3 10000; wr s 8 18008 0; invpcid 2 0
    0; cr3 8000000000011001; rd s 4 8000001000

shadow_page:kvm_mmu_find_shadow_page
- if sp.role != role:
+ if False:
oracle in shadow-64: xc s 8000201800; cr3 11000; rd s 4 8040000000; wr s 4 8000201000 0

rmap:kvm_zap_all_rmap_sptes
- mmu_spte_clear_track_bits(kvm, sptep)
+ pass
oracle in shadow-64: rd s 4 40001000; swapout 41000 1000; rd s 4 40001000

x86:kvm_set_cr4
- if (cr4 ^ old) & KVM_MMU_CR4_ROLE_BITS:
+ if False:
oracle in shadow-64: cr4 100020; xc s 80000800

x86:kvm_set_cr0
- if (cr0 ^ old) & KVM_MMU_CR0_ROLE_BITS:
+ if False:
oracle in shadow-64: cr0 80000031; wr s 4 80000000 0

x86:set_efer
- if (vcpu.efer ^ old) & KVM_MMU_EFER_ROLE_BITS:
+ if False:
oracle in shadow-pae: wr s 4 10008 0; cr3 10000; efer 0; xc s 40201000

svm.nested:_transition_tlb_flush
- vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
+ vcpu.requests |= Request.TLB_FLUSH_CURRENT
oracle in nested-npt-64-64+pae: vmrun b000; rd s 4 80000000; vmmcall; wr s 8 2a008 2c067; wr s 4 a05c 1; wr
    s 8 23000 0; vmrun a000; rd s 4 8000200000

paging_tmpl:_allow_supervisor_write
- gw.pte_access = (gw.pte_access | ACC_WRITE_MASK) & ~ACC_USER_MASK
+ gw.pte_access |= ACC_WRITE_MASK
oracle in shadow-64: cr0 80000031; wr s 4 80000000 0; wr u 4 80000000 0

paging_tmpl:_allow_supervisor_write
- gw.pte_access &= ~ACC_EXEC_MASK
+ pass
oracle in shadow-64: cr4 100020; cr0 80000031; wr s 4 80000000 0; xc s 80000800

direct:_fix_spte
- mark_page_dirty_in_slot(kvm, slot, fault.gfn)
+ pass
oracle in npt-64: rd s 4 40201000; slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1

tdp_mmu:kvm_tdp_mmu_zap_leafs
- tdp_mmu_set_spte(kvm, entry, kvm.fmt.nonpresent)
+ pass
oracle in npt-64-tdpmmu: rd s 4 40001000; swapout 41000 1000; rd s 4 40001000

vmx.pml:vmx_flush_pml_buffer
- kvm_vcpu_mark_page_dirty(vcpu, gfn)
+ pass
oracle in ept-pml: slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1; wr s 4 40201000 1; getdirty 1

guest_walk:walk_addr_generic
- not_smap=vcpu.ac and not access & PFERR_IMPLICIT_ACCESS,
+ not_smap=True,
oracle in shadow-64: cr4 200020; rd s 4 40001000

fault:kvm_faultin_pfn
- fault.map_writable = not slot.readonly and not vcpu.kvm.memory.is_special(frame)
+ fault.map_writable = True
oracle in shadow-64: slotdel 1; slot 1 200000 8000 2 50000; rd s 4 40201000; wr s 4 40201000 0

set_spte:kvm_mmu_hugepage_adjust
- if fault.max_level == 1 or slot is None or fault.pfn < 0 or kvm_slot_dirty_track_enabled(slot):
+ if fault.max_level == 1 or slot is None or fault.pfn < 0:
oracle in shadow-64-thp: slot 1 200000 200000 1 200000; rd s 4 80200000; wr s 4 80201000 0; getdirty 1

vmx.insn:_invept
- kvm_mmu_free_roots(vcpu.kvm, mmu, roots)
+ pass
oracle in nested-ept-64: vmxon d000; vmrun a000; rd s 4 40000000; vmcall; wr s 8 23000 0; invept 1 1a05e 0;
    vmrun a000; rd s 4 40000000

vmx.insn:_invvpid
- kvm_mmu_free_guest_mode_roots(vcpu.kvm, vcpu.root_mmu)
+ pass
oracle in nested-vmx-shadow: vmxon d000; vmrun a000; rd s 4 40001000; vmcall; wr s 8 18008 0; invvpid 1 1 0;
    vmrun a000; rd s 4 40001000

sync.page:sync_mmio_spte
- if gfn != get_mmio_spte_gfn(kvm.fmt, spte):
+ if False:
oracle in shadow-64: hw 8 18008 900067; rd s 4 40001000; wr s 8 18008 42067; cr3 10000; rd s 4 40001000

x86:kvm_set_cr3
- kvm_mmu_new_pgd(vcpu, cr3)
+ pass
oracle in shadow-64: rd s 4 8000001000; cr3 11000; wr s 4 8000001000 0

x86:kvm_service_local_tlb_flush_requests
- kvm_mmu_sync_roots(vcpu, everything=True)
+ pass
oracle in shadow-64: rd s 4 40001000; wr s 8 18008 0; cr4 a0; rd s 4 40001000

zap:kvm_mmu_commit_zap_page
- kvm_flush_remote_tlbs(kvm)
+ pass
adversary in shadow-64: wr s 8 16000 16067; cr0 80000031; rd s 4 8040000000; wr s 4 8040000ffe 0

zap:kvm_mmu_remote_flush_or_zap
- kvm_flush_remote_tlbs(kvm)
+ pass
adversary in shadow-64-smp: @1 wr s 8 10008 11067; @1 rd s 4 8000000000; rd s 8 15000

mmu_notifier:_handle_hva_range
- flush |= handler(kvm, slot, first + offset, last + offset)
+ handler(kvm, slot, first + offset, last + offset)
adversary in shadow-64: wr s 4 40001000 0; hinval 41000 1000

tdp_mmu:kvm_tdp_mmu_zap_leafs
- flush = True
+ pass
adversary in npt-64-tdpmmu: wr s 4 40001000 0; hinval 41000 1000

invlpg:_invlpg_leaf
- kvm_flush_remote_tlbs_sptep(kvm, sptep)
+ pass
adversary in shadow-64-smp: wr s 4 40001000 0; wr s 8 18008 0; invlpg 40001000; hw 8 41000 42067; hw 8 16008
    41067; rd s 4 40200000

memory_region:kvm_get_dirty_log
- kvm_flush_remote_tlbs(kvm)
+ pass
adversary in shadow-64: slot 1 200000 8000 1 50000; wr s 4 40201000 0; getdirty 1

memory_region:_change_flags
- kvm_flush_remote_tlbs(kvm)
+ pass
adversary in shadow-64: wr s 4 40201000 0; slot 1 200000 8000 1 50000

page_track:account_shadowed
- kvm_flush_remote_tlbs_gfn(kvm, sp.gfn, 1)
+ pass
adversary in shadow-64: wr s 4 40000000 0; hw 8 40000 41067; hw 8 16008 40067; rd s 4 40200000

rmap:rmap_add
- count = pte_list_add(head, sptep, keeps_tail_full=kvm.behaviours.pte_list_keeps_tail_full)
+ count = 0
invariants in shadow-64: rd s 4 40001000; slotdel 2; slot 1 200000 8000 1 50000

rmap:rmap_remove
- kvm_pte_list_remove(kvm, head, sptep)
+ pass
invariants in shadow-64: rd s 4 40001000; slotdel 1

page_track:unaccount_shadowed
- update_gfn_track(kvm, slot, sp.gfn, -1)
+ pass
invariants in shadow-64: rd s 4 40001000; cr4 30; invlpg 0; wr s 8 12008 0; slotdel 1

page_track:unaccount_shadowed
- kvm.indirect_shadow_pages -= 1
+ pass
invariants in shadow-64: rd s 4 40001000; slotdel 1

zap:prepare_zap_page
- kvm.n_used_mmu_pages -= 1
+ pass
invariants in shadow-64: rd s 4 40001000; slotdel 1

roots:mmu_alloc_root
- sp.root_count += 1
+ pass
invariants in shadow-64: rd s 4 40001000; slotdel 1

spte:make_mmio_spte
- gpa = gfn << 12
+ gpa = 0
invariants in shadow-64: hw 8 18008 900067; rd s 4 40001000; rd s 4 40001000

zap:mmu_page_zap_pte
- drop_spte(kvm, sptep)
+ pass
invariants in shadow-64: rd s 4 80200000; wr s 8 17008 0; rd s 4 80200000

page_track:kvm_slot_page_track_is_active
- return other is not None and other.gfn_track.get(gfn, 0) > 0
+ return False
invariants in shadow-64-smm: rd s 4 40001000; smm on; wr s 4 16000 0; smm off; invlpg 40001000; rd s 4
    40001000
"""


MUTATIONS = tuple(parse_mutation(paragraph) for paragraph in TABLE.strip().split("\n\n"))
