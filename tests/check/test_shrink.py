"""The shrinker: nothing can be left out of what it returns, and the finding is still there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.shrink import shrink
from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.grammar import format_step
from mmulab.scenario.scenario import Scenario, Value


def scenario(*steps: str) -> Scenario:
    builder = ScenarioBuilder.of(plan(GUESTS["shadow-64-smp"]).scenario)
    for step in steps:
        builder.op(step)
    return builder.build()


def lines(made: Scenario) -> list[str]:
    return [format_step(step) for step in made.steps]


def test_only_the_steps_that_matter_stay() -> None:
    noise = [f"rd s {0x40000000 + 0x1000 * number:x}" for number in range(20)]
    made = scenario(*noise[:7], "invlpg 1000", *noise[7:], "invlpg 2000", *noise)

    def still(candidate: Scenario) -> bool:
        return [getattr(s.op, "gva", 0) for s in candidate.steps if isinstance(s.op, ops.Invlpg)] == [
            0x1000,
            0x2000,
        ]

    assert lines(shrink(made, still)) == ["invlpg 1000", "invlpg 2000"]


def test_two_steps_that_can_only_go_together_go() -> None:
    made = scenario("nop", "slotdel 1", "nop", "slot 1 200000 8000 0 50000", "nop")

    def still(candidate: Scenario) -> bool:
        return sum(not isinstance(step.op, ops.Nop) for step in candidate.steps) % 2 == 0

    assert lines(shrink(made, still)) == []


def test_values_become_ordinary_and_modes_and_vcpus_the_first() -> None:
    made = scenario("@1 xg u 4 40000123 5", "wr a 8 10008 12165")

    def still(candidate: Scenario) -> bool:
        if len(candidate.steps) < 2:
            return False
        last = candidate.steps[1].op
        return isinstance(last, ops.Write) and (last.gva, last.value >> 12) == (0x10008, 0x12)

    assert lines(shrink(made, still)) == ["rd s 4 40000000", "wr s 8 10008 12067"]


def test_memory_slots_and_settings_that_do_not_matter_go() -> None:
    made = scenario("nop")
    kept = made.header.values[5]
    changed = replace(made.header, host={**made.header.host, "npt": 1, "nx_huge_pages": 1})

    def still(candidate: Scenario) -> bool:
        return kept in candidate.header.values and candidate.header.host["npt"] == 1

    small = shrink(replace(made, header=changed), still).header
    assert small.values == (kept,)
    assert (small.fills, small.slots, small.vcpus) == ((), (), 1)
    assert (small.host["npt"], small.host["nx_huge_pages"]) == (1, 0)


def test_rights_in_memory_become_ordinary_one_bit_at_a_time() -> None:
    made = scenario("nop")
    made = replace(made, header=replace(made.header, values=(Value(8, 0x10008, 0x12020 | 1 << 63),)))

    def still(candidate: Scenario) -> bool:
        values = [value.value for value in candidate.header.values]
        return any(value & 1 == 0 and value >> 12 & 0xFF == 0x12 for value in values)

    assert shrink(made, still).header.values == (Value(8, 0x10008, 0x12066),)


def test_a_scenario_that_is_refused_has_not_the_finding() -> None:
    made = scenario("nop", "invlpg 1000")

    def still(candidate: Scenario) -> bool:
        if len(candidate.steps) < 2:
            raise InputError("too short")
        return True

    assert lines(shrink(made, still)) == ["nop", "invlpg 0"] or lines(shrink(made, still)) == [
        "nop",
        "invlpg 1000",
    ]


@pytest.mark.parametrize("name", ["shadow-64", "nested-npt-64-64+pae"])
def test_without_a_condition_nothing_is_left(name: str) -> None:
    small = shrink(plan(GUESTS[name]).scenario, lambda _: True)
    assert (small.steps, small.header.values, small.header.fills, small.header.slots) == ((), (), (), ())
