"""The bits of an entry: what this kernel makes, and what the processor takes it for.

KVM checks its own entries for reserved bits when it makes one
(``is_rsvd_spte``, Linux 6.1 ``arch/x86/kvm/mmu/spte.h``).
"""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.config import KvmConfig
from mmulab.kvm.invariants.flags import Wrong
from mmulab.kvm.invariants.survey import Entry
from mmulab.kvm.spte import is_last_spte, is_shadow_present_pte
from mmulab.kvm.spte_decode import decode_spte
from mmulab.kvm.spte_layout import SpteKind
from mmulab.kvm.state import Kvm
from mmulab.x86.ept import make_ept_paging
from mmulab.x86.mode import PT_PAGE_SIZE_MASK
from mmulab.x86.paging import PROCESSOR, Paging, make_paging
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    CpuModel,
)

_NEVER = (SpteKind.UNKNOWN, SpteKind.FROZEN, SpteKind.ZERO)
"""What no entry of a shadow page is once an op has ended."""
_ALL = (1 << 64) - 1


def host_tables(config: KvmConfig) -> Paging:
    """Return the configuration of the host's tables: EPT, or the host's own paging.

    With five levels, which takes no bit of the levels below for another; a table of
    PAE paging has more reserved bits, none of which is missed by what KVM makes.
    """
    cpu = CpuModel(vendor=config.vendor, maxphyaddr=config.host_phys_bits, gbpages=config.gbpages)
    if config.vendor == "intel" and config.tdp:
        return make_ept_paging(5, ad=config.eptad, cpu=cpu, walker=PROCESSOR)
    efer = EFER_NX | EFER_LMA | EFER_LME
    return make_paging(X86_CR0_PG | X86_CR0_WP, X86_CR4_PAE | X86_CR4_LA57, efer, cpu, PROCESSOR)


class Form:
    """What present entries may look like on one host.

    Parameters
    ----------
    config : KvmConfig

    Attributes
    ----------
    wrong : tuple of two tuples of int
        ``wrong[leaf][level]``: bits that a present entry never has.
    bad_mt_xwr : int
        The set of EPT's bits 5:0 that are a misconfiguration.
    """

    __slots__ = ("bad_mt_xwr", "wrong")

    def __init__(self, config: KvmConfig) -> None:
        paging, layouts = host_tables(config), config.spte_format.entries
        self.bad_mt_xwr = paging.bad_mt_xwr
        table = []
        for large, kind in enumerate((SpteKind.NONLEAF, SpteKind.LEAF)):
            known = [sum(field.mask for field in layouts[kind].at(level)) for level in range(1, 6)]
            reserved = [paging.rsvd[large and level > 1][level] for level in range(1, 6)]
            table.append((0, *(_ALL & ~mask | rsvd for mask, rsvd in zip(known, reserved, strict=True))))
        self.wrong = tuple(table)

    def is_plain(self, entry: Entry) -> bool:
        """Whether a look is enough: the entry is present and has no bit that none ever has."""
        spte, level = entry.spte, entry.sp.level
        bits = self.wrong[is_last_spte(spte, level)][level]
        return is_shadow_present_pte(spte) and not spte & bits and not self.bad_mt_xwr >> (spte & 63) & 1

    def check(self, kvm: Kvm, entry: Entry) -> Iterator[Wrong]:
        """The entry is of a kind that KVM makes, and the processor faults on it as KVM means it to."""
        if not self.is_plain(entry):
            yield from _read_in_full(kvm, entry)


def _read_in_full(kvm: Kvm, entry: Entry) -> Iterator[Wrong]:
    spte, level = entry.spte, entry.sp.level
    read = decode_spte(kvm.fmt, spte, level)
    if read.kind in _NEVER:
        yield entry.wrong(f"is {spte:#x}, which is {read.kind.value}")
        return
    if read.unknown:
        yield entry.wrong(f"is {spte:#x}, a {read.kind.value} with the bits {read.unknown:#x}")
    paging = host_tables(kvm.config)
    reserved = paging.rsvd[bool(spte & PT_PAGE_SIZE_MASK)][level] & spte
    if read.kind is SpteKind.MMIO:
        if not reserved and not paging.bad_mt_xwr >> (spte & 63) & 1:
            yield entry.wrong(f"is {spte:#x}, MMIO, and nothing in it makes the processor fault")
    elif spte & paging.present_mask and (reserved or paging.bad_mt_xwr >> (spte & 63) & 1):
        yield entry.wrong(f"is {spte:#x}, which the processor finds reserved bits in ({reserved:#x})")
