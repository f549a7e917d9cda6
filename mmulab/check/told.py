"""What the guest, or L1, must be told of a walk that faults, and whether an outcome says it."""

from __future__ import annotations

from dataclasses import replace

from mmulab.check.access import TwoWalks
from mmulab.kvm.svm.nested import SVM_EXITS
from mmulab.kvm.vmx.nested import EXIT_REASONS
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.x86.ept import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_SHIFT,
    raw_rwx,
)
from mmulab.x86.pferr import (
    PF_VECTOR,
    PFERR_FETCH_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)

NPF_FINAL, NPF_TABLE = 1 << 32, 1 << 33
"""In EXITINFO1 of a #NPF: at the final address, or at a table of the guest's (APM 2, 15.25.6)."""


_NESTED_FAULTS = (EXIT_REASONS["ept_violation"], EXIT_REASONS["ept_misconfig"], SVM_EXITS["npf"])


def judge_fault(walks: TwoWalks, outcome: Outcome) -> tuple[str, bool]:
    """Return in words what the guest must be told of a fault, and whether it was."""
    return _must_tell(walks), _is_told(walks, outcome)


def _must_tell(walks: TwoWalks) -> str:
    if not _is_nested(walks):
        error = walks.outer.error or 0
        return f"#PF {error:#x} ({pferr_str(error) or 'not present'})"
    told = _exit(walks)
    if walks.ept:
        return " ".join(f"{key} {value:#x}" for key, value in told.items())
    return f"#NPF {told['info1']:#x} at {told['info2']:#x}"


def _is_told(walks: TwoWalks, outcome: Outcome) -> bool:
    if _is_nested(walks):
        return outcome.vmexit is not None and outcome.vmexit.items() >= _exit(walks).items()
    if outcome.kind is not OutcomeKind.EXC or outcome.vector != PF_VECTOR:
        return False
    return outcome.error_code == walks.outer.error and outcome.cr2 == walks.outer.va


def _is_nested(walks: TwoWalks) -> bool:
    """Whether the fault is one of L1's nested tables."""
    return walks.outer.error is None or bool(walks.inner and walks.inner[-1].error is not None)


def _exit(walks: TwoWalks) -> dict[str, int]:
    """Return what L1 is told."""
    return _ept_exit(walks) if walks.ept else _npf(walks)


def _npf(walks: TwoWalks) -> dict[str, int]:
    """Return what L1 is told of a fault in its nested tables (APM 2, 15.25.6)."""
    fault = walks.inner[-1]
    assert fault.error is not None
    final = walks.outer.error is None
    info1 = fault.error | (NPF_FINAL if final else NPF_TABLE)
    return {"code": SVM_EXITS["npf"], "info1": info1, "info2": fault.va}


def _ept_exit(walks: TwoWalks) -> dict[str, int]:
    """Return what L1 is told of a fault in its EPT (SDM 3, 28.2.1); a misconfiguration is not qualified."""
    fault = walks.inner[-1]
    assert fault.error is not None
    if fault.error & PFERR_RSVD_MASK:
        return {"reason": EXIT_REASONS["ept_misconfig"], "gpa": fault.va}
    qualification = EPT_VIOLATION_GVA_IS_VALID
    qualification |= EPT_VIOLATION_GVA_TRANSLATED if walks.outer.error is None else 0
    qualification |= EPT_VIOLATION_ACC_READ if fault.pfec & PFERR_USER_MASK else 0
    qualification |= EPT_VIOLATION_ACC_WRITE if fault.pfec & PFERR_WRITE_MASK else 0
    qualification |= EPT_VIOLATION_ACC_INSTR if fault.pfec & PFERR_FETCH_MASK else 0
    qualification |= raw_rwx(fault.pte_access) << EPT_VIOLATION_RWX_SHIFT
    return {"reason": EXIT_REASONS["ept_violation"], "qual": qualification, "gpa": fault.va}


def fault_seen(walks: TwoWalks, outcome: Outcome) -> bool:
    """Whether the guest, or L1, was told of a walk's fault.

    The exit of an emulated write may call it a read too, as that of an atomic access does.
    """
    if _is_told(walks, outcome):
        return True
    told = outcome.vmexit
    if not walks.ept or told is None or not told.get("qual", 0) & EPT_VIOLATION_ACC_WRITE:
        return False
    plain = replace(outcome, vmexit={**told, "qual": told["qual"] & ~EPT_VIOLATION_ACC_READ})
    return _is_told(walks, plain)


def delivery_exit(outcome: Outcome) -> bool:
    """Whether L2 was left while an exception was delivered: to a place that is no operand's."""
    told = outcome.vmexit or {}
    return bool(told.get("idtv") or told.get("intinfo"))


def other_exit(outcome: Outcome) -> bool:
    """Whether L2 was left for something else than a fault of its nested tables."""
    told = outcome.vmexit
    return told is not None and told.get("reason", told.get("code")) not in _NESTED_FAULTS
