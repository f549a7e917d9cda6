"""The first look at where accesses went."""

from __future__ import annotations

from dataclasses import replace

from mmulab.machine import op as ops
from mmulab.scenario.record import record
from mmulab.trace.judge import against_tables
from tests.trace.conftest import scenario


def test_right_accesses_are_passed_and_a_wrong_one_is_named() -> None:
    recording = record(scenario("sh/basic-64"), judge=None)
    assert recording.verdicts == {}
    judged = 0
    for number, op in enumerate(recording.ops):
        outcome = recording.outcome(number)
        if not isinstance(op, ops.Read) or outcome.hpa == -1:
            continue
        judged += 1
        machine = recording.after(number).machine
        assert against_tables(machine, op, outcome) is None
        elsewhere = replace(outcome, hpa=outcome.hpa ^ 0x1000)
        gpa = outcome.hpa - (machine.memory.backing << 12)
        assert against_tables(machine, op, elsewhere) == (
            f"reached gpa {gpa ^ 0x1000:#x}, the guest's tables lead to gpa {gpa:#x}"
        )
        nowhere = replace(outcome, hpa=0x1000)
        assert str(against_tables(machine, op, nowhere)).startswith("reached no memory of the guest's")
        unmapped = replace(op, gva=op.gva ^ 1 << 40)
        assert str(against_tables(machine, unmapped, outcome)).endswith("the guest's tables give a fault")
    assert judged > 3
