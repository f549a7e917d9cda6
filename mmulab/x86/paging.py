"""A paging configuration: all that a walk depends on besides memory, root and address.

The configuration is worked out once, when a control register changes, and the
walk (:mod:`mmulab.x86.walk`) then only looks things up. Reserved bits: SDM 3,
tables 4-14 to 4-20, APM 2, 5.3; rights: SDM 3, 4.6. Where KVM's software walk
and a processor differ, the difference is a field of :class:`Walker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from mmulab.x86.mode import (
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PagingMode,
    paging_mode,
)
from mmulab.x86.pferr import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_WP,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
    rsvd_bits,
)


@dataclass(frozen=True, slots=True)
class Walker:
    """Who walks, as far as it changes what is seen.

    Attributes
    ----------
    name : str
        For messages.
    sets_ad : bool
        The processor sets A at each level as it passes and D before a write;
        KVM's walk sets neither while it walks
        (``FNAME(update_accessed_dirty_bits)`` runs after a walk that succeeded).
    pse36_bits : int or None
        Physical-address bits above 32 in a 4 MiB PDE. None: by MAXPHYADDR, at
        most 8 (SDM 3, table 4-4). KVM takes 4 whatever CPUID says
        (``is_cpuid_PSE36``, Linux 6.1 ``arch/x86/kvm/mmu/mmu.c``).
    fetch_needs_pae : bool
        Without SMEP, a processor reports a fetch in the error code only if
        EFER.NX and CR4.PAE are both set (SDM 3, 4.7; APM 2, 8.4.2). KVM asks
        for EFER.NX alone (``FNAME(walk_addr_generic)``, ``paging_tmpl.h``).
    rsvd_sets_p : bool
        A fault on a reserved bit reports P too (SDM 3, 4.7). QEMU's emulated
        processors leave it out.
    marks_pdptes : bool
        It sets A in PDPTEs that it reads from memory, and so cannot take the bit
        for reserved. Only QEMU's emulated processors do.
    ept_fetch : bool
        A fetch that fails in an EPT is reported as one. KVM's walk does so if the
        MMU role has NX or SMEP, and that of an EPT has neither (``FNAME(walk_addr_generic)``).
    """

    name: str
    sets_ad: bool
    pse36_bits: int | None
    fetch_needs_pae: bool = True
    rsvd_sets_p: bool = True
    marks_pdptes: bool = False
    ept_fetch: bool = True


PROCESSOR = Walker("processor", True, None)
KVM_WALK = Walker("kvm", False, 4, fetch_needs_pae=False, ept_fetch=False)


class Step(NamedTuple):
    """One level of a walk.

    Attributes
    ----------
    level, shift : int
        The level, and the number of address bits below its index.
    mask, link : int
        An entry whose bits in `mask` are `link` leads on to the next table, and nothing more is to be looked
        at: it is present (in an EPT with all rights), A is set, bit 7 and the reserved bits are not.
        Of level 1 there is no such entry.
    """

    level: int
    shift: int
    mask: int
    link: int


@dataclass(frozen=True)
class Paging:
    """A mode with the control bits, the processor's limits and the walker folded in.

    Attributes
    ----------
    mode : PagingMode
    rsvd : tuple of two tuples of int
        ``rsvd[bit7][level]``: reserved bits of an entry of `level` by its bit 7.
    page_size_mask : tuple of int
        ``page_size_mask[level]``: the bit that makes an entry of `level` a leaf.
    permissions : bytes
        ``permissions[pfec >> 1]`` has bit ``acc`` set when an access with that
        error code faults on a page with rights ``acc``. Bit 3 of the code
        stands for "SMAP does not apply".
    present_mask, accessed_mask, dirty_mask : int
    nx : bool
        EFER.NX.
    fetch_bit : bool
        The error code of a fetch has F (needs NX or SMEP; see :class:`Walker`).
    wp, pke : bool
    have_ad, sets_ad : bool
        The format has A/D bits; this walker sets them as it goes.
    ept : bool
        Entries have EPT's R, W and X bits.
    bad_mt_xwr : int
        Bit `i` set: an EPT entry whose bits 5:0 are `i` is misconfigured.
    rsvd_error : int
        Error-code bits of a fault on a reserved bit.
    pse36_mask : int
        Bits of a 4 MiB PDE, from bit 13, that hold physical address bits from 32.
    pdpte_rsvd : int
        See :func:`pdpte_reserved`; a walk checks it where PDPTEs come from memory.
    """

    mode: PagingMode
    rsvd: tuple[tuple[int, ...], tuple[int, ...]]
    page_size_mask: tuple[int, ...]
    permissions: bytes
    nx: bool
    fetch_bit: bool
    wp: bool
    pke: bool
    sets_ad: bool
    pse36_mask: int
    pdpte_rsvd: int
    rsvd_error: int
    marks_pdptes: bool = False
    have_ad: bool = True
    present_mask: int = PT_PRESENT_MASK
    accessed_mask: int = PT_ACCESSED_MASK
    dirty_mask: int = PT_DIRTY_MASK
    ept: bool = False
    bad_mt_xwr: int = 0

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The levels of tables in memory, from the highest down."""
        mode = self.mode
        top = mode.root_level - 1 if mode.has_pdptes else mode.root_level
        link = self.present_mask | self.accessed_mask
        upper = (
            Step(level, mode.level_shift(level), link | PT_PAGE_SIZE_MASK | self.rsvd[0][level], link)
            for level in range(top, 1, -1)
        )
        return (*upper, Step(1, mode.level_shift(1), 0, 1)) if top else ()


def permission_bitmask(*, wp: bool, smep: bool, smap: bool, nx: bool) -> bytes:
    """Tabulate which access faults on which rights (SDM 3, 4.6.1).

    Returns
    -------
    bytes, length 16
        Indexed by error code >> 1; see :attr:`Paging.permissions`.
    """
    table = bytearray(16)
    for index in range(16):
        code = index << 1
        write, user, fetch = code & PFERR_WRITE_MASK, code & PFERR_USER_MASK, code & PFERR_FETCH_MASK
        for acc in range(8):
            page_user = acc & ACC_USER_MASK
            fault = bool(fetch and nx and not acc & ACC_EXEC_MASK)
            if user:
                fault |= not page_user or bool(write and not acc & ACC_WRITE_MASK)
            else:
                fault |= bool(write and wp and not acc & ACC_WRITE_MASK)
                if page_user and fetch:
                    fault |= smep
                elif page_user and not code & PFERR_RSVD_MASK:
                    fault |= smap
            table[index] |= fault << acc
    return bytes(table)


def _reserved(
    mode: PagingMode, cpu: CpuModel, *, nx: bool, pse: bool, pse36_bits: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the reserved bits by bit 7 and level (index 0 unused)."""
    small, large = [0] * 6, [0] * 6
    if mode.name == "32":
        if pse:
            large[2] = rsvd_bits(13 + pse36_bits, 21)
        return tuple(small), tuple(large)
    high = rsvd_bits(cpu.maxphyaddr, 62 if mode.name == "pae" else 51)
    if not nx:
        high |= 1 << 63
    bit8 = 1 << 8 if cpu.vendor == "amd" else 0
    no_gb = 0 if cpu.gbpages else 1 << 7
    for level in range(1, 6):
        small[level] = large[level] = high
    large[2] |= rsvd_bits(13, mode.level_shift(2) - 1)
    small[3] |= no_gb
    large[3] |= no_gb | rsvd_bits(13, mode.level_shift(3) - 1)
    for level in (4, 5):
        small[level] = large[level] = high | bit8 | 1 << 7
    return tuple(small), tuple(large)


def _largest_page_level(mode: PagingMode, pse: bool) -> int:
    """Return the highest level whose entries may map a page; above it bit 7 is reserved."""
    if mode.entry_bytes == 4 and not pse:
        return 1
    return 3 if mode.root_level > 3 else 2


@lru_cache(maxsize=4096)
def make_paging(cr0: int, cr4: int, efer: int, cpu: CpuModel, walker: Walker = PROCESSOR) -> Paging:
    """Work out the paging configuration that these registers select on `cpu`."""
    mode = paging_mode(cr0, cr4, efer)
    nx, wp = bool(efer & EFER_NX), bool(cr0 & X86_CR0_WP)
    smep, smap = bool(cr4 & X86_CR4_SMEP), bool(cr4 & X86_CR4_SMAP)
    pse = bool(cr4 & X86_CR4_PSE)
    pse36 = walker.pse36_bits
    if pse36 is None:
        pse36 = max(0, min(cpu.maxphyaddr, 40) - 32) if cpu.pse36 else 0
    largest = _largest_page_level(mode, pse)
    return Paging(
        mode=mode,
        rsvd=_reserved(mode, cpu, nx=nx, pse=pse, pse36_bits=pse36),
        page_size_mask=tuple(PT_PAGE_SIZE_MASK if 2 <= level <= largest else 0 for level in range(6)),
        permissions=permission_bitmask(wp=wp, smep=smep, smap=smap, nx=nx),
        nx=nx,
        fetch_bit=smep or (nx and not (walker.fetch_needs_pae and mode.entry_bytes == 4)),
        wp=wp,
        pke=bool(efer & EFER_LMA and cr4 & X86_CR4_PKE),
        sets_ad=walker.sets_ad,
        pse36_mask=rsvd_bits(13, 12 + pse36) if mode.name == "32" else 0,
        pdpte_rsvd=pdpte_reserved(cpu) & ~(PT_ACCESSED_MASK if walker.marks_pdptes else 0),
        marks_pdptes=walker.marks_pdptes,
        rsvd_error=PFERR_RSVD_MASK | (PFERR_PRESENT_MASK if walker.rsvd_sets_p else 0),
    )


def pdpte_reserved(cpu: CpuModel) -> int:
    """Reserved bits of a PAE PDPTE: 1, 2, 5 to 8 and those from MAXPHYADDR (SDM 3, table 4-8)."""
    return rsvd_bits(1, 2) | rsvd_bits(5, 8) | rsvd_bits(cpu.maxphyaddr, 63)
