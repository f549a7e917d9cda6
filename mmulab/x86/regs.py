"""Control registers and the other machine state that paging depends on.

Names and values as in the manuals and in Linux 6.1
``arch/x86/include/uapi/asm/processor-flags.h``; the bits are defined by SDM
volume 3, section 2.5 (control registers) and 2.2.1 (EFER).
"""

from __future__ import annotations

from dataclasses import dataclass

X86_CR0_PE = 1 << 0
X86_CR0_EM = 1 << 2
X86_CR0_TS = 1 << 3
X86_CR0_ET = 1 << 4
X86_CR0_NE = 1 << 5
X86_CR0_WP = 1 << 16
X86_CR0_NW = 1 << 29
X86_CR0_CD = 1 << 30
X86_CR0_PG = 1 << 31

X86_CR4_VME = 1 << 0
X86_CR4_PVI = 1 << 1
X86_CR4_TSD = 1 << 2
X86_CR4_DE = 1 << 3
X86_CR4_PSE = 1 << 4
X86_CR4_PAE = 1 << 5
X86_CR4_MCE = 1 << 6
X86_CR4_PGE = 1 << 7
X86_CR4_PCE = 1 << 8
X86_CR4_OSFXSR = 1 << 9
X86_CR4_OSXMMEXCPT = 1 << 10
X86_CR4_UMIP = 1 << 11
X86_CR4_LA57 = 1 << 12
X86_CR4_VMXE = 1 << 13
X86_CR4_FSGSBASE = 1 << 16
X86_CR4_PCIDE = 1 << 17
X86_CR4_OSXSAVE = 1 << 18
X86_CR4_SMEP = 1 << 20
X86_CR4_SMAP = 1 << 21
X86_CR4_PKE = 1 << 22

X86_CR0_PDPTR_BITS = X86_CR0_CD | X86_CR0_NW | X86_CR0_PG
X86_CR4_PDPTR_BITS = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP
"""A change of one of these loads the PDPTEs in PAE paging (SDM 3, 4.4.1)."""

MSR_EFER = 0xC0000080
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11
EFER_SVME = 1 << 12
EFER_LMSLE = 1 << 13
EFER_FFXSR = 1 << 14

X86_EFLAGS_FIXED = 1 << 1
X86_EFLAGS_TF = 1 << 8
X86_EFLAGS_AC = 1 << 18

X86_CR3_PCID_MASK = 0xFFF
X86_CR3_PCID_NOFLUSH = 1 << 63

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

PG_LEVEL_4K = 1
PG_LEVEL_1G = 3


@dataclass(frozen=True, slots=True)
class CpuModel:
    """What a processor is, as far as paging can tell.

    Attributes
    ----------
    vendor : {"amd", "intel"}
        Decides whether bit 8 of a PML4E is reserved (APM 2, 5.3; ignored by
        SDM 3, 4.5.4).
    maxphyaddr : int
        Physical-address width in bits (CPUID 8000_0008H, EAX[7:0]).
    gbpages, nx, pse36, la57, smep, smap, pku, pcid, invpcid : bool
        The CPUID feature of that name.
    pse, pae, pge, lm, umip, fsgsbase, xsave, fxsr_opt, svm, vmx : bool
        The same; these decide only which bits of CR4 and EFER there are.
    """

    vendor: str = "amd"
    maxphyaddr: int = 40
    gbpages: bool = True
    nx: bool = True
    pse36: bool = True
    la57: bool = True
    smep: bool = True
    smap: bool = True
    pku: bool = False
    pcid: bool = False
    invpcid: bool = False
    pse: bool = True
    pae: bool = True
    pge: bool = True
    lm: bool = True
    umip: bool = True
    fsgsbase: bool = True
    xsave: bool = True
    fxsr_opt: bool = False
    svm: bool = False
    vmx: bool = False


def rsvd_bits(low: int, high: int) -> int:
    """Return a mask of bits `low` to `high`, both included; 0 if high < low.

    >>> hex(rsvd_bits(1, 2))
    '0x6'
    """
    return 0 if high < low else ((1 << (high - low + 1)) - 1) << low
