"""Extended page tables: their modes and paging configuration.

SDM 3, 29.3. An EPT entry has rights R, W and X of its own, a memory type in
leaves, and A/D bits at positions 8 and 9 if the EPT pointer turns them on.
"""

from __future__ import annotations

from functools import lru_cache

from mmulab.x86.mode import (
    PT_PAGE_SIZE_MASK,
    VMX_EPT_ACCESS_BIT,
    VMX_EPT_DIRTY_BIT,
    VMX_EPT_RWX_MASK,
    PagingMode,
)
from mmulab.x86.paging import Paging, Walker
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
from mmulab.x86.regs import CpuModel, rsvd_bits

EPT_4LEVEL = PagingMode("ept4", 4, 8, 9, 48, 9)
EPT_5LEVEL = PagingMode("ept5", 5, 8, 9, 57, 9)
_MODES = {4: EPT_4LEVEL, 5: EPT_5LEVEL}

VMX_EPTP_PWL_MASK, VMX_EPTP_PWL_4, VMX_EPTP_PWL_5 = 0x38, 0x18, 0x20
"""An EPT pointer's page-walk length, less one, in bits 5:3 (SDM 3, 25.6.11)."""
VMX_EPTP_AD_ENABLE_BIT = 1 << 6
ILLEGAL_MEMORY_TYPES = (2, 3, 7)

EPT_VIOLATION_ACC_READ = 1 << 0
EPT_VIOLATION_ACC_WRITE = 1 << 1
EPT_VIOLATION_ACC_INSTR = 1 << 2
EPT_VIOLATION_RWX_SHIFT = 3
EPT_VIOLATION_GVA_IS_VALID = 1 << 7
EPT_VIOLATION_GVA_TRANSLATED = 1 << 8
EPT_VIOLATION_GVA_USER = 1 << 9
EPT_VIOLATION_GVA_WRITABLE = 1 << 10
EPT_VIOLATION_GVA_NX = 1 << 11
"""Rights of the linear address, on processors with advanced VM-exit information."""


def ept_permission_bitmask() -> bytes:
    """Tabulate which access faults on which rights; a read is an access with U (SDM 3, 29.3.3.2)."""
    table = bytearray(16)
    for index in range(16):
        code = index << 1
        for acc in range(8):
            fault = (
                (code & PFERR_WRITE_MASK and not acc & ACC_WRITE_MASK)
                or (code & PFERR_USER_MASK and not acc & ACC_USER_MASK)
                or (code & PFERR_FETCH_MASK and not acc & ACC_EXEC_MASK)
            )
            table[index] |= bool(fault) << acc
    return bytes(table)


def bad_mt_xwr(*, execonly: bool) -> int:
    """Return the set of bits 5:0 that make an entry misconfigured (SDM 3, 29.3.3.1).

    W without R, X alone on a processor without execute-only translations, and
    the memory types that do not exist.
    """
    bad = 0
    for low in range(64):
        rwx, memory_type = low & 7, low >> 3
        wrong = rwx in (2, 6) or (rwx == 4 and not execonly)
        if wrong or memory_type in ILLEGAL_MEMORY_TYPES:
            bad |= 1 << low
    return bad


def _reserved(cpu: CpuModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    high = rsvd_bits(cpu.maxphyaddr, 51)
    small, large = [high] * 6, [high] * 6
    for level in (4, 5):
        small[level] = large[level] = high | rsvd_bits(3, 7)
    small[3] = small[2] = high | rsvd_bits(3, 6)
    large[3] = high | rsvd_bits(12, 29)
    large[2] = high | rsvd_bits(12, 20)
    return tuple(small), tuple(large)


@lru_cache(maxsize=64)
def make_ept_paging(level: int, *, ad: bool, cpu: CpuModel, walker: Walker, execonly: bool = True) -> Paging:
    """Work out the configuration of walks of an EPT.

    Parameters
    ----------
    level : int
        4 or 5, by the EPT pointer.
    ad : bool
        A/D bits are on (bit 6 of the EPT pointer).
    cpu : CpuModel
        Its MAXPHYADDR decides which address bits are reserved.
    walker : Walker
    execonly : bool
        Execute-only translations are allowed.
    """
    return Paging(
        mode=_MODES[level],
        rsvd=_reserved(cpu),
        page_size_mask=(0, 0, PT_PAGE_SIZE_MASK, PT_PAGE_SIZE_MASK, 0, 0),
        permissions=ept_permission_bitmask(),
        nx=True,
        fetch_bit=walker.ept_fetch,
        wp=True,
        pke=False,
        sets_ad=walker.sets_ad,
        pse36_mask=0,
        pdpte_rsvd=0,
        rsvd_error=PFERR_RSVD_MASK | PFERR_PRESENT_MASK,
        have_ad=ad,
        present_mask=VMX_EPT_RWX_MASK,
        accessed_mask=VMX_EPT_ACCESS_BIT if ad else 0,
        dirty_mask=VMX_EPT_DIRTY_BIT if ad else 0,
        ept=True,
        bad_mt_xwr=bad_mt_xwr(execonly=execonly),
    )


def raw_rwx(access: int) -> int:
    """Return rights in ``ACC_*`` form as R, W, X bits 0, 1, 2."""
    return (access & ACC_USER_MASK and 1) | access & ACC_WRITE_MASK | (access & ACC_EXEC_MASK and 4)
