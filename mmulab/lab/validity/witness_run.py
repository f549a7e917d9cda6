"""A witness of role validity run under a marker, with every decision whether to configure a context again."""

from __future__ import annotations

from itertools import count
from typing import NamedTuple

from mmulab.check.access import Access, WrongAccess
from mmulab.check.oracle import Oracle
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.kvm.context import base_facts
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.state import Vcpu
from mmulab.kvm.validity import EXTENDED, RoleDecision, Validity
from mmulab.kvm.x86 import vcpu_enter_guest
from mmulab.lab.validity.witnesses import Witness
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Result, Runner

CONTEXTS = ("root_mmu", "guest_mmu", "nested_mmu")
NO_PROGRESS = "no progress: the instruction exits again and again"
_calculations = count(1)


class _Reference(Validity):
    """No two calculated roles are equal, so every comparison fails."""

    __slots__ = ()

    def cpu_role(self, role: CpuRole, cpu: object) -> CpuRole:
        return role._replace(valid=next(_calculations))


REFERENCE: Validity = _Reference(
    "reference", "every context is configured whenever it could be", "in no kernel"
)
"""What the guest sees under it depends on no comparison of roles."""


class Roles(NamedTuple):
    """The roles of a context.

    Attributes
    ----------
    cpu_role : CpuRole
    root_role : int
    configured : bool
        It was in use at some time.
    """

    cpu_role: CpuRole
    root_role: int
    configured: bool

    def words(self, design: RoleDesign) -> tuple[str, str, str]:
        """Return the root role's word, the base of the CPU role and what is set of its extended part."""
        return f"{self.root_role:#x}", f"{base_word(self.cpu_role, design):#x}", extended(self.cpu_role)


def base_word(role: CpuRole, design: RoleDesign) -> int:
    """Return the word of a CPU role's base under a design."""
    return design.pack(base_facts(role), role)


def extended(role: CpuRole) -> str:
    """Return the names of what is set in a CPU role's extended part."""
    return " ".join(
        name if name != "maxphyaddr" else f"maxphyaddr={role.maxphyaddr}"
        for name in EXTENDED
        if getattr(role, name)
    )


class Seen(NamedTuple):
    """One op, and what it did.

    Attributes
    ----------
    step : int
        Its number in the scenario; -1 for ``init``.
    text, outcome : str
    op : Op
    accepted : bool
        A change of CPUID that KVM carried out.
    before, after : dict of str to Roles
        The three contexts around the op.
    decisions : tuple of RoleDecision
    locks : tuple of MmuLockHeld
    """

    step: int
    text: str
    outcome: str
    op: Op
    accepted: bool
    before: dict[str, Roles]
    after: dict[str, Roles]
    decisions: tuple[RoleDecision, ...]
    locks: tuple[MmuLockHeld, ...]


class ValidityRun(NamedTuple):
    """A witness under a marker.

    Attributes
    ----------
    witness : Witness
    marker : Validity
    steps : tuple of Seen
    wrong : WrongAccess or None
        The first access that did not do what the guest's tables and its CPUID say
        (:mod:`mmulab.check.oracle`).
    """

    witness: Witness
    marker: Validity
    steps: tuple[Seen, ...]
    wrong: WrongAccess | None


def _roles(vcpu: Vcpu) -> dict[str, Roles]:
    def of(mmu: Mmu) -> Roles:
        return Roles(mmu.cpu_role, mmu.root_role, mmu.paging is not None)

    return {name: of(getattr(vcpu, name)) for name in CONTEXTS}


def run_witness(witness: Witness, marker: Validity) -> ValidityRun:
    """Run a witness under a marker and keep, op by op, what became of the contexts.

    Parameters
    ----------
    witness : Witness
    marker : Validity
        One of :data:`mmulab.kvm.validity.VALIDITIES`, or one's own.
    """
    scenario = witness.build()
    kernel = LINUX_6_1.with_(
        validity=marker,
        cpuid_after_run=witness.cpuid_after_run,
        free_roots_lock=witness.free_roots_lock,
    )
    runner = Runner(scenario, config=machine_config(scenario, kernel))
    machine, running = runner.machine, runner.results()
    oracle = Oracle(machine)
    vcpu = machine.kvm.vcpus[0]
    watched: list[RoleDecision | MmuLockHeld] = []
    machine.kvm.watch = watched.append
    steps: list[Seen] = []
    wrong = None
    upcoming: list[Op | None] = [None, *(step.op for step in scenario.steps)]
    while upcoming:
        op, before = upcoming[0], _roles(vcpu)
        watched.clear()
        result = next(running)
        steps.append(_seen(machine, result, before, watched))
        _, _, found = oracle.judge(result)
        if isinstance(op, Access):
            wrong = wrong or found
        if result.outcome.kind.is_last:
            break
        if result.text == "init" and witness.interrupted:
            vcpu_enter_guest(vcpu, reinject=False)
        if not result.text.startswith("~"):
            del upcoming[0]
    return ValidityRun(witness, marker, tuple(steps), wrong)


def _seen(
    machine: Machine,
    result: Result,
    before: dict[str, Roles],
    watched: list[RoleDecision | MmuLockHeld],
) -> Seen:
    """Describe an op."""
    op, outcome = result.op, result.outcome
    changed = isinstance(op, ops.SetCpuid) and outcome.result == 0
    return Seen(
        result.index,
        result.text,
        NO_PROGRESS if is_endless(outcome) else outcome_str(encode_outcome(outcome)),
        op,
        changed,
        before,
        _roles(machine.kvm.vcpus[op.vcpu]),
        tuple(item for item in watched if isinstance(item, RoleDecision)),
        tuple(item for item in watched if isinstance(item, MmuLockHeld)),
    )
