"""The small guests: every one runs, and its addresses lead where its tables say."""

from __future__ import annotations

import pytest

from mmulab.check.guest import CONTROL_BLOCKS, MMIO, PAGES, SLOT_PAGES, Guest, plan
from mmulab.check.guests import GUESTS
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.machine.view import gpa_of
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner
from mmulab.scenario.text import format_scenario, parse_scenario

PAGING = [name for name, guest in GUESTS.items() if guest.mode != "np"]
NESTED = [name for name, guest in GUESTS.items() if guest.l2]


@pytest.mark.parametrize("name", PAGING)
def test_every_address_of_the_guest_leads_to_a_page_of_its_own(name: str) -> None:
    made = plan(GUESTS[name])
    own = made.areas[0]
    builder = ScenarioBuilder.of(made.scenario)
    for address in own.addresses:
        builder.op(ops.Read(Mode.SUPERVISOR, 4, address))
    runner = Runner(builder.build())
    reached = set()
    for result in runner.results():
        if isinstance(result.op, ops.Read):
            assert result.outcome.kind is OutcomeKind.OK, str(result)
            reached.add(gpa_of(runner.machine, result.outcome.hpa))
    assert len(reached) > 3
    assert reached & {*PAGES, *SLOT_PAGES}


@pytest.mark.parametrize("name", PAGING)
def test_every_entry_can_be_written_at_its_own_address_and_some_address_leads_through_it(name: str) -> None:
    made = plan(GUESTS[name])
    area = made.areas[0]
    builder = ScenarioBuilder.of(made.scenario)
    for entry in area.entries:
        builder.op(ops.Write(Mode.SUPERVISOR, 4, entry.gpa, 0))
    runner = Runner(builder.build())
    outcomes = [r.outcome.kind for r in runner.results() if isinstance(r.op, ops.Write)]
    assert outcomes == [OutcomeKind.OK] * len(area.entries)
    for entry in area.entries:
        assert runner.machine.memory.read((runner.machine.memory.backing << 12) + entry.gpa, 4) == 0
    assert sum(bool(entry.addresses) for entry in area.entries) >= len(area.entries) - 2


@pytest.mark.parametrize("name", NESTED)
def test_l1_enters_each_of_its_guests_and_comes_back(name: str) -> None:
    made = plan(GUESTS[name])
    builder = ScenarioBuilder.of(made.scenario)
    leave = ops.Vmcall() if made.guest.vendor == "intel" else ops.Vmmcall()
    for block in CONTROL_BLOCKS[: len(made.l2_regs)]:
        builder.op(ops.Vmrun(block)).op(leave)
    results = [r for r in Runner(builder.build()).results() if type(r.op) in (ops.Vmrun, type(leave))]
    assert [r.outcome.kind for r in results] == [OutcomeKind.L2, OutcomeKind.VMEXIT] * len(made.l2_regs)


@pytest.mark.parametrize("name", GUESTS)
def test_a_plan_is_a_scenario_file(name: str) -> None:
    scenario = plan(GUESTS[name]).scenario
    assert parse_scenario(format_scenario(scenario)).header == scenario.header


def test_tables_are_reached_by_more_than_one_path_and_right() -> None:
    area = plan(Guest(name="x", mode="64")).areas[0]
    shared = [entry for entry in area.entries if len({address >> 30 for address in entry.addresses}) > 1]
    assert any(entry.level == 1 for entry in shared)
    assert any(entry.level == 2 for entry in shared)


def test_halves_of_a_32_bit_table_are_both_used() -> None:
    area = plan(Guest(name="x", mode="32")).areas[0]
    assert {address >> 21 & 1 for address in area.addresses} == {0, 1}
    assert {address >> 31 for address in area.addresses} == {0, 1}


def test_no_slot_holds_the_device() -> None:
    for guest in GUESTS.values():
        assert all(not slot.gpa <= MMIO < slot.gpa + slot.size for slot in plan(guest).scenario.header.slots)
