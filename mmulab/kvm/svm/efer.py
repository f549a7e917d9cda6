"""EFER of L2, as VMRUN loads it.

Source: Linux 6.1 ``arch/x86/kvm/svm/nested.c`` (``nested_vmcb02_prepare_save``), ``svm.c``
(``svm_set_efer``, ``svm_set_cr0``).
"""

from __future__ import annotations

from mmulab.errors import InputError
from mmulab.x86.regs import EFER_LMA, EFER_LME, X86_CR0_PG


def efer_of_l2(efer: int, *, before: int, cr0: int) -> int:
    """Return what L2 gets: LMA as the VMCB has it, unless CR0.PG changes with LME set.

    So an L1 that pages, and leaves LMA out of the VMCB, gets an L2 of PAE paging.

    Parameters
    ----------
    efer, cr0 : int
        The VMCB's.
    before : int
        L1's CR0.
    """
    if not efer & EFER_LME or not (before ^ cr0) & X86_CR0_PG:
        return efer
    return efer | EFER_LMA if cr0 & X86_CR0_PG else efer & ~EFER_LMA


def refuse_lma_alone(efer: int) -> None:
    """Raise InputError if a VMCB's EFER has LMA without LME, of which 6.1 and 6.12 make different things."""
    if efer & (EFER_LME | EFER_LMA) == EFER_LMA:
        raise InputError("the VMCB has EFER.LMA without LME: kernels differ in that, and none is modelled")
