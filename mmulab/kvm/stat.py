"""Names of the statistics that KVM keeps of a VM and of a vCPU.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_vm_stats_desc``, ``kvm_vcpu_stats_desc``).
"""

VCPU_STATS = (
    "pf_taken",
    "pf_fixed",
    "pf_emulate",
    "pf_spurious",
    "pf_fast",
    "pf_mmio_spte_created",
    "pf_guest",
    "tlb_flush",
    "invlpg",
    "insn_emulation",
    "insn_emulation_fail",
    "mmio_exits",
)
VM_STATS = (
    "mmu_shadow_zapped",
    "mmu_pte_write",
    "mmu_pde_zapped",
    "mmu_flooded",
    "mmu_recycled",
    "mmu_cache_miss",
    "mmu_unsync",
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "nx_lpage_splits",
    "max_mmu_rmap_size",
    "max_mmu_page_hash_collisions",
    "remote_tlb_flush",
    "remote_tlb_flush_requests",
)
PAGES_STAT = ("", "pages_4k", "pages_2m", "pages_1g")
"""Where an entry counts that maps a page, by its level."""
