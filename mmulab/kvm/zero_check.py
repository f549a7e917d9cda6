"""Bits that no shadow entry may have (``shadow_zero_check``).

The processor would fault on them for ever. Which they are depends on the host's
address width and on what KVM takes the tables of a context to be: shadow entries
of a guest, a direct map, or the shadow of L1's EPT.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``__reset_rsvds_bits_mask``,
``reset_shadow_zero_bits_mask``, ``reset_tdp_shadow_zero_bits_mask``,
``reset_ept_shadow_zero_bits_mask``), ``spte.h`` (``is_rsvd_spte``).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.kvm.state import Vcpu
from mmulab.x86.mode import PT_PAGE_SIZE_MASK

_NX = 1 << 63


class ZeroCheck(NamedTuple):
    """Reserved bits of shadow entries (``struct rsvd_bits_validate``).

    Attributes
    ----------
    masks : tuple of (tuple of int, tuple of int)
        By the entry's bit 7, then by level less one.
    bad_mt_xwr : int
        One bit for each value of the low six that is no entry of EPT.
    """

    masks: tuple[tuple[int, ...], tuple[int, ...]]
    bad_mt_xwr: int = 0


def rsvd_bits(first: int, last: int) -> int:
    """Return the mask of the bits from `first` to `last`, both included."""
    return (1 << last + 1) - (1 << first) if last >= first else 0


def bad_mt_xwr(*, execonly: bool) -> int:
    """Return which memory types and rights are no entry of EPT, one bit each (SDM 3, 29.3.3.1)."""
    bad = 0
    for value in range(64):
        mt, xwr = value >> 3, value & 7
        if mt in (2, 3, 7) or xwr in (2, 6) or (xwr == 4 and not execonly):
            bad |= 1 << value
    return bad


@cache
def shadow_zero_check(phys_bits: int, level: int, *, nx: bool, gbpages: bool, bit8: bool) -> ZeroCheck:
    """Return the reserved bits of tables in the format of a guest's.

    Parameters
    ----------
    phys_bits : int
        The host's physical-address width.
    level : int
        Of the root.
    nx, gbpages : bool
        Entries may have bit 63; an entry of level 3 may map a page.
    bit8 : bool
        Bit 8 of upper entries is reserved (AMD).
    """
    high = rsvd_bits(phys_bits, 62 if level == 3 else 51) | (0 if nx else _NX)
    large = 0 if gbpages else PT_PAGE_SIZE_MASK
    leaf_2m, leaf_1g = high | rsvd_bits(13, 20), high | large | rsvd_bits(13, 29)
    if level == 3:
        return ZeroCheck(((high, high, _NX | high | rsvd_bits(5, 8) | rsvd_bits(1, 2)), (high, leaf_2m, 0)))
    top = high | PT_PAGE_SIZE_MASK | (1 << 8 if bit8 else 0)
    return ZeroCheck(((high, high, high | large, top, top), (high, leaf_2m, leaf_1g, top, top)))


@cache
def ept_zero_check(phys_bits: int, *, execonly: bool) -> ZeroCheck:
    """Return the reserved bits of EPT, which may have large pages of any size."""
    high = rsvd_bits(phys_bits, 51)
    upper, top = high | rsvd_bits(3, 6), high | rsvd_bits(3, 7)
    leaf = (high, high | rsvd_bits(12, 20), high | rsvd_bits(12, 29), top, top)
    return ZeroCheck(((high, upper, upper, top, top), leaf), bad_mt_xwr(execonly=execonly))


def zero_check(vcpu: Vcpu) -> ZeroCheck:
    """Return the reserved bits of the context in use."""
    mmu, config = vcpu.mmu, vcpu.kvm.config
    if mmu.kind == "ept":
        return ept_zero_check(config.host_phys_bits, execonly=bool(mmu.cpu_role.execonly))
    if mmu.kind == "tdp" and config.vendor == "intel":
        return ept_zero_check(config.host_phys_bits, execonly=False)
    tdp = mmu.kind == "tdp"
    return shadow_zero_check(
        config.host_phys_bits,
        mmu.root_level,
        nx=mmu.root_facts is None or tdp or mmu.root_facts.efer_nx,
        gbpages=config.gbpages if config.tdp else bool(vcpu.cpu.gbpages),
        bit8=True,
    )


def is_rsvd_spte(check: ZeroCheck, spte: int, level: int) -> bool:
    """Whether an entry of `level` has a bit that it may not have."""
    mask = check.masks[spte >> 7 & 1][level - 1]
    return bool(spte & mask or check.bad_mt_xwr >> (spte & 63) & 1)


def any_rsvd_spte(check: ZeroCheck, path: list[tuple[int, int, int]]) -> bool:
    """Whether one of the present entries of a path (level, sptep, spte) has such a bit."""
    return any(is_shadow_present_pte(spte) and is_rsvd_spte(check, spte, level) for level, _, spte in path)
