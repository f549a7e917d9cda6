"""RSM into a state that no processor takes: the shutdown is right then, and only then."""

from __future__ import annotations

import pytest

from mmulab.check.finding import Finding
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.oracle import Oracle
from mmulab.check.trial import make_bench
from mmulab.kvm import rsm
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.state import Request, Vcpu
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.grammar import parse_step
from mmulab.scenario.runner import Result
from mmulab.x86.insn import Instruction

CR0, CR4, CR3, EFER = 0x3FF58, 0x3FF48, 0x3FF50, 0x3FED0
"""Where SMRAM has them."""


def run(name: str, *lines: str) -> tuple[list[OutcomeKind], Finding | None]:
    kinds: list[OutcomeKind] = []

    def note(result: Result) -> None:
        kinds.append(result.outcome.kind)

    bench = make_bench(plan(GUESTS[name]).scenario, LINUX_6_1, (Oracle,))
    trial = bench.run([parse_step(line) for line in lines], note)
    return kinds, trial.finding


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("shadow-64-smm", f"hw 8 {CR0:x} 80000000"),  # PG without PE
        ("shadow-64-smm", f"hw 8 {CR0:x} 20000011"),  # NW without CD
        ("shadow-64-smm", f"hw 8 {CR4:x} 80000000"),
        ("shadow-64-smm", f"hw 8 {CR4:x} 0"),  # long mode without PAE
        ("shadow-64-smm", f"hw 8 {CR3:x} ffffffffffffffff"),
        ("shadow-64-smm", f"hw 8 {EFER:x} ff"),
        ("shadow-32-smm", f"hw 8 {CR4:x} 30"),  # PAE paging, with a directory for its PDPTEs
    ],
)
def test_a_shutdown_after_an_invalid_state_is_right(name: str, store: str) -> None:
    kinds, finding = run(name, "rd s 4 40000", "smm on", store, "smm off", "rd s 4 40000")
    assert OutcomeKind.SHUTDOWN in kinds
    assert finding is None


@pytest.mark.parametrize("name", ["shadow-64-smm", "shadow-32-smm"])
def test_a_shutdown_after_a_valid_state_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("rd s 4 40000", "smm on", "smm off", "rd s 4 40000")
    assert run(name, *lines)[1] is None
    whole = rsm.em_rsm

    def failing(vcpu: Vcpu, insn: Instruction) -> object:
        verdict = whole(vcpu, insn)
        vcpu.requests |= Request.TRIPLE_FAULT
        return verdict

    monkeypatch.setattr(rsm, "em_rsm", failing)
    kinds, finding = run(name, *lines)
    assert OutcomeKind.SHUTDOWN in kinds
    assert finding is not None
    assert "shutdown" in str(finding)
