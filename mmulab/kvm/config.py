"""Host and module parameters of KVM.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c``, ``svm/svm.c``, ``vmx/vmx.c`` (``module_param``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.kvm.kernel import Kernel
from mmulab.kvm.spte import SpteFormat


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
    kernel : Kernel
        Which KVM this is.
    spte_format : SpteFormat
        Of this kernel on this host.
    """

    vendor: str
    host_phys_bits: int
    kernel: Kernel
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

    @property
    def uses_tdp_mmu(self) -> bool:
        """Whether direct maps are the TDP MMU's (``is_tdp_mmu_enabled``)."""
        return self.tdp and self.tdp_mmu and self.x86_64
