"""One trial: it ends at the first finding, says what stopped it, and comes out the same each time."""

from __future__ import annotations

from random import Random

import pytest

from mmulab.check.alphabet import Alphabet
from mmulab.check.finding import Finding, FindingKind, Watcher
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.grammar import Step, parse_step
from mmulab.scenario.runner import Result


class Dislikes:
    """Finds fault with one kind of op."""

    def __init__(self, kind: type[ops.Op]) -> None:
        self.kind = kind

    def __call__(self, machine: Machine) -> Watcher:
        return self

    def after(self, result: Result) -> Finding | None:
        if not isinstance(result.op, self.kind):
            return None
        return Finding(FindingKind.INVARIANT, self.kind.__name__, result.index, result.text, "disliked")


def steps(*lines: str) -> tuple[Step, ...]:
    return tuple(parse_step(line) for line in lines)


def test_a_trial_ends_at_the_first_finding() -> None:
    bench = make_bench(plan(GUESTS["shadow-64"]).scenario, LINUX_6_1, [Dislikes(ops.Invlpg)])
    seen: list[Result] = []
    trial = bench.run(steps("nop", "invlpg 40000000", "nop"), seen.append)
    assert trial.finding is not None
    assert (trial.finding.op, trial.finding.text) == (1, "invlpg 40000000")
    assert [type(r.op) for r in seen] == [ops.SetSregs, ops.Nop, ops.Invlpg]
    assert trial.ops == 3


def test_without_a_finding_it_runs_to_its_end() -> None:
    bench = make_bench(plan(GUESTS["shadow-64"]).scenario, LINUX_6_1, [Dislikes(ops.Invlpg)])
    trial = bench.run(steps("nop", "rd s 40000000"))
    assert (trial.finding, trial.refused, trial.ops) == (None, None, 4)


def test_a_step_that_cannot_be_done_ends_it_without_a_finding() -> None:
    bench = make_bench(plan(GUESTS["shadow-64"]).scenario, LINUX_6_1, [])
    trial = bench.run(steps("nop", "swapout 1000 1000", "nop"))  # the page of stubs
    assert (trial.finding, trial.refused) == (None, 1)


@pytest.mark.parametrize("error", [AssertionError("no spte"), KeyError(5), RecursionError("too deep")])
def test_a_failure_of_the_model_is_a_finding_named_after_the_function(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mmulab.kvm.paging_tmpl.fetch", fails)
    bench = make_bench(plan(GUESTS["shadow-64"]).scenario, LINUX_6_1, [])
    finding = bench.run(steps("nop", "nop")).finding  # the fetch of the first one faults
    assert finding is not None
    assert finding.kind is FindingKind.FAILURE
    assert finding.name == f"{type(error).__name__} in page_fault"
    assert finding.op == 0


@pytest.mark.parametrize("name", ["shadow-32", "shadow-64-smp", "nested-npt-64-64+pae", "nested-ept-64"])
def test_a_trial_comes_out_the_same_each_time(name: str) -> None:
    made = plan(GUESTS[name])
    alphabet = Alphabet(made, Random(3))
    drawn = [step for _ in range(15) for step in alphabet.phrase()]
    bench = make_bench(made.scenario, LINUX_6_1, [])

    def told() -> list[str]:
        lines: list[str] = []
        bench.run(drawn, lambda r: lines.append(f"{r.text} {r.outcome} {r.events}"))
        return lines

    first = told()
    assert len(first) > 10
    assert told() == first
