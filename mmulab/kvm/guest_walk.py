"""KVM's software walk of the guest's tables.

The walk itself is :func:`mmulab.x86.walk.walk`; here are the memory it reads,
the events it leaves and the A/D bits that it sets afterwards.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(walk_addr_generic)``,
``FNAME(update_accessed_dirty_bits)``, ``FNAME(gva_to_gpa)``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.context import kvm_mmu_refresh_passthrough_bits
from mmulab.kvm.dirty import kvm_vcpu_mark_page_dirty
from mmulab.kvm.state import Mmu, Vcpu, vcpu_memslots
from mmulab.x86.pferr import (
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.walk import Load, Walk, walk

PT32E_ROOT_LEVEL = 3


def kvm_read_guest(vcpu: Vcpu, gpa: int, size: int) -> int | None:
    """Read guest-physical memory; None if it is in no slot."""
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    if slot is None or slot.invalid:
        return None
    memory = vcpu.kvm.memory
    hpa = slot.frame(gpa >> 12) << 12 | gpa & 0xFFF
    if size == 8 and not hpa & 7:
        return memory.words[hpa >> 3]
    if size == 4 and not hpa & 3:
        return memory.dwords[hpa >> 2]
    return memory.read(hpa, size)


def kvm_write_guest(vcpu: Vcpu, gpa: int, size: int, value: int) -> bool:
    """Write guest-physical memory within one page; False if no slot takes it."""
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    if slot is None or slot.invalid or slot.readonly:
        return False
    vcpu.kvm.memory.write(slot.frame(gpa >> 12) << 12 | gpa & 0xFFF, size, value)
    kvm_vcpu_mark_page_dirty(vcpu, gpa >> 12)
    return True


def _loader(vcpu: Vcpu, width: int) -> Load:
    """Return a ``load`` that goes through the memslots and reports what it reads."""
    kvm = vcpu.kvm
    emit = kvm.emit
    memory = kvm.memory
    lookup = vcpu_memslots(vcpu).lookup

    def load(addr: int, level: int) -> int | None:
        slot = lookup(addr >> 12)
        if slot is None or slot.invalid:
            return None
        hpa = slot.frame(addr >> 12) << 12 | addr & 0xFFF
        pte = memory.words[hpa >> 3] if width == 8 else memory.dwords[hpa >> 2]
        if emit is not None:
            emit(ev.kvm_mmu_paging_element(pte, level))
        return pte

    return load


def walk_addr_generic(vcpu: Vcpu, mmu: Mmu, addr: int, access: int) -> Walk:
    """Walk the guest tables of `mmu` for `addr`.

    Parameters
    ----------
    access : int
        Kind of access: W, U and F bits of an error code, and
        ``PFERR_IMPLICIT_ACCESS``.

    Returns
    -------
    Walk
        On success `pte_access` has lost W if the leaf is clean and this is no
        write, so that the first write comes back to set D.
    """
    kvm = vcpu.kvm
    emit = kvm.emit
    kvm_mmu_refresh_passthrough_bits(vcpu, mmu)
    paging = mmu.paging
    assert paging is not None
    if emit is not None:
        emit(ev.kvm_mmu_pagetable_walk(addr, access & 0xFFFFFFFF))
    pdptes = vcpu.walk_mmu.pdptrs if paging.mode.has_pdptes else None
    write = bool(access & PFERR_WRITE_MASK)
    while True:
        if pdptes is not None and emit is not None:
            emit(ev.kvm_mmu_paging_element(pdptes[addr >> 30 & 3], PT32E_ROOT_LEVEL))
        w = walk(
            paging,
            vcpu.cr3,
            addr,
            access & (PFERR_WRITE_MASK | PFERR_USER_MASK | PFERR_FETCH_MASK),
            _loader(vcpu, paging.mode.entry_bytes),
            pdptes=pdptes,
            not_smap=vcpu.ac and not access & PFERR_IMPLICIT_ACCESS,
            pkru=vcpu.pkru,
        )
        if w.error is not None:
            if emit is not None:
                emit(ev.kvm_mmu_walker_error(w.error))
            return w
        if not write and paging.have_ad and not w.ptes[w.level] & paging.dirty_mask:
            w.pte_access &= ~ACC_WRITE_MASK
        if w.ad_done or update_accessed_dirty_bits(vcpu, mmu, w, write=write):
            return w


def update_accessed_dirty_bits(vcpu: Vcpu, mmu: Mmu, w: Walk, *, write: bool) -> bool:
    """Set A in every entry used and D in the leaf of a write, from the root down.

    Returns
    -------
    bool
        False if an entry is no longer what the walk read, so that the walk must
        be repeated. A table that is used at two levels does that to itself.
    """
    paging = mmu.paging
    assert paging is not None
    if not paging.have_ad:
        return True
    emit = vcpu.kvm.emit
    width = paging.mode.entry_bytes
    for level in range(w.max_level, w.level - 1, -1):
        old = pte = w.ptes[level]
        if not pte & paging.accessed_mask:
            if emit is not None:
                emit(ev.kvm_mmu_set_accessed_bit(w.entry_addr[level]))
            pte |= paging.accessed_mask
        if level == w.level and write and not pte & paging.dirty_mask:
            if emit is not None:
                emit(ev.kvm_mmu_set_dirty_bit(w.entry_addr[level]))
            pte |= paging.dirty_mask
        # A read-only slot keeps its entry as it is: then the bits are reported, not set.
        if pte == old or not _writable(vcpu, w.entry_addr[level]):
            continue
        if kvm_read_guest(vcpu, w.entry_addr[level], width) != old:
            return False
        kvm_write_guest(vcpu, w.entry_addr[level], width, pte)
        w.ptes[level] = pte
    return True


def _writable(vcpu: Vcpu, gpa: int) -> bool:
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    return slot is not None and not slot.readonly


def gva_to_gpa(vcpu: Vcpu, mmu: Mmu, addr: int, access: int) -> tuple[int | None, int]:
    """Translate a guest address as the software walk does.

    Returns
    -------
    gpa : int or None
        None if the walk faults.
    error_code : int
        Of the fault, else 0.
    """
    if mmu.paging is None or mmu.paging.mode.root_level == 0:
        return addr, 0
    w = walk_addr_generic(vcpu, mmu, addr, access)
    if w.error is not None:
        return None, w.error
    return w.pa, 0


