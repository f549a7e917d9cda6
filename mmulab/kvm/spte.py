"""Shadow entries: their bits in Linux 6.1 and 6.12.

The processor reads the low bits; bits that it ignores are KVM's own. An
:class:`SpteFormat` is what ``kvm_mmu_reset_all_pte_masks`` and
``kvm_mmu_set_ept_masks`` set up: one for shadow paging and NPT, one for EPT.
Which bits those are is declared in :mod:`mmulab.kvm.spte_layout`.

Source: Linux 6.1.192 and 6.12.117 ``arch/x86/kvm/mmu/spte.h``, ``spte.c``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.mmu_internal import KVM_PAGES_PER_HPAGE
from mmulab.kvm.spte_layout import (
    ACC_TRACK_SAVED,
    AD_TYPE,
    EPT,
    MMIO_SPTE_GEN_HIGH_MASK,
    MMIO_SPTE_GEN_LOW_MASK,
    MMU_PRESENT,
    REMOVED,
    SHADOW,
    SHADOW_NONPRESENT_OR_RSVD_MASK_LEN,
    EntryLayouts,
    SpteKind,
    entry_layouts,
)
from mmulab.x86.mode import (
    PT_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_EXECUTABLE_MASK,
)

if TYPE_CHECKING:  # a VM's configuration holds the format of its sptes
    from mmulab.kvm.state import Kvm

SPTE_MMU_PRESENT_MASK = MMU_PRESENT.mask
SPTE_TDP_AD_MASK = AD_TYPE.mask
SPTE_TDP_AD_DISABLED_MASK = 1 << 52
SPTE_TDP_AD_WRPROT_ONLY_MASK = 2 << 52
SPTE_ENT_PER_PAGE = 512
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = ACC_TRACK_SAVED.runs()[-1][1]
SHADOW_ACC_TRACK_SAVED_BITS_MASK = ACC_TRACK_SAVED.mask >> SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
MMIO_SPTE_GEN_MASK = (1 << 19) - 1
REMOVED_SPTE = REMOVED.mask
"""What the TDP MMU leaves in an entry that it is taking apart."""
MTRR_TYPE_WRBACK = 6


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
    entries : EntryLayouts
        The declared bits of each kind of entry, which the masks come from.
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
    entries: EntryLayouts = field(compare=False, repr=False)

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
    conditions = {"bit 63": nonpresent, "mmio": phys_bits < 52}
    has = {name for name, on in conditions.items() if on}
    entries = entry_layouts(SHADOW, has, phys_bits=phys_bits, cache_bits=cache_bits)
    leaf, mmio = entries[SpteKind.LEAF].mask, entries[SpteKind.MMIO].mask
    mark = mmio.get("shadow_mmio_value", 0)
    rsvd, lower_gfn = _mmio_address_masks(entries)
    return SpteFormat(
        present=leaf["PT_PRESENT_MASK"],
        user=leaf["PT_USER_MASK"],
        accessed=leaf["PT_ACCESSED_MASK"],
        dirty=leaf["PT_DIRTY_MASK"],
        nx=leaf["PT64_NX_MASK"],
        x=0,
        host_writable=leaf["DEFAULT_SPTE_HOST_WRITABLE"],
        mmu_writable=leaf["DEFAULT_SPTE_MMU_WRITABLE"],
        acc_track=0,
        memtype=0,
        nonpresent=entries[SpteKind.EMPTY].mask.get("SHADOW_NONPRESENT_VALUE", 0),
        mmio_value=mark,
        mmio_mask=mark,
        mmio_access=mmio["shadow_mmio_access_mask"],
        nonpresent_or_rsvd=rsvd,
        nonpresent_or_rsvd_lower_gfn=lower_gfn,
        entries=entries,
    )


def _mmio_address_masks(entries: EntryLayouts) -> tuple[int, int]:
    """Return the address bits of an MMIO entry that are set against L1TF, and those of the gfn below."""
    mmio = entries[SpteKind.MMIO].mask
    rsvd = mmio.get("shadow_nonpresent_or_rsvd_mask", 0)
    return rsvd, mmio["gfn"] & ~(rsvd << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN)


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
    conditions = {"A and D": has_ad, "bit 63": nonpresent, "suppress #VE": suppress_ve}
    has = {name for name, on in conditions.items() if on}
    entries = entry_layouts(EPT, has, phys_bits=phys_bits, cache_bits=cache_bits)
    leaf, mmio = entries[SpteKind.LEAF].mask, entries[SpteKind.MMIO].mask
    sve = leaf.get("VMX_EPT_SUPPRESS_VE_BIT", 0)
    readable, executable = leaf["VMX_EPT_READABLE_MASK"], leaf["VMX_EPT_EXECUTABLE_MASK"]
    rsvd, lower_gfn = _mmio_address_masks(entries)
    return SpteFormat(
        present=(0 if exec_only else readable) | sve,
        user=readable,
        accessed=leaf.get("VMX_EPT_ACCESS_BIT", 0),
        dirty=leaf.get("VMX_EPT_DIRTY_BIT", 0),
        nx=0,
        x=executable,
        host_writable=leaf["EPT_SPTE_HOST_WRITABLE"],
        mmu_writable=leaf["EPT_SPTE_MMU_WRITABLE"],
        acc_track=readable | PT_WRITABLE_MASK | executable,
        memtype=MTRR_TYPE_WRBACK << 3 | leaf["VMX_EPT_IPAT_BIT"],
        nonpresent=entries[SpteKind.EMPTY].mask.get("SHADOW_NONPRESENT_VALUE", 0),
        mmio_value=PT_WRITABLE_MASK | VMX_EPT_EXECUTABLE_MASK,
        mmio_mask=mmio["shadow_mmio_value"] | sve,
        mmio_access=0,
        nonpresent_or_rsvd=rsvd,
        nonpresent_or_rsvd_lower_gfn=lower_gfn,
        entries=entries,
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


def kvm_mark_spte_for_access_track(kvm: Kvm, spte: int) -> int:
    """Return the entry of a VM as not yet accessed."""
    if not spte_ad_enabled(spte) and not is_access_track_spte(kvm.fmt, spte):
        check_spte_writable_invariants(kvm, spte)
        saved = SHADOW_ACC_TRACK_SAVED_BITS_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
        warn_on(kvm, "spte.c:mark_spte_for_access_track:saved", spte & saved != 0)
    return mark_spte_for_access_track(kvm.fmt, spte)


def check_spte_writable_invariants(kvm: Kvm, spte: int) -> None:
    """Assert of a leaf entry: writable only if MMU-writable, and that only if the host's page is writable."""
    fmt = kvm.fmt
    if spte & fmt.mmu_writable:
        bad = not spte & fmt.host_writable
        if bad or kvm.assertion_counts is not None:
            warn_on(kvm, "spte.h:check_spte_writable_invariants:host_writable", bad)
    else:
        bad = spte & PT_WRITABLE_MASK != 0
        if bad or kvm.assertion_counts is not None:
            warn_on(kvm, "spte.h:check_spte_writable_invariants:writable", bad)


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
    spte = (gen << 3) & MMIO_SPTE_GEN_LOW_MASK | (gen << 44) & MMIO_SPTE_GEN_HIGH_MASK
    spte |= fmt.mmio_value | access & fmt.mmio_access | gpa | fmt.nonpresent_or_rsvd
    return spte | (gpa & fmt.nonpresent_or_rsvd) << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN


def get_mmio_spte_generation(spte: int) -> int:
    """Return the memslot generation an MMIO entry was made in."""
    return (spte & MMIO_SPTE_GEN_LOW_MASK) >> 3 | (spte & MMIO_SPTE_GEN_HIGH_MASK) >> 44


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


def can_split_huge_spte(kvm: Kvm, huge_spte: int) -> bool:
    """Whether the entry is a huge page's, so that smaller ones can be made of it."""
    if warn_on(kvm, "spte.c:make_huge_page_split_spte:present", not is_shadow_present_pte(huge_spte)):
        return False
    return not warn_on(kvm, "spte.c:make_huge_page_split_spte:large", not is_large_pte(huge_spte))


def make_huge_page_split_spte(
    fmt: SpteFormat, huge_spte: int, level: int, index: int, *, executable: bool
) -> int:
    """Return entry `index` of the table of `level` that replaces a huge entry.

    `executable`: the page may be executed once it is a small one, because only
    huge pages are kept from it (``nx_huge_pages``).
    """
    spte = huge_spte | index * KVM_PAGES_PER_HPAGE[level] << 12
    if level == 1:
        spte &= ~PT_PAGE_SIZE_MASK
        if executable:
            spte = make_spte_executable(fmt, spte)
    return spte
