"""Judging accesses: what the guest's own tables say, and what the guest got.

The judge knows no shadow page. Before an access it walks the guest's own
tables, through L1's nested ones where there are some, and afterwards compares
what the guest sees. It holds for scenarios that flush before each judged
access, so that no stale translation is allowed; a recording has its own judge,
the outcomes of the real guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import SVM_EXITS, SvmNested
from mmulab.kvm.vmx.nested import EXIT_REASONS
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_EPT
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome, OutcomeKind
from mmulab.scenario.runner import HOST_OPS, Result
from mmulab.trace.judge import access_kind
from mmulab.trace.view import gpa_of
from mmulab.x86.ept import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_RWX_SHIFT,
    VMX_EPTP_AD_ENABLE_BIT,
    VMX_EPTP_PWL_5,
    VMX_EPTP_PWL_MASK,
    make_ept_paging,
    raw_rwx,
)
from mmulab.x86.paging import KVM_WALK, Paging, make_paging
from mmulab.x86.pferr import (
    PF_VECTOR,
    PFERR_FETCH_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)
from mmulab.x86.regs import X86_CR0_PG
from mmulab.x86.walk import Load, Walk, walk

ENDLESS = "the access faults again and again, and KVM never mends it"
Access = ops.Read | ops.Write | ops.Execute
NPF_FINAL, NPF_TABLE = 1 << 32, 1 << 33
"""In EXITINFO1 of a #NPF: at the final address, or at a table of the guest's (APM 2, 15.25.6)."""


def seen_str(outcome: Outcome) -> str:
    """Say in a few words what the guest saw of an access."""
    return ENDLESS if is_endless(outcome) else outcome_str(encode_outcome(outcome))


class TwoWalks(NamedTuple):
    """A walk of the guest's tables, and where there are nested ones, a walk of those for each step.

    Attributes
    ----------
    outer : Walk
        L2's walk, or the only guest's. Addresses of its tables are L2's
        guest-physical ones.
    inner : tuple of Walk
        Of L1's nested tables: for each entry that `outer` read in memory, root
        first, and for the address it arrived at. Empty without nested tables.
    gpa : int or None
        L1's guest-physical address; None if either walk faults.
    ept : bool
        The nested tables are EPT: U in the codes of `inner` stands for a read.
    """

    outer: Walk
    inner: tuple[Walk, ...]
    gpa: int | None
    ept: bool = False


class NestedTables(NamedTuple):
    """L1's nested tables: their form, their root, and what an access to a table of L2's is to them."""

    paging: Paging
    root: int
    table_kind: int

    def final_kind(self, pfec: int) -> int:
        """Return an access to the address that L2's walk arrived at, as an access to these tables.

        Every step is a user access to NPT (APM 2, 15.25.5); EPT has no users, and
        the walk takes U for a read.
        """
        if not self.paging.ept:
            return pfec | PFERR_USER_MASK
        return pfec & ~PFERR_USER_MASK or PFERR_USER_MASK


def nested_tables(vcpu: Vcpu) -> NestedTables | None:
    """Return the tables by which L1 maps the memory of its guest; None: none are in use."""
    nested = vcpu.nested
    if isinstance(nested, SvmNested):
        paging = make_paging(X86_CR0_PG, nested.l1["cr4"], nested.l1["efer"], vcpu.cpu, KVM_WALK)
        npt = NestedTables(paging, nested.nested_pgd, PFERR_USER_MASK | PFERR_WRITE_MASK)
        return npt if nested.npt else None
    if nested is None or not vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT):
        return None
    eptp = nested.nested_pgd
    level = 5 if eptp & VMX_EPTP_PWL_MASK == VMX_EPTP_PWL_5 else 4
    ad = bool(eptp & VMX_EPTP_AD_ENABLE_BIT)
    # With A/D bits every access to a table of L2's counts as a write (SDM 3, 29.3.5).
    kind = PFERR_USER_MASK | (PFERR_WRITE_MASK if ad else 0)
    return NestedTables(make_ept_paging(level, ad=ad, cpu=vcpu.cpu, walker=KVM_WALK), eptp, kind)


def two_walks(machine: Machine, gva: int, pfec: int = 0, *, vcpu: int = 0) -> TwoWalks:
    """Walk the running guest's tables as they are now, without setting A or D."""
    v = machine.kvm.vcpus[vcpu]
    slots = machine.kvm.slots[v.smm]
    paging = make_paging(v.cr0, v.cr4, v.efer, v.cpu, KVM_WALK)
    inner: list[Walk] = []

    def from_memory(width: int) -> Load:
        return lambda gpa, level: slots.read(machine.memory.bytes, gpa, width)

    nested = nested_tables(v)
    if nested is None:
        outer = walk(paging, v.cr3, gva, pfec, from_memory(paging.mode.entry_bytes))
        return TwoWalks(outer, (), None if outer.error is not None else outer.pa)
    form, root, table_kind = nested

    def through_nested(ngpa: int, kind: int) -> int | None:
        found = walk(form, root, ngpa, kind, from_memory(form.mode.entry_bytes))
        inner.append(found)
        return None if found.error is not None else found.pa

    def load(ngpa: int, level: int) -> int | None:
        gpa = through_nested(ngpa, table_kind)
        return None if gpa is None else slots.read(machine.memory.bytes, gpa, paging.mode.entry_bytes)

    # Under EPT a PAE guest's PDPTEs are registers (SDM 3, 4.4.1), under NPT memory (APM 2, 15.25.10).
    pdptes = v.walk_mmu.pdptrs if form.ept and paging.mode.has_pdptes else None
    outer = walk(paging, v.cr3, gva, pfec, load, pdptes=pdptes)
    gpa = through_nested(outer.pa, nested.final_kind(pfec)) if outer.error is None else None
    return TwoWalks(outer, tuple(inner), gpa, form.ept)


class WrongAccess(NamedTuple):
    """An access, or a change of world, that did not do what the guest's own state says.

    Attributes
    ----------
    op : int
        Index of the step.
    text : str
    expected, reached : int or None
        Guest-physical addresses; None where there is no translation.
    seen : str
        The outcome in words.
    wanted : str
        What should have been seen instead, where that is no translation.
    gva : int or None
        Of an access.
    """

    op: int
    text: str
    expected: int | None
    reached: int | None
    seen: str
    wanted: str = ""
    gva: int | None = None

    def __str__(self) -> str:
        return f"op {self.op} '{self.text}': " + "; ".join([*self._ends(), self.seen])

    def _ends(self) -> Iterator[str]:
        if self.expected is not None:
            yield f"expected gpa {self.expected:#x}"
        elif self.wanted:
            yield f"expected {self.wanted}"
        if self.reached is not None:
            yield f"reached gpa {self.reached:#x}"


_ENDS: dict[type[Op], OutcomeKind] = {
    ops.Vmrun: OutcomeKind.L2,
    ops.Vmmcall: OutcomeKind.VMEXIT,
    ops.Vmcall: OutcomeKind.VMEXIT,
}


def judge(
    machine: Machine, result: Result, access: Access | None, walks: TwoWalks | None
) -> WrongAccess | None:
    """Compare an outcome with what the guest's state said before the op.

    Parameters
    ----------
    machine : Machine
        After the op.
    result : Result
    access : Read, Write, Execute or None
        None: the op must only end as such ops do.
    walks : TwoWalks or None
        Of the access, before it.
    """
    outcome = result.outcome
    seen = seen_str(outcome)
    if access is None or walks is None:
        ends = _ENDS.get(type(result.op), OutcomeKind.OK)
        ends = OutcomeKind.HOST if isinstance(result.op, HOST_OPS) else ends
        right = outcome.kind is ends
        return None if right else WrongAccess(result.index, result.text, None, None, seen, str(ends))
    as_id = machine.kvm.vcpus[access.vcpu].smm
    reached = None if outcome.hpa == -1 else gpa_of(machine, outcome.hpa, as_id=as_id)
    if walks.gpa is None:
        wanted, right = judge_fault(walks, outcome)
        return (
            None if right else WrongAccess(result.index, result.text, None, reached, seen, wanted, access.gva)
        )
    right = outcome.kind is OutcomeKind.OK and reached in (None, walks.gpa)
    if right and not isinstance(access, ops.Execute):
        held = machine.kvm.slots[as_id].read(machine.memory.bytes, walks.gpa, access.size)
        right = held == (access.value if isinstance(access, ops.Write) else outcome.rax)
    return None if right else WrongAccess(result.index, result.text, walks.gpa, reached, seen, gva=access.gva)


def judge_fault(walks: TwoWalks, outcome: Outcome) -> tuple[str, bool]:
    """Return in words what the guest must be told of a fault, and whether it was."""
    if walks.outer.error is not None and not (walks.inner and walks.inner[-1].error is not None):
        error, va = walks.outer.error, walks.outer.va
        seen = (outcome.vector, outcome.error_code, outcome.cr2)
        right = outcome.kind is OutcomeKind.EXC and seen == (PF_VECTOR, error, va)
        return f"#PF {error:#x} ({pferr_str(error) or 'not present'})", right
    if walks.ept:
        told = _ept_exit(walks)
        right = outcome.vmexit is not None and outcome.vmexit.items() >= told.items()
        return " ".join(f"{key} {value:#x}" for key, value in told.items()), right
    npf = _npf(walks)
    right = outcome.vmexit is not None and outcome.vmexit.items() >= npf.items()
    return f"#NPF {npf['info1']:#x} at {npf['info2']:#x}", right


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


def judge_dirty_log(machine: Machine, result: Result, written: Iterable[int]) -> WrongAccess | None:
    """Compare a dirty log with what was written since the one before it; it may name more pages.

    Parameters
    ----------
    machine : Machine
    result : Result
        Of a :class:`~mmulab.machine.op.GetDirtyLog`.
    written : iterable of int
        gfns that judged writes went to.
    """
    assert isinstance(result.op, ops.GetDirtyLog)
    slot = machine.kvm.slots[result.op.id >> 16].by_id(result.op.id & 0xFFFF)
    assert slot is not None
    logged = {slot.base_gfn + page for page in result.outcome.dirty or ()}
    missing = sorted(gfn for gfn in written if slot.base_gfn <= gfn < slot.base_gfn + slot.npages)
    missing = [gfn for gfn in missing if gfn not in logged]
    if not missing:
        return None
    wanted = "in the log: gfn " + " ".join(f"{gfn:x}" for gfn in missing)
    seen = seen_str(result.outcome)
    return WrongAccess(result.index, result.text, None, None, seen, wanted)


def walks_of(machine: Machine, access: Access) -> TwoWalks:
    """Walk for an access that is about to happen."""
    return two_walks(machine, access.gva, access_kind(access), vcpu=access.vcpu)
