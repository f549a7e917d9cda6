"""The bits of a shadow entry, declared: which of them are called what, for each kind of entry.

:data:`SHADOW` and :data:`EPT` are to an entry what a role's layout is to its
word (:mod:`mmulab.kvm.roles.word`). The engine's masks come from here
(:mod:`mmulab.kvm.spte`), and so does what the stepper and ``mmulab spte decode``
say of an entry (:mod:`mmulab.kvm.spte_decode`). Names are the kernel's.

Source: Linux 6.1.192 and 6.12.117 ``arch/x86/kvm/mmu/spte.h``, ``spte.c``,
``mmu.c`` (``mmu_alloc_shadow_roots``), ``arch/x86/include/asm/vmx.h``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

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
from mmulab.x86.regs import rsvd_bits

SHADOW_NONPRESENT_OR_RSVD_MASK_LEN = 5
MMIO_SPTE_GEN_LOW_MASK = rsvd_bits(3, 10)
MMIO_SPTE_GEN_HIGH_MASK = rsvd_bits(52, 62)
_ADDRESS_BITS = 52


class SpteKind(Enum):
    """What an entry is; the value is how it is said."""

    EMPTY = "empty"
    ZERO = "zero, an empty entry of a special root or of the dummy root"
    FROZEN = "frozen by the TDP MMU"
    MMIO = "MMIO"
    LEAF = "leaf"
    ACC_TRACK = "access-tracked leaf"
    NONLEAF = "nonleaf"
    PDPTE = "PDPTE of a PAE root"
    SPECIAL_ROOT = "entry of a special root"
    UNKNOWN = "no entry that KVM makes"


class SpteField(NamedTuple):
    """Named bits of an entry; they need not lie side by side.

    Attributes
    ----------
    name : str
        The kernel's.
    mask : int
    label : str
        A short name; empty: the bits only tell the kind of the entry.
    meanings : tuple of str
        Of each value; a single one is that of every value.
    needs : str
        What a host must have for the field to exist (:func:`entry_layouts`).
    large : bool
        Only entries above level 1 have the field.
    """

    name: str
    mask: int
    label: str = ""
    meanings: tuple[str, ...] = ()
    needs: str = ""
    large: bool = False

    def runs(self) -> list[tuple[int, int]]:
        """Return the highest and lowest bit of each run of bits, the highest run first.

        >>> SpteField("MMIO_SPTE_GEN_MASK", 0x7FF00000000007F8).runs()
        [(62, 52), (10, 3)]
        """
        found, rest = [], self.mask
        while rest:
            low = (rest & -rest).bit_length() - 1
            width = ((rest >> low) + 1 & ~(rest >> low)).bit_length() - 1
            found.append((low + width - 1, low))
            rest &= rest + (1 << low)
        return found[::-1]

    @property
    def bits(self) -> str:
        """Where the field lies: ``7``, ``53-52`` or ``62-52,10-3``."""
        return ",".join(str(high) if high == low else f"{high}-{low}" for high, low in self.runs())

    @property
    def is_flag(self) -> bool:
        """Whether the field is a single bit."""
        return self.mask & self.mask - 1 == 0

    def get(self, spte: int) -> int:
        """Return the field's value: its runs put together, the lowest bits first."""
        value = 0
        for high, low in self.runs():
            width = high - low + 1
            value = value << width | spte >> low & (1 << width) - 1
        return value

    def meaning(self, value: int) -> str:
        """Say what a value means; empty if nothing is known of it."""
        if len(self.meanings) == 1:
            return self.meanings[0]
        return self.meanings[value] if value < len(self.meanings) else ""


class EntryLayout:
    """The fields of one kind of entry, as a host has them.

    Parameters
    ----------
    fields : iterable of SpteField

    Raises
    ------
    ValueError
        A field without a bit, two of one name, or two that share a bit.

    Attributes
    ----------
    fields : tuple of SpteField
        The highest bits first.
    mask : dict of str to int
    """

    __slots__ = ("fields", "mask")

    def __init__(self, fields: Iterable[SpteField]) -> None:
        self.fields = tuple(sorted(fields, key=lambda field: -field.mask))
        self.mask: dict[str, int] = {}
        known = 0
        for name, mask in ((field.name, field.mask) for field in self.fields):
            if not mask:
                raise ValueError(f"field {name!r} has no bit")
            if name in self.mask:
                raise ValueError(f"field {name!r} is there twice")
            if mask & known:
                raise ValueError(f"field {name!r} has bits {mask & known:#x}, which another field has")
            self.mask[name] = mask
            known |= mask

    def at(self, level: int) -> tuple[SpteField, ...]:
        """Return the fields of an entry of `level`."""
        return tuple(field for field in self.fields if level > 1 or not field.large)

    def unknown(self, spte: int, level: int) -> int:
        """Return the bits of an entry that belong to no field."""
        return spte & ~sum(field.mask for field in self.at(level))


Declared = Mapping[SpteKind, tuple[SpteField, ...]]
EntryLayouts = Mapping[SpteKind, EntryLayout]

MMU_PRESENT = SpteField(
    "SPTE_MMU_PRESENT_MASK", 1 << 11, "mmu_present", ("not backed by memory", "backed by memory")
)
AD_TYPE = SpteField(
    "SPTE_TDP_AD_MASK",
    3 << 52,
    "ad_type",
    ("A and D are used", "A and D are not used", "A and D are used, writes are caught by protection"),
)
ACC_TRACK_SAVED = SpteField(
    "SHADOW_ACC_TRACK_SAVED_BITS_MASK",
    5 << 54,
    "saved_rx",
    ("no right comes back", "R comes back", "X comes back", "R and X come back"),
)
GENERATION = SpteField(
    "MMIO_SPTE_GEN_MASK",
    MMIO_SPTE_GEN_LOW_MASK | MMIO_SPTE_GEN_HIGH_MASK,
    "generation",
    ("of the memslots when it was made, 19 bits of it",),
)
REMOVED = SpteField("REMOVED_SPTE", 0x5A0, "", ("nobody else may change it; FROZEN_SPTE in 6.12",))
NONPRESENT = SpteField(
    "SHADOW_NONPRESENT_VALUE", 1 << 63, "nonpresent", ("", "not present, without #VE"), needs="bit 63"
)

_PFN = SpteField("SPTE_BASE_ADDR_MASK", PT_BASE_ADDR_MASK, "pfn", ("frame of the page",))
_TABLE = _PFN._replace(meanings=("frame of the table below",))
_LARGE = SpteField("PT_PAGE_SIZE_MASK", PT_PAGE_SIZE_MASK, "PS", ("a table", "a large page"), large=True)
_HOST_WRITABLE = ("the host maps the page read-only", "the host maps the page writable")
_MMU_WRITABLE = ("KVM keeps it from being written", "KVM may make it writable without the MMU lock")


def _writable_bits(prefix: str, host: int, mmu: int) -> tuple[SpteField, ...]:
    """Return the two software bits that tell why an entry is write-protected (``is_writable_pte``)."""
    return (
        SpteField(f"{prefix}_SPTE_HOST_WRITABLE", 1 << host, "host_writable", _HOST_WRITABLE),
        SpteField(f"{prefix}_SPTE_MMU_WRITABLE", 1 << mmu, "mmu_writable", _MMU_WRITABLE),
    )


# Shadow paging and NPT ---------------------------------------------------------------

_P = SpteField("PT_PRESENT_MASK", PT_PRESENT_MASK, "P", ("every access faults", "present"))
_W = SpteField("PT_WRITABLE_MASK", PT_WRITABLE_MASK, "W", ("a write faults", "may be written"))
_U = SpteField("PT_USER_MASK", PT_USER_MASK, "U", ("supervisor only", "user mode too"))
_A = SpteField("PT_ACCESSED_MASK", PT_ACCESSED_MASK, "A", ("not accessed yet", "accessed"))
_D = SpteField("PT_DIRTY_MASK", PT_DIRTY_MASK, "D", ("not written yet", "written"))
_NX = SpteField("PT64_NX_MASK", PT64_NX_MASK, "NX", ("may be executed", "a fetch faults"))
_MMIO_ACCESS = SpteField(
    "shadow_mmio_access_mask",
    PT_WRITABLE_MASK | PT_USER_MASK,
    "access",
    ("supervisor reads", "supervisor reads and writes", "user reads", "user reads and writes"),
)
_RESERVED = SpteField(
    "shadow_mmio_value", 1 << 51 | PT_PRESENT_MASK, "", ("P and a reserved bit: it faults",), needs="mmio"
)

_DEFAULT_WRITABLE = _writable_bits("DEFAULT", 9, 10)

SHADOW: Declared = {
    SpteKind.EMPTY: (NONPRESENT,),
    SpteKind.FROZEN: (NONPRESENT, REMOVED),
    SpteKind.MMIO: (_RESERVED, _MMIO_ACCESS, GENERATION),
    SpteKind.LEAF: (_NX, AD_TYPE, _PFN, MMU_PRESENT, *_DEFAULT_WRITABLE, _LARGE, _D, _A, _U, _W, _P),
    SpteKind.NONLEAF: (AD_TYPE, _TABLE, MMU_PRESENT, _A, _U, _W, _P),
    SpteKind.PDPTE: (_TABLE, MMU_PRESENT, _P),
    SpteKind.SPECIAL_ROOT: (_TABLE, _A, _U, _W, _P),
}
"""Entries of shadow paging and of NPT (``kvm_mmu_reset_all_pte_masks``).

A PDPTE has :data:`MMU_PRESENT` only where roots are shadow pages, which was
never merged (:mod:`mmulab.kvm.expanded_roots`).
"""

# EPT ----------------------------------------------------------------------------------

_EPT_RIGHTS = (
    SpteField("VMX_EPT_READABLE_MASK", VMX_EPT_READABLE_MASK, "R", ("a read faults", "may be read")),
    SpteField("VMX_EPT_WRITABLE_MASK", PT_WRITABLE_MASK, "W", ("a write faults", "may be written")),
    SpteField("VMX_EPT_EXECUTABLE_MASK", VMX_EPT_EXECUTABLE_MASK, "X", ("a fetch faults", "may be executed")),
)
_EPT_A = SpteField("VMX_EPT_ACCESS_BIT", VMX_EPT_ACCESS_BIT, "A", _A.meanings, needs="A and D")
_EPT_D = SpteField("VMX_EPT_DIRTY_BIT", VMX_EPT_DIRTY_BIT, "D", _D.meanings, needs="A and D")
_EPT_MEMTYPE = (
    SpteField("VMX_EPT_MT_MASK", 7 << 3, "memtype", ("UC", "WC", "", "", "WT", "WP", "WB", "")),
    SpteField("VMX_EPT_IPAT_BIT", 1 << 6, "IPAT", ("the guest's PAT counts", "the guest's PAT is ignored")),
)
_EPT_SVE = SpteField(
    "VMX_EPT_SUPPRESS_VE_BIT", 1 << 63, "SVE", ("a violation may be #VE", "no #VE"), needs="suppress #VE"
)
_EPT_MISCONFIG = SpteField(
    "shadow_mmio_value", VMX_EPT_RWX_MASK, "", ("W and X without R (6): it is a misconfiguration",)
)
_EPT_WRITABLE = _writable_bits("EPT", 57, 58)
_EPT_BITS = (_EPT_SVE, AD_TYPE, MMU_PRESENT, _EPT_A, *_EPT_RIGHTS)
"""Of every present entry."""
_EPT_LEAF = (*_EPT_BITS, *_EPT_WRITABLE, _PFN, _EPT_D, _LARGE, *_EPT_MEMTYPE)

EPT: Declared = {
    SpteKind.EMPTY: (NONPRESENT,),
    SpteKind.FROZEN: (NONPRESENT, REMOVED),
    SpteKind.MMIO: (_EPT_SVE._replace(label=""), _EPT_MISCONFIG, GENERATION),
    SpteKind.LEAF: _EPT_LEAF,
    SpteKind.ACC_TRACK: (*_EPT_LEAF, ACC_TRACK_SAVED),
    SpteKind.NONLEAF: (*_EPT_BITS, _TABLE),
}
"""Entries of EPT (``kvm_mmu_set_ept_masks``)."""


_AGAINST_L1TF = ("not all set",) * 31 + ("all set, against L1TF",)


def _mmio_address(phys_bits: int, cache_bits: int) -> tuple[SpteField, ...]:
    """Return the fields of an MMIO entry that hold its gfn, or take its place.

    Against the L1 terminal fault the five highest bits that the cache compares
    are set, and the gfn's own lie five bits higher. Where they would not fit
    there, Linux leaves that out, with a warning.
    """
    if not 0 < cache_bits < _ADDRESS_BITS - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN:
        return (SpteField("gfn", rsvd_bits(12, phys_bits - 1), "gfn", ("in no memslot",)),)
    low = cache_bits - SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
    rsvd = rsvd_bits(low, cache_bits - 1)
    mask = rsvd_bits(12, low - 1) | rsvd << SHADOW_NONPRESENT_OR_RSVD_MASK_LEN
    return (
        SpteField("gfn", mask, "gfn", ("in no memslot",)),
        SpteField("shadow_nonpresent_or_rsvd_mask", rsvd, "", _AGAINST_L1TF),
    )


def entry_layouts(
    declared: Declared, has: Collection[str], *, phys_bits: int, cache_bits: int
) -> EntryLayouts:
    """Return what of a declaration a host has.

    Parameters
    ----------
    declared : Declared
        :data:`SHADOW` or :data:`EPT`.
    has : collection of str
        ``A and D``, ``bit 63`` (empty entries have it), ``suppress #VE`` (present
        ones have it), ``mmio`` (an address bit is reserved).
    phys_bits, cache_bits : int
        See :func:`mmulab.kvm.spte.shadow_format`.
    """
    found = {
        kind: [field for field in fields if not field.needs or field.needs in has]
        for kind, fields in declared.items()
    }
    found[SpteKind.MMIO] += _mmio_address(phys_bits, cache_bits)
    return {kind: EntryLayout(fields) for kind, fields in found.items()}
