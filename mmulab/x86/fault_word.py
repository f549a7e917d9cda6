"""What a processor says of a fault: page-fault error codes, EPT violations, nested page faults.

A :class:`FaultForm` is one register's or field's layout as data. Names are the kernel's where it has
one, otherwise the manual's. ``PFERR_SS_MASK`` and ``EPT_VIOLATION_PROT_*`` are names of later kernels,
given from memory; 6.1 and 6.12 have none for bit 6, and one mask for bits 5:3 (``EPT_VIOLATION_RWX_MASK``).

Source: SDM 3, 4.7 (error code), table 29-7 of 29.2.1 (exit qualification; 28-7 in older editions);
APM 2, 8.4.2 and 15.25.6 (EXITINFO1); Linux 6.1.192 and 6.12.117 ``arch/x86/include/asm/kvm_host.h``,
``asm/vmx.h``, ``arch/x86/kvm/vmx/vmx.c`` (``handle_ept_violation``), ``kvm/mmu/mmutrace.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)

WORD_BITS = 64
_TRACED = PFERR_PRESENT_MASK | PFERR_WRITE_MASK | PFERR_USER_MASK | PFERR_RSVD_MASK | PFERR_FETCH_MASK
"""The bits that the trace names (``kvm_mmu_trace_pferr_flags``)."""


class FaultBit(NamedTuple):
    """One bit of a fault's word.

    Attributes
    ----------
    bit : int
    name : str
    label : str
        A short name.
    is_set, is_clear : str
        What the bit means; an empty `is_clear`: nothing of note, so a clear bit is not shown.
    """

    bit: int
    name: str
    label: str
    is_set: str
    is_clear: str = ""

    @property
    def mask(self) -> int:
        """The bit's mask."""
        return 1 << self.bit


class FaultForm(NamedTuple):
    """A layout of faults.

    Attributes
    ----------
    name : str
    bits : tuple of FaultBit
        The lowest first.
    summary : callable
        Says a word in a sentence.
    doubts : tuple of (callable, str)
        What no processor reports, and why.
    """

    name: str
    bits: tuple[FaultBit, ...]
    summary: Callable[[int], str]
    doubts: tuple[tuple[Callable[[int], bool], str], ...]

    def labels(self, word: int) -> tuple[str, ...]:
        """Return the short names of the bits that are set, the lowest first."""
        return tuple(bit.label for bit in self.bits if word & bit.mask)

    def unknown(self, word: int) -> int:
        """Return the bits that have no name."""
        return word & ~sum(bit.mask for bit in self.bits)

    def notes(self, word: int) -> list[str]:
        """Return what is odd about a word."""
        found = [why for is_odd, why in self.doubts if is_odd(word)]
        if unknown := self.unknown(word):
            found.append(f"bits {unknown:#x} are defined in no manual that this follows")
        return found


_ERROR_CODE = (
    FaultBit(0, "PFERR_PRESENT_MASK", "P", "a present entry refused the access", "an entry was not present"),
    FaultBit(1, "PFERR_WRITE_MASK", "W", "a write", "no write"),
    FaultBit(2, "PFERR_USER_MASK", "U", "a user-mode access", "a supervisor access"),
    FaultBit(3, "PFERR_RSVD_MASK", "RSVD", "a reserved bit was set in an entry"),
    FaultBit(4, "PFERR_FETCH_MASK", "F", "an instruction fetch"),
    FaultBit(5, "PFERR_PK_MASK", "PK", "a protection key refused it"),
    FaultBit(6, "PFERR_SS_MASK", "SS", "a shadow-stack access"),
)
_NPT_BITS = (
    FaultBit(31, "PFERR_GUEST_RMP_MASK", "RMP", "the RMP check of SEV-SNP refused it"),
    FaultBit(32, "PFERR_GUEST_FINAL_MASK", "GUEST_FINAL", "translating the guest's final physical address"),
    FaultBit(33, "PFERR_GUEST_PAGE_MASK", "GUEST_PAGE", "translating a guest page table's address"),
    FaultBit(34, "PFERR_GUEST_ENC_MASK", "ENC", "the guest's C-bit was set (SEV-SNP)"),
    FaultBit(
        35, "PFERR_GUEST_SIZEM_MASK", "SIZEM", "PVALIDATE or RMPADJUST took another page size (SEV-SNP)"
    ),
    FaultBit(36, "PFERR_GUEST_VMPL_MASK", "VMPL", "a VMPL permission refused it (SEV-SNP)"),
)


def _access(word: int) -> str:
    kind = "write" if word & PFERR_WRITE_MASK else "fetch" if word & PFERR_FETCH_MASK else "read"
    return f"{'user' if word & PFERR_USER_MASK else 'supervisor'} {kind}"


def _refusal(word: int) -> str:
    if word & PFERR_RSVD_MASK:
        return "a reserved bit"
    return "a present entry without the right" if word & PFERR_PRESENT_MASK else "a non-present entry"


def _where(word: int) -> str:
    if word & PFERR_GUEST_FINAL_MASK:
        return "; nested: the guest's final physical address"
    return "; nested: a page table of the guest" if word & PFERR_GUEST_PAGE_MASK else ""


def _fault_summary(word: int) -> str:
    return f"{_access(word)}, {_refusal(word)}{_where(word)}"


def _all_set(mask: int) -> Callable[[int], bool]:
    return lambda word: word & mask == mask


_FAULT_DOUBTS = (
    (
        _all_set(PFERR_WRITE_MASK | PFERR_FETCH_MASK),
        "one access is not both a write and a fetch: W and F do not come together",
    ),
    (
        lambda word: bool(word & PFERR_RSVD_MASK and not word & PFERR_PRESENT_MASK),
        "RSVD without P: a processor sets both (SDM 3, 4.7); QEMU's emulated ones leave P out",
    ),
    (
        lambda word: bool(word & PFERR_PK_MASK and not word & PFERR_PRESENT_MASK),
        "PK without P: a key is only looked up for a present page (SDM 3, 4.7)",
    ),
    (
        _all_set(PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK),
        "GUEST_FINAL and GUEST_PAGE: a walk fails in one place, so a processor sets one of them",
    ),
)

PAGE_FAULT = FaultForm(
    "page-fault error code",
    (
        *_ERROR_CODE,
        FaultBit(7, "HLAT", "HLAT", "in hypervisor-managed linear-address translation"),
        FaultBit(15, "PFERR_SGX_MASK", "SGX", "an SGX access-control requirement"),
        *_NPT_BITS,
        FaultBit(
            48, "PFERR_IMPLICIT_ACCESS", "IMPLICIT", "KVM's own: an implicit supervisor access (5.18 on)"
        ),
        FaultBit(49, "PFERR_PRIVATE_ACCESS", "PRIVATE", "KVM's own: private memory (6.11 on)"),
    ),
    _fault_summary,
    _FAULT_DOUBTS,
)
"""Of #PF, with what KVM keeps above bit 31 while it handles a fault."""

NPF = FaultForm(
    "EXITINFO1 of a nested page fault",
    (*_ERROR_CODE, *_NPT_BITS, FaultBit(37, "NPF_SSS", "SSS", "NPT's supervisor shadow-stack bit was set")),
    _fault_summary,
    (
        *_FAULT_DOUBTS,
        (
            lambda word: not word & (PFERR_GUEST_FINAL_MASK | PFERR_GUEST_PAGE_MASK),
            "neither GUEST_FINAL nor GUEST_PAGE: a processor says where its walk failed (APM 2, 15.25.6)",
        ),
    ),
)
"""Of ``SVM_EXIT_NPF``."""

_READ, _WRITE, _INSTR, _GVA, _TRANSLATED = 1, 2, 4, 1 << 7, 1 << 8
_RWX = 7 << 3
_ADVANCED = 7 << 9


def _ept_summary(word: int) -> str:
    kinds = [name for mask, name in ((_READ, "read"), (_WRITE, "write"), (_INSTR, "fetch")) if word & mask]
    rights = "".join(char if word & 8 << at else "-" for at, char in enumerate("rwx"))
    refused = f"a present entry allows {rights}" if word & _RWX else "not present"
    if not word & _GVA:
        return f"{' and '.join(kinds) or 'no access'}, {refused}; no linear address"
    what = "the page itself" if word & _TRANSLATED else "a paging-structure entry of the guest"
    return f"{' and '.join(kinds) or 'no access'}, {refused}; of {what}"


EPT_VIOLATION = FaultForm(
    "exit qualification of an EPT violation",
    (
        FaultBit(0, "EPT_VIOLATION_ACC_READ", "ACC_READ", "a data read", "no read"),
        FaultBit(1, "EPT_VIOLATION_ACC_WRITE", "ACC_WRITE", "a data write", "no write"),
        FaultBit(2, "EPT_VIOLATION_ACC_INSTR", "ACC_INSTR", "an instruction fetch", "no fetch"),
        FaultBit(3, "EPT_VIOLATION_PROT_READ", "PROT_READ", "EPT allowed reads", "EPT allowed no read"),
        FaultBit(4, "EPT_VIOLATION_PROT_WRITE", "PROT_WRITE", "EPT allowed writes", "EPT allowed no write"),
        FaultBit(5, "EPT_VIOLATION_PROT_EXEC", "PROT_EXEC", "EPT allowed fetches", "EPT allowed no fetch"),
        FaultBit(6, "PROT_USER_EXEC", "PROT_USER_EXEC", "user fetches allowed (mode-based execute control)"),
        FaultBit(
            7,
            "EPT_VIOLATION_GVA_IS_VALID",
            "GVA_IS_VALID",
            "the linear address is valid",
            "no linear address",
        ),
        FaultBit(
            8,
            "EPT_VIOLATION_GVA_TRANSLATED",
            "GVA_TRANSLATED",
            "the page of the linear address",
            "a paging-structure entry, if the linear address is valid",
        ),
        FaultBit(9, "GVA_USER", "GVA_USER", "a user-mode linear address (advanced information)"),
        FaultBit(10, "GVA_WRITABLE", "GVA_WRITABLE", "a writable linear address (advanced information)"),
        FaultBit(11, "GVA_NX", "GVA_NX", "an execute-disable linear address (advanced information)"),
        FaultBit(12, "INTR_INFO_UNBLOCK_NMI", "UNBLOCK_NMI", "IRET unblocked NMIs"),
        FaultBit(13, "SHADOW_STACK", "SHADOW_STACK", "a shadow-stack access"),
        FaultBit(14, "SUPERVISOR_SHADOW_STACK", "SSS", "EPT allowed supervisor shadow-stack accesses"),
        FaultBit(15, "GUEST_PAGING_VERIFICATION", "GPV", "guest-paging verification refused it"),
        FaultBit(16, "ASYNCHRONOUS", "ASYNC", "asynchronous: no instruction's own access, as trace output"),
    ),
    _ept_summary,
    (
        (lambda word: not word & 7, "no kind of access (bits 2:0): a processor sets at least one"),
        (
            lambda word: bool(word & _TRANSLATED and not word & _GVA),
            "bit 8 means nothing while bit 7, a valid linear address, is clear",
        ),
        (
            lambda word: bool(word & _ADVANCED) and word & (_GVA | _TRANSLATED) != _GVA | _TRANSLATED,
            "bits 11:9 mean nothing unless bits 7 and 8 are set (SDM 3, 29.2.1)",
        ),
    ),
)
"""What ``kvm_page_fault`` prints as ``error_code`` under EPT."""


def ept_violation_pferr(qualification: int) -> int:
    """Return the error code that KVM makes of an EPT violation (``handle_ept_violation``, Linux 6.1).

    >>> hex(ept_violation_pferr(0xf82))
    '0x100000002'
    """
    code = PFERR_GUEST_FINAL_MASK if qualification & _TRANSLATED else PFERR_GUEST_PAGE_MASK
    for mask, bit in (
        (_READ, PFERR_USER_MASK),
        (_WRITE, PFERR_WRITE_MASK),
        (_INSTR, PFERR_FETCH_MASK),
        (_RWX, PFERR_PRESENT_MASK),
    ):
        code |= bit if qualification & mask else 0
    return code


def traced_pferr(code: int) -> str:
    """Return what ``kvm_mmu_pagetable_walk`` and ``kvm_mmu_walker_error`` print of an error code.

    They keep 32 bits of it, and print as a number what they have no name for.

    >>> traced_pferr(0x100000017), traced_pferr(0x21), traced_pferr(0)
    ('pferr 17 P|W|U|F', 'pferr 21 P|0x20', 'pferr 0')
    """
    low = code & 0xFFFFFFFF
    rest = low & ~_TRACED
    flags = "|".join(filter(None, (pferr_str(low & _TRACED), hex(rest) if rest else "")))
    return f"pferr {low:x} {flags}".rstrip()
