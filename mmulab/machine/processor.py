"""The processor under a guest: accesses through whatever tables KVM has set up.

It knows nothing of shadow pages. It has a root, control registers and frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.kvm.state import Vcpu
from mmulab.x86.mode import PAGING_PAE, is_canonical, paging_mode
from mmulab.x86.paging import PROCESSOR, Paging, Walker, make_paging
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from mmulab.x86.walk import Walk, walk

_GUEST_CR4 = X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PKE


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor that the guest really runs on.

    Attributes
    ----------
    cpu : CpuModel
    walker : Walker
        Its walk, with the quirks of an emulated one.
    """

    cpu: CpuModel
    walker: Walker = PROCESSOR


def host_paging(vcpu: Vcpu, host: Processor) -> Paging:
    """Return the configuration the processor runs the guest with on shadow tables.

    Paging, write protection, PAE and NX are always on, whatever the guest has;
    SMEP and SMAP only if the guest pages (``svm_set_cr4``, ``vmx_set_cr4``).
    """
    cr4 = X86_CR4_PAE | (vcpu.cr4 & _GUEST_CR4 if vcpu.cr0 & X86_CR0_PG else 0)
    efer = EFER_NX
    level = vcpu.mmu.root_level
    if level >= 4:
        efer |= EFER_LMA | EFER_LME
        if level == 5:
            cr4 |= X86_CR4_LA57
    return make_paging(X86_CR0_PG | X86_CR0_WP, cr4, efer, host.cpu, host.walker)


def host_walk(vcpu: Vcpu, host: Processor, va: int, pfec: int, *, explicit: bool = True) -> Walk:
    """Walk the tables in use as the processor does, setting A and D.

    Parameters
    ----------
    pfec : int
        Kind of access: W, U and F bits of an error code.
    explicit : bool
        EFLAGS.AC counts.
    """
    memory = vcpu.kvm.memory
    paging = host_paging(vcpu, host)
    root = vcpu.mmu.root_hpa
    pdptes = None
    if paging.mode is PAGING_PAE:
        pdptes = memory.words[root >> 3 : (root >> 3) + 4]
    return walk(
        paging,
        root,
        va,
        pfec,
        memory.load64,
        memory.store64,
        pdptes=pdptes,
        not_smap=vcpu.ac and explicit,
        pkru=vcpu.pkru,
    )


def guest_canonical(vcpu: Vcpu, va: int) -> bool:
    """Whether `va` is canonical in the guest's mode; 32-bit code cannot say anything else."""
    mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer)
    return mode.va_bits == 32 or is_canonical(va, mode)
