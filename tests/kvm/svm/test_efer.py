"""EFER.LMA of L2 is the VMCB's, unless CR0.PG changes at VMRUN."""

from __future__ import annotations

import pytest

from mmulab.kvm.svm.efer import efer_of_l2
from mmulab.x86.regs import EFER_LMA, EFER_LME, EFER_SVME, X86_CR0_PE, X86_CR0_PG

PAGED = X86_CR0_PE | X86_CR0_PG
LONG = EFER_SVME | EFER_LME | EFER_LMA


@pytest.mark.parametrize(
    ("efer", "before", "cr0", "expected"),
    [
        (LONG, PAGED, PAGED, LONG),
        (LONG & ~EFER_LMA, PAGED, PAGED, LONG & ~EFER_LMA),
        (LONG & ~EFER_LMA, X86_CR0_PE, PAGED, LONG),
        (LONG, PAGED, X86_CR0_PE, LONG & ~EFER_LMA),
        (LONG, X86_CR0_PE, X86_CR0_PE, LONG),
        (EFER_SVME, X86_CR0_PE, PAGED, EFER_SVME),
    ],
)
def test_long_mode_active(efer: int, before: int, cr0: int, expected: int) -> None:
    """``svm_set_cr0`` works it out only where it sees paging go on or off."""
    assert efer_of_l2(efer, before=before, cr0=cr0) == expected
