"""Shadow entries: their bits in Linux 6.1.

The processor reads the low bits; bits that it ignores are KVM's own. An
:class:`SpteFormat` is what ``kvm_mmu_reset_all_pte_masks`` and
``kvm_mmu_set_ept_masks`` set up: one for shadow paging and NPT, one for EPT.

Source: Linux 6.1 ``arch/x86/kvm/mmu/spte.h``, ``spte.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.x86.mode import (
    PT64_NX_MASK,
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_ACCESS_BIT,
    VMX_EPT_DIRTY_BIT,
    VMX_EPT_EXECUTABLE_MASK,
    VMX_EPT_READABLE_MASK,
    VMX_EPT_RWX_MASK,
)
from mmulab.x86.pferr import ACC_USER_MASK, ACC_WRITE_MASK
from mmulab.x86.regs import rsvd_bits

SPTE_MMU_PRESENT_MASK = 1 << 11
SPTE_TDP_AD_MASK = 3 << 52
SPTE_TDP_AD_DISABLED_MASK = 1 << 52
SPTE_TDP_AD_WRPROT_ONLY_MASK = 2 << 52
SPTE_ENT_PER_PAGE = 512
SHADOW_ACC_TRACK_SAVED_BITS_MASK = 5
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = 54
SHADOW_NONPRESENT_OR_RSVD_MASK_LEN = 5
MMIO_SPTE_GEN_MASK = (1 << 19) - 1
SHADOW_NONPRESENT_BIT = 1 << 63
VMX_EPT_SUPPRESS_VE_BIT = 1 << 63
REMOVED_SPTE = 0x5A0
"""What the TDP MMU leaves in an entry that it is taking apart."""
MTRR_TYPE_WRBACK = 6
_GEN_LOW = rsvd_bits(3, 10)
_GEN_HIGH = rsvd_bits(52, 62)


@dataclass(frozen=True, slots=True)
class SpteFormat:
    """The masks of one kind of host table, under the kernel's names without ``shadow_``.

    Attributes
    ----------
    present, user, accessed, dirty, nx, x : int
        Processor bits. `nx` and `x` are mutually exclusive.
    host_writable, mmu_writable : int
        Software bits: the host maps the page writable; KVM itself has no
        reason to write-protect it.
    acc_track : int
        Bits cleared in an entry that waits for its first access, where the
        format has no A bit.
    memtype : int
        Memory-type bits put into every leaf (EPT).
    nonpresent : int
        An empty entry (``SHADOW_NONPRESENT_VALUE``): bit 63, which suppresses #VE, from 6.10 on.
    mmio_value, mmio_mask, mmio_access : int
        How an MMIO entry is recognised, and the rights it keeps.
    nonpresent_or_rsvd : int
        High address bits set in MMIO entries against L1TF.
    nonpresent_or_rsvd_lower_gfn : int
        Address bits of an MMIO entry that hold the gfn in place.
    """

    present: int
    user: int
    accessed: int
    dirty: int
    nx: int
    x: int
    host_writable: int
    mmu_writable: int
    acc_track: int
    memtype: int
    nonpresent: int
    mmio_value: int
    mmio_mask: int
    mmio_access: int
    nonpresent_or_rsvd: int
    nonpresent_or_rsvd_lower_gfn: int

    @property
    def ad_enabled(self) -> bool:
        """Whether KVM uses A/D bits at all (``kvm_ad_enabled``)."""
        return self.accessed != 0


def shadow_format(phys_bits: int, *, cache_bits: int = 0, nonpresent: bool = False) -> SpteFormat:
    """Return the format of shadow paging and NPT (``kvm_mmu_reset_all_pte_masks``).

    Parameters
    ----------
    phys_bits : int
        The host's physical-address width.
    cache_bits : int
        Not 0: the processor has the L1 terminal fault and its L1 cache uses so
        many address bits. MMIO entries set the five highest of them and keep
        the gfn bits they take the place of five bits up.
    nonpresent : bool
        Empty entries have bit 63.
    """
    low = cache_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN if cache_bits else phys_bits
    mmio = 1 << 51 | PT_PRESENT_MASK if phys_bits < 52 else 0
    return SpteFormat(
        present=PT_PRESENT_MASK,
        user=PT_USER_MASK,
        accessed=PT_ACCESSED_MASK,
        dirty=PT_DIRTY_MASK,
        nx=PT64_NX_MASK,
        x=0,
        host_writable=1 << 9,
        mmu_writable=1 << 10,
        acc_track=0,
        memtype=0,
        nonpresent=SHADOW_NONPRESENT_BIT if nonpresent else 0,
        mmio_value=mmio,
        mmio_mask=mmio,
        mmio_access=ACC_WRITE_MASK | ACC_USER_MASK,
        nonpresent_or_rsvd=rsvd_bits(low, cache_bits - 1) if cache_bits else 0,
        nonpresent_or_rsvd_lower_gfn=rsvd_bits(12, low - 1),
    )


def ept_format(
    phys_bits: int,
    *,
    has_ad: bool,
    exec_only: bool = True,
    cache_bits: int = 0,
    nonpresent: bool = False,
    suppress_ve: bool = False,
) -> SpteFormat:
    """Return the format of EPT (``kvm_mmu_set_ept_masks``).

    Leaves map write-back memory whatever the guest's PAT says. An MMIO entry is
    a misconfiguration: W and X without R.

    Parameters
    ----------
    has_ad : bool
        KVM uses EPT's A/D bits (``eptad``). Without them an entry waits for its
        first access with no rights at all.
    exec_only : bool
        The processor has execute-only translations, so R is a right of its own.
    nonpresent : bool
        Empty entries have bit 63.
    suppress_ve : bool
        Present entries have it too: no #VE (SDM 3, 26.5.7).
    """
    low = cache_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN if cache_bits else phys_bits
    return SpteFormat(
        present=(0 if exec_only else VMX_EPT_READABLE_MASK) | (VMX_EPT_SUPPRESS_VE_BIT if suppress_ve else 0),
        user=VMX_EPT_READABLE_MASK,
        accessed=VMX_EPT_ACCESS_BIT if has_ad else 0,
        dirty=VMX_EPT_DIRTY_BIT if has_ad else 0,
        nx=0,
        x=VMX_EPT_EXECUTABLE_MASK,
        host_writable=1 << 57,
        mmu_writable=1 << 58,
        acc_track=VMX_EPT_RWX_MASK,
        memtype=MTRR_TYPE_WRBACK << 3 | 1 << 6,
        nonpresent=SHADOW_NONPRESENT_BIT if nonpresent else 0,
        mmio_value=PT_WRITABLE_MASK | VMX_EPT_EXECUTABLE_MASK,
        mmio_mask=VMX_EPT_RWX_MASK,
        mmio_access=0,
        nonpresent_or_rsvd=rsvd_bits(low, cache_bits - 1) if cache_bits else 0,
        nonpresent_or_rsvd_lower_gfn=rsvd_bits(12, low - 1),
    )


def is_shadow_present_pte(spte: int) -> bool:
    """Whether the entry is backed by memory (an MMIO entry is not)."""
    return spte & SPTE_MMU_PRESENT_MASK != 0


def is_large_pte(spte: int) -> bool:
    """Whether a present entry above level 1 maps a page."""
    return spte & PT_PAGE_SIZE_MASK != 0


def is_last_spte(spte: int, level: int) -> bool:
    """Whether a present entry of `level` maps a page rather than a table."""
    return level == 1 or spte & PT_PAGE_SIZE_MASK != 0


def is_writable_pte(spte: int) -> bool:
    """Whether the processor may write through the entry."""
    return spte & PT_WRITABLE_MASK != 0


def is_mmio_spte(fmt: SpteFormat, spte: int) -> bool:
    """Whether the entry says that its gfn is in no memslot."""
    return fmt.mmio_value != 0 and spte & fmt.mmio_mask == fmt.mmio_value


def spte_to_pfn(spte: int) -> int:
    """Return the frame that the entry points to."""
    return (spte & PT_BASE_ADDR_MASK) >> 12


def spte_ad_enabled(spte: int) -> bool:
    """Whether A/D bits count in this entry."""
    return spte & SPTE_TDP_AD_MASK != SPTE_TDP_AD_DISABLED_MASK


def is_access_track_spte(fmt: SpteFormat, spte: int) -> bool:
    """Whether the entry is made non-present to learn of its first access."""
    return not spte_ad_enabled(spte) and spte & fmt.acc_track == 0


def is_accessed_spte(fmt: SpteFormat, spte: int) -> bool:
    """Whether the page was accessed through the entry, as far as KVM can tell."""
    mask = fmt.accessed if spte_ad_enabled(spte) else 0
    return spte & mask != 0 if mask else not is_access_track_spte(fmt, spte)


def is_dirty_spte(fmt: SpteFormat, spte: int) -> bool:
    """Whether the page was written through the entry, as far as KVM can tell."""
    mask = fmt.dirty if spte_ad_enabled(spte) else 0
    return spte & (mask or PT_WRITABLE_MASK) != 0


def is_executable_pte(fmt: SpteFormat, spte: int) -> bool:
    """Whether the processor may fetch through the entry."""
    return spte & (fmt.x | fmt.nx) == fmt.x


def make_nonleaf_spte(fmt: SpteFormat, frame: int, *, ad_disabled: bool) -> int:
    """Return an entry that points to a shadow table, with all rights."""
    spte = SPTE_MMU_PRESENT_MASK | frame << 12 | fmt.present | PT_WRITABLE_MASK | fmt.user | fmt.x
    return spte | (SPTE_TDP_AD_DISABLED_MASK if ad_disabled else fmt.accessed)


def make_pdpte(frame: int) -> int:
    """Return an entry of a PAE root, which has no rights and no A bit (SDM 3, 4.4.1)."""
    return SPTE_MMU_PRESENT_MASK | frame << 12 | PT_PRESENT_MASK


def mark_spte_for_access_track(fmt: SpteFormat, spte: int) -> int:
    """Return the entry as not yet accessed."""
    if spte_ad_enabled(spte):
        return spte & ~fmt.accessed
    if is_access_track_spte(fmt, spte):
        return spte
    saved = spte & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    return (spte | saved << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT) & ~fmt.acc_track


def restore_acc_track_spte(fmt: SpteFormat, spte: int) -> int:
    """Return an access-tracked entry with its R and X bits back in place."""
    saved = spte >> SHADOW_ACC_TRACK_SAVED_BITS_SHIFT & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    spte &= ~fmt.acc_track
    spte &= ~(SHADOW_ACC_TRACK_SAVED_BITS_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT)
    return spte | saved


def make_mmio_spte(fmt: SpteFormat, gfn: int, access: int, generation: int) -> int:
    """Return an MMIO entry: reserved or misconfigured for the processor, readable for KVM.

    The 19-bit generation lies in bits 3 to 10 and 52 to 62.
    """
    gen = generation & MMIO_SPTE_GEN_MASK
    gpa = gfn << 12
    spte = (gen << 3) & _GEN_LOW | (gen << 44) & _GEN_HIGH
    spte |= fmt.mmio_value | access & fmt.mmio_access | gpa | fmt.nonpresent_or_rsvd
    return spte | (gpa & fmt.nonpresent_or_rsvd) << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN


def get_mmio_spte_generation(spte: int) -> int:
    """Return the memslot generation an MMIO entry was made in."""
    return (spte & _GEN_LOW) >> 3 | (spte & _GEN_HIGH) >> 44


def get_mmio_spte_gfn(fmt: SpteFormat, spte: int) -> int:
    """Return the gfn of an MMIO entry."""
    gpa = spte & fmt.nonpresent_or_rsvd_lower_gfn
    gpa |= spte >> SHADOW_NONPRESENT_OR_RSVD_MASK_LEN & fmt.nonpresent_or_rsvd
    return gpa >> 12


def get_mmio_spte_access(fmt: SpteFormat, spte: int) -> int:
    """Return the rights kept in an MMIO entry."""
    return spte & fmt.mmio_access


def make_spte_executable(fmt: SpteFormat, spte: int) -> int:
    """Return a leaf entry with the right to execute."""
    tracked = is_access_track_spte(fmt, spte)
    if tracked:
        spte = restore_acc_track_spte(fmt, spte)
    spte = spte & ~fmt.nx | fmt.x
    return mark_spte_for_access_track(fmt, spte) if tracked else spte


def make_huge_page_split_spte(
    fmt: SpteFormat, huge_spte: int, level: int, index: int, *, executable: bool
) -> int:
    """Return entry `index` of the table of `level` that replaces a huge entry.

    `executable`: the page may be executed once it is a small one, because only
    huge pages are kept from it (``nx_huge_pages``).
    """
    spte = huge_spte | index << 12 + 9 * (level - 1)
    if level == 1:
        spte &= ~PT_PAGE_SIZE_MASK
        if executable:
            spte = make_spte_executable(fmt, spte)
    return spte
