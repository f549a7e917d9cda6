"""Host and module parameters of KVM.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c``, ``svm/svm.c``, ``vmx/vmx.c`` (``module_param``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.kvm.roles.derivation import Derivation, parity
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.spte import SpteFormat
from mmulab.kvm.validity import VALIDITIES, Validity


@dataclass(frozen=True, slots=True)
class KvmConfig:
    """Host and module parameters, fixed for a VM's life.

    Attributes
    ----------
    vendor : {"amd", "intel"}
        kvm_amd or kvm_intel.
    host_phys_bits : int
    tdp : bool
        ``npt`` or ``ept``.
    tdp_mmu, eager_page_split, flush_on_reuse, mmio_caching, nx_huge_pages : bool
        Module parameters of those names.
    eptad, pml : bool
        kvm_intel's ``eptad`` and ``pml``.
    x86_64 : bool
        The host's kernel is a 64-bit one; a 32-bit one has PAE tables for everything.
    la57 : bool
        The host runs with 5-level paging.
    gbpages : bool
        The host's processor has 1 GiB pages.
    decode_assists, nrips : bool
        Exits tell the operands of the instruction, and where the next one lies.
    nested : bool
        The guest may have guests of its own.
    design : RoleDesign
    derivation : Derivation
        How the roles of child pages come about.
    validity : Validity
        How contexts are marked as not valid when CPUID changes.
    cpuid_after_run : {"refuse", "allow", "bug"}
        What becomes of a changed CPUID once the vCPU has run
        (:data:`mmulab.kvm.cpuid.CPUID_AFTER_RUN`).
    free_roots_lock : {"write", "by_root_role"}
        How the MMU lock is held while roots are freed
        (:data:`mmulab.kvm.mmu_lock.FREE_ROOTS_LOCK`).
    """

    vendor: str
    host_phys_bits: int
    design: RoleDesign
    spte_format: SpteFormat
    tdp: bool = False
    tdp_mmu: bool = False
    eager_page_split: bool = True
    flush_on_reuse: bool = False
    mmio_caching: bool = True
    nx_huge_pages: bool = False
    eptad: bool = True
    pml: bool = False
    x86_64: bool = True
    la57: bool = False
    gbpages: bool = True
    decode_assists: bool = False
    nrips: bool = False
    nested: bool = True
    derivation: Derivation = parity
    validity: Validity = VALIDITIES["valid"]
    cpuid_after_run: str = "refuse"
    free_roots_lock: str = "write"

    @property
    def uses_tdp_mmu(self) -> bool:
        """Whether direct maps are the TDP MMU's (``is_tdp_mmu_enabled``)."""
        return self.tdp and self.tdp_mmu and self.x86_64
