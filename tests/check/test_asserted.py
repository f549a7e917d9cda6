"""Assertions that fire are findings at their op, once each."""

from __future__ import annotations

from pathlib import Path

from mmulab.check.asserted import Asserted
from mmulab.check.finding import Finding, FindingKind
from mmulab.conform.recording import read_recording
from mmulab.scenario.runner import Runner

REACHES = "data/conformance-more/6.1.192/nxrecover-tdp0/nx-recover-nested-32.jsonl.xz"
RESERVED = "spte.c:make_spte:reserved"


def findings(path: Path) -> tuple[Runner, list[Finding]]:
    runner = Runner(read_recording(path).scenario)
    asserted = Asserted(runner.machine)
    return runner, [found for result in runner.results() if (found := asserted.after(result)) is not None]


def test_each_op_that_makes_one_fire_is_told_of(root: Path) -> None:
    runner, found = findings(root / REACHES)
    assert (found[0].kind, found[0].name, found[0].op) == (FindingKind.ASSERTION, RESERVED, 1)
    assert {finding.name for finding in found} == set(runner.machine.kvm.fired) == {RESERVED}
    ops = [finding.op for finding in found]
    assert ops == sorted(set(ops))
    assert "WARN" in found[0].said


def test_a_run_without_any_is_silent(root: Path) -> None:
    runner, found = findings(root / "data/conformance/6.1.192/sh/mmio-64.jsonl.xz")
    assert found == []
    assert runner.machine.kvm.fired == {}


def test_a_watcher_that_is_put_back_tells_again(root: Path) -> None:
    runner = Runner(read_recording(root / REACHES).scenario)
    asserted = Asserted(runner.machine)
    before = asserted.save()
    result = next(r for r in runner.results() if runner.machine.kvm.fired)
    first = asserted.after(result)
    assert first is not None
    assert asserted.after(result) is None
    asserted.restore(before)
    assert asserted.after(result) == first
