"""KVM's software walk of the guest's tables.

The walk itself is :func:`mmulab.x86.walk.walk`; here are the memory it reads,
the events it leaves and the A/D bits that it sets afterwards.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(walk_addr_generic)``,
``FNAME(update_accessed_dirty_bits)``, ``FNAME(gva_to_gpa)``).
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab import events as ev
from mmulab.kvm.assertions import bug_on
from mmulab.kvm.context import kvm_mmu_refresh_passthrough_bits
from mmulab.kvm.dirty import kvm_vcpu_mark_page_dirty
from mmulab.kvm.host_page import access_host_page, readable_frame
from mmulab.kvm.mmu import PT32E_ROOT_LEVEL, Mmu, X86Exception
from mmulab.kvm.state import Vcpu, vcpu_memslots
from mmulab.kvm.trace import trace
from mmulab.x86.ept import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_SHIFT,
    raw_rwx,
)
from mmulab.x86.mode import PT_PRESENT_MASK
from mmulab.x86.paging import Paging, pdpte_reserved
from mmulab.x86.pferr import (
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.walk import Load, Walk, walk


def kvm_read_guest(vcpu: Vcpu, gpa: int, size: int) -> int | None:
    """Read guest-physical memory; None if it is in no slot, or the VMM's mapping allows no reads."""
    kvm = vcpu.kvm
    frame = readable_frame(kvm, kvm.slots[vcpu.smm], gpa >> 12)
    if frame is None:
        return None
    memory = kvm.memory
    hpa = frame << 12 | gpa & 0xFFF
    if size == 8 and not hpa & 7:
        return memory.words[hpa >> 3]
    if size == 4 and not hpa & 3:
        return memory.dwords[hpa >> 2]
    return memory.read(hpa, size)


def kvm_read_guest_atomic(vcpu: Vcpu, gpa: int, size: int) -> int | None:
    """Read guest-physical memory where nothing may wait; None also if it is swapped out."""
    swapped = vcpu.kvm.memory.swapped
    if swapped:
        slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
        if slot is not None and slot.frame(gpa >> 12) in swapped:
            return None
    return kvm_read_guest(vcpu, gpa, size)


def kvm_write_guest(vcpu: Vcpu, gpa: int, size: int, value: int) -> bool:
    """Write guest-physical memory within one page; False if no slot, or the VMM's mapping, takes it."""
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    if slot is None or slot.invalid or slot.readonly:
        return False
    frame = slot.frame(gpa >> 12)
    if not access_host_page(vcpu.kvm, frame, write=True):
        return False
    vcpu.kvm.memory.write(frame << 12 | gpa & 0xFFF, size, value)
    kvm_vcpu_mark_page_dirty(vcpu, gpa >> 12)
    return True


def kvm_mmu_get_guest_pgd(vcpu: Vcpu, mmu: Mmu) -> int:
    """Return the root of the tables that `mmu` walks: CR3, or L1's nested CR3 or EPT pointer."""
    if mmu is vcpu.guest_mmu and vcpu.nested is not None:
        return vcpu.nested.nested_pgd
    return vcpu.cr3


def kvm_mmu_get_pdptrs(vcpu: Vcpu, mmu: Mmu) -> list[int]:
    """Return the four PDPTEs of PAE tables.

    On AMD with nested paging they are in memory and nowhere else; KVM reads them
    at their first use after the guest has run (``svm_cache_reg``).
    """
    if mmu is vcpu.guest_mmu and vcpu.nested is not None:
        return [vcpu.nested.pdptr(vcpu, i) for i in range(4)]
    config = vcpu.kvm.config
    if config.tdp and config.vendor == "amd" and not vcpu.pdptrs_available:
        pdptrs = read_pdptrs(vcpu, vcpu.cr3)
        if pdptrs is not None:
            vcpu.walk_mmu.pdptrs = pdptrs
            vcpu.pdptrs_available = True
    return vcpu.walk_mmu.pdptrs


def read_pdptrs(vcpu: Vcpu, cr3: int) -> list[int] | None:
    """Read PAE's four PDPTEs; None if one that is present has reserved bits set."""
    base = (cr3 & ~0xFFF) | cr3 & 0xFE0
    if vcpu.walk_mmu is vcpu.nested_mmu:
        real, _ = translate_nested_gpa(vcpu, base & ~0xFFF, PFERR_USER_MASK | PFERR_WRITE_MASK)
        if real is None:
            return None
        base = real | base & 0xFFF
    entries = [kvm_read_guest(vcpu, base + 8 * i, 8) for i in range(4)]
    pdptrs = [e for e in entries if e is not None]
    reserved = pdpte_reserved(vcpu.cpu)
    if len(pdptrs) < 4 or any(p & PT_PRESENT_MASK and p & reserved for p in pdptrs):
        return None
    return pdptrs


def translate_nested_gpa(vcpu: Vcpu, gpa: int, access: int) -> tuple[int | None, X86Exception | None]:
    """Translate an address of L2's memory by L1's nested tables; all are user accesses."""
    kvm, bad = vcpu.kvm, vcpu.walk_mmu is not vcpu.nested_mmu
    if bad or kvm.assertion_counts is not None:
        bug_on(kvm, "x86.c:translate_nested_gpa:nested", bad)
    return gva_to_gpa(vcpu, vcpu.mmu, gpa, access | PFERR_USER_MASK)


class GuestWalker(NamedTuple):
    """A walk by software, and what it found at fault.

    Attributes
    ----------
    walk : Walk
        If it succeeded, `pte_access` has lost W if the leaf is clean and this
        is no write, so that the first write comes back to set D. Of L2's
        tables, `pa` is L1's physical address.
    fault : X86Exception or None
    """

    walk: Walk
    fault: X86Exception | None


class _NestedFault(Exception):
    """L1's nested tables do not translate the address of one of L2's tables."""

    def __init__(self, fault: X86Exception) -> None:
        super().__init__(fault)
        self.fault = fault


class _NotUpdated(Exception):
    """A or D cannot be set: the VMM's mapping is read-only, or L1's page-modification log has no room."""


RealPages = dict[int, int]
"""Of L2's tables: page of L2's memory to page of L1's."""


def _loader(vcpu: Vcpu, width: int) -> Load:
    """Return a ``load`` that reads entries of this many bytes in memslots, and reports them."""
    kvm = vcpu.kvm
    words, dwords, slots = kvm.memory.words, kvm.memory.dwords, kvm.slots[vcpu.smm]

    def load(gpa: int, level: int) -> int | None:
        frame = readable_frame(kvm, slots, gpa >> 12)
        if frame is None:
            return None
        hpa = frame << 12 | gpa & 0xFFF
        pte = words[hpa >> 3] if width == 8 else dwords[hpa >> 2]
        trace(kvm, ev.kvm_mmu_paging_element, pte, level)
        return pte

    return load


def _nested_loader(vcpu: Vcpu, paging: Paging, real: RealPages) -> Load:
    """Return a ``load`` of L2's tables; `real` gets the pages that it went through."""
    load = _loader(vcpu, paging.mode.entry_bytes)
    access = PFERR_USER_MASK | (PFERR_WRITE_MASK if paging.have_ad else 0)

    def nested_load(addr: int, level: int) -> int | None:
        page, fault = translate_nested_gpa(vcpu, addr & ~0xFFF, access)
        if page is None:
            assert fault is not None
            raise _NestedFault(fault)
        real[addr & ~0xFFF] = page
        return load(page | addr & 0xFFF, level)

    return nested_load


def walk_addr_generic(vcpu: Vcpu, mmu: Mmu, addr: int, access: int) -> GuestWalker:
    """Walk the guest tables of `mmu` for `addr`.

    Parameters
    ----------
    access : int
        Kind of access: W, U and F bits of an error code, and
        ``PFERR_IMPLICIT_ACCESS``.
    """
    kvm_mmu_refresh_passthrough_bits(vcpu, mmu)
    paging = mmu.paging
    assert paging is not None
    trace(vcpu.kvm, ev.kvm_mmu_pagetable_walk, addr, access & 0xFFFFFFFF)
    pdptes = kvm_mmu_get_pdptrs(vcpu, mmu) if paging.mode.has_pdptes else None
    kind = access & (PFERR_WRITE_MASK | PFERR_USER_MASK | PFERR_FETCH_MASK)
    write = bool(access & PFERR_WRITE_MASK)
    while True:
        if pdptes is not None:
            trace(vcpu.kvm, ev.kvm_mmu_paging_element, pdptes[addr >> 30 & 3], PT32E_ROOT_LEVEL)
        real: RealPages | None = {} if mmu is vcpu.nested_mmu else None
        try:
            w = walk(
                paging,
                kvm_mmu_get_guest_pgd(vcpu, mmu),
                addr,
                kind,
                _loader(vcpu, paging.mode.entry_bytes)
                if real is None
                else _nested_loader(vcpu, paging, real),
                pdptes=pdptes,
                not_smap=vcpu.ac and not access & PFERR_IMPLICIT_ACCESS,
                pkru=vcpu.pkru,
            )
        except _NestedFault as nested:
            return GuestWalker(Walk(addr, kind), nested.fault)
        if w.error is not None:
            return _failed(vcpu, mmu, w, w.error)
        if real is not None:
            page, fault = translate_nested_gpa(vcpu, w.pa & ~0xFFF, access)
            if page is None:
                return GuestWalker(w, fault)
            w.pa = page | w.pa & 0xFFF
        if not write and paging.have_ad and not w.ptes[w.level] & paging.dirty_mask:
            w.pte_access &= ~ACC_WRITE_MASK
        try:
            if w.ad_done or update_accessed_dirty_bits(vcpu, mmu, w, real, write=write):
                return GuestWalker(w, None)
        except _NotUpdated:
            reported = PFERR_WRITE_MASK | PFERR_USER_MASK | (PFERR_FETCH_MASK if paging.fetch_bit else 0)
            return _failed(vcpu, mmu, w, kind & reported)


def _failed(vcpu: Vcpu, mmu: Mmu, w: Walk, error: int) -> GuestWalker:
    """Report a walk that failed; of L1's EPT, work out the qualification for L1.

    The access is this walk's, the rights are those of L1's entries, and of the
    processor's qualification only what it says of the linear address is kept,
    though it may be that of an earlier violation. A misconfiguration has none.
    """
    if mmu.paging is not None and mmu.paging.ept and not error & PFERR_RSVD_MASK:
        qualification = vcpu.exit_qualification
        qualification &= EPT_VIOLATION_GVA_IS_VALID | EPT_VIOLATION_GVA_TRANSLATED
        for bit, access in (
            (PFERR_WRITE_MASK, EPT_VIOLATION_ACC_WRITE),
            (PFERR_USER_MASK, EPT_VIOLATION_ACC_READ),
            (PFERR_FETCH_MASK, EPT_VIOLATION_ACC_INSTR),
        ):
            qualification |= access if w.pfec & bit else 0
        vcpu.exit_qualification = qualification | raw_rwx(w.pte_access) << EPT_VIOLATION_RWX_SHIFT
    trace(vcpu.kvm, ev.kvm_mmu_walker_error, error)
    return GuestWalker(w, X86Exception(error, w.va, mmu is not vcpu.walk_mmu))


def update_accessed_dirty_bits(vcpu: Vcpu, mmu: Mmu, w: Walk, real: RealPages | None, *, write: bool) -> bool:
    """Set A in every entry used and D in the leaf of a write, from the root down.

    `real` is where L2's tables lie, None of others.

    Returns
    -------
    bool
        False if an entry is no longer what the walk read, so that the walk must
        be repeated. A table that is used at two levels does that to itself.

    Raises
    ------
    _NotUpdated
    """
    paging = mmu.paging
    assert paging is not None
    if not paging.have_ad:
        return True
    width = paging.mode.entry_bytes
    for level in range(w.max_level, w.level - 1, -1):
        old = pte = w.ptes[level]
        if not pte & paging.accessed_mask:
            trace(vcpu.kvm, ev.kvm_mmu_set_accessed_bit, w.entry_addr[level])
            pte |= paging.accessed_mask
        if level == w.level and write and not pte & paging.dirty_mask:
            trace(vcpu.kvm, ev.kvm_mmu_set_dirty_bit, w.entry_addr[level])
            if paging.ept and vcpu.nested is not None and not vcpu.nested.write_log_dirty(vcpu, w.va):
                raise _NotUpdated
            pte |= paging.dirty_mask
        addr = w.entry_addr[level]
        gpa = addr if real is None else real[addr & ~0xFFF] | addr & 0xFFF
        # A read-only slot keeps its entry as it is: then the bits are reported, not set.
        if pte == old or not _writable(vcpu, gpa):
            continue
        if kvm_read_guest(vcpu, gpa, width) != old:
            return False
        if not kvm_write_guest(vcpu, gpa, width, pte):
            raise _NotUpdated
        w.ptes[level] = pte
    return True


def _writable(vcpu: Vcpu, gpa: int) -> bool:
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    return slot is not None and not slot.readonly


def gva_to_gpa(vcpu: Vcpu, mmu: Mmu, addr: int, access: int) -> tuple[int | None, X86Exception | None]:
    """Translate a guest address as the software walk does.

    Returns
    -------
    gpa : int or None
        L1's physical address; None if the walk faults.
    fault : X86Exception or None
    """
    if mmu.paging is None or mmu.paging.mode.root_level == 0:
        if mmu is not vcpu.nested_mmu:
            return addr, None
        return translate_nested_gpa(vcpu, addr, access)
    found = walk_addr_generic(vcpu, mmu, addr, access)
    return (None if found.fault is not None else found.walk.pa), found.fault
