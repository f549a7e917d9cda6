"""Device memory: MMIO sptes and the vCPU's cache of the last MMIO translation.

Source: Linux 6.1 ``arch/x86/kvm/x86.h`` (``vcpu_cache_mmio_info`` and beside it),
``arch/x86/kvm/mmu/mmu.c`` (``mark_mmio_spte``, ``check_mmio_spte``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.context import mmu_is_nested
from mmulab.kvm.rmap import mmu_spte_set
from mmulab.kvm.spte import (
    MMIO_SPTE_GEN_MASK,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_mmio_spte,
    make_mmio_spte,
)
from mmulab.kvm.state import MMIO_GVA_ANY, Vcpu, spte_at, vcpu_memslots
from mmulab.kvm.trace import trace
from mmulab.x86.pferr import ACC_ALL


def vcpu_cache_mmio_info(vcpu: Vcpu, gva: int, gfn: int, access: int) -> None:
    """Remember where the guest's device access went."""
    vcpu.mmio_gva = 0 if mmu_is_nested(vcpu) else gva & ~0xFFF
    vcpu.mmio_access = access
    vcpu.mmio_gfn = gfn
    vcpu.mmio_gen = _generation(vcpu)


def _generation(vcpu: Vcpu) -> int:
    """Return the generation of the slots that the cached translation is of."""
    slots = vcpu.kvm.slots[0] if vcpu.kvm.bugs.B8 else vcpu_memslots(vcpu)
    return slots.generation


def vcpu_clear_mmio_info(vcpu: Vcpu, gva: int) -> None:
    """Forget the translation of `gva`, or any."""
    if gva == MMIO_GVA_ANY or vcpu.mmio_gva == gva & ~0xFFF:
        vcpu.mmio_gva = 0


def vcpu_match_mmio_gva(vcpu: Vcpu, gva: int) -> bool:
    """Whether `gva` is known to be device memory."""
    known = vcpu.mmio_gen == _generation(vcpu) and vcpu.mmio_gva
    return bool(known) and vcpu.mmio_gva == gva & ~0xFFF


def vcpu_match_mmio_gpa(vcpu: Vcpu, gpa: int) -> bool:
    """Whether `gpa` is known to be device memory."""
    known = vcpu.mmio_gen == _generation(vcpu) and vcpu.mmio_gfn
    return bool(known) and vcpu.mmio_gfn == gpa >> 12


def mmio_info_in_cache(vcpu: Vcpu, addr: int, direct: bool) -> bool:
    """Whether the faulting address is known to be device memory."""
    if mmu_is_nested(vcpu):
        return False
    return vcpu_match_mmio_gpa(vcpu, addr) if direct else vcpu_match_mmio_gva(vcpu, addr)


def vcpu_make_mmio_spte(vcpu: Vcpu, gfn: int, access: int) -> int:
    """Return an MMIO entry for the slots as they are; where those are not cached there is none."""
    kvm = vcpu.kvm
    warn_on(kvm, "spte.c:make_mmio_spte:value", not kvm.fmt.mmio_value)
    return make_mmio_spte(kvm.fmt, gfn, access, vcpu_memslots(vcpu).generation)


def mark_mmio_spte(vcpu: Vcpu, sptep: int, gfn: int, access: int) -> None:
    """Write an MMIO entry."""
    kvm = vcpu.kvm
    spte = vcpu_make_mmio_spte(vcpu, gfn, access)
    trace(kvm, ev.mark_mmio_spte, sptep, gfn, spte & ACC_ALL, get_mmio_spte_generation(spte))
    mmu_spte_set(kvm, sptep, spte)


def check_mmio_spte(vcpu: Vcpu, spte: int) -> bool:
    """Whether the memslots are still those in which the entry was made."""
    kvm_gen = vcpu_memslots(vcpu).generation & MMIO_SPTE_GEN_MASK
    spte_gen = get_mmio_spte_generation(spte)
    trace(vcpu.kvm, ev.check_mmio_spte, spte, kvm_gen, spte_gen)
    return kvm_gen == spte_gen


def sync_mmio_spte(vcpu: Vcpu, sptep: int, gfn: int, access: int) -> bool:
    """Refresh an MMIO entry, or clear it if the gfn changed; return whether it was one."""
    kvm = vcpu.kvm
    spte = spte_at(kvm, sptep)
    if not is_mmio_spte(kvm.fmt, spte):
        return False
    if gfn != get_mmio_spte_gfn(kvm.fmt, spte):
        kvm.memory.store64(sptep, kvm.fmt.nonpresent)
    else:
        mark_mmio_spte(vcpu, sptep, gfn, access)
    return True
