"""Page-fault error codes and access rights.

Bits of the error code: SDM 3, 4.7. ``ACC_*`` is KVM's three-bit form of a
page's effective rights (Linux 6.1 ``arch/x86/kvm/mmu/spte.h``); the trace
prints them in the order w, u, x.
"""

from __future__ import annotations

PF_VECTOR = 14

PFERR_PRESENT_MASK = 1 << 0
PFERR_WRITE_MASK = 1 << 1
PFERR_USER_MASK = 1 << 2
PFERR_RSVD_MASK = 1 << 3
PFERR_FETCH_MASK = 1 << 4
PFERR_PK_MASK = 1 << 5
PFERR_GUEST_FINAL_MASK = 1 << 32
PFERR_GUEST_PAGE_MASK = 1 << 33
PFERR_IMPLICIT_ACCESS = 1 << 48

ACC_EXEC_MASK = 1
ACC_WRITE_MASK = 2
ACC_USER_MASK = 4
ACC_ALL = 7

_FLAGS = (
    (PFERR_PRESENT_MASK, "P"),
    (PFERR_WRITE_MASK, "W"),
    (PFERR_USER_MASK, "U"),
    (PFERR_RSVD_MASK, "RSVD"),
    (PFERR_FETCH_MASK, "F"),
    (PFERR_PK_MASK, "PK"),
)

ACC_STRINGS = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")


def pferr_str(code: int) -> str:
    """Name the bits of a page-fault error code as the kernel's trace does.

    The trace has no name for PK and prints 0x20 (``mmutrace.h``); here it has one.

    >>> pferr_str(7)
    'P|W|U'
    """
    return "|".join(name for mask, name in _FLAGS if code & mask)
