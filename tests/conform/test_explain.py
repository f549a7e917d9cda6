"""The report of a first difference: what it shows and where it points."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.conform.compare import Level, Part, compare
from mmulab.conform.explain import event_str, explain
from mmulab.conform.recording import KernelRecording, RecordedOp, read_recording
from mmulab.conform.state import state_lines
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner


@pytest.fixture(scope="module")
def recording(root: Path) -> KernelRecording:
    """A recording with which the model agrees."""
    return read_recording(root / "data/conformance/6.1.192/sh/basic-64.jsonl.xz")


def _without(op: RecordedOp, at: int) -> RecordedOp:
    """Leave out the event at a position among those of level mmu."""
    mmu = Level.MMU.events(op.events)
    events = list(op.events)
    events.remove(mmu[at])
    return dataclasses.replace(op, events=tuple(events))


def _changed(recording: KernelRecording, number: int, op: RecordedOp) -> KernelRecording:
    return dataclasses.replace(recording, ops=(*recording.ops[:number], op, *recording.ops[number + 1 :]))


def _explained(recording: KernelRecording, level: Level = Level.MMU) -> list[str]:
    comparison = compare(recording, level)
    assert comparison.difference is not None
    return explain(recording, level, comparison).splitlines()


def test_the_columns_part_at_the_event_that_one_side_lacks(recording: KernelRecording) -> None:
    walk_levels = [e for e in recording.ops[1].events if isinstance(e, ev.kvm_mmu_paging_element)]
    at = Level.MMU.events(recording.ops[1].events).index(walk_levels[0])
    lines = _explained(_changed(recording, 1, _without(recording.ops[1], at)))
    assert any(f"first difference: line 3, op 0, event {at} " in line for line in lines)
    marked = [line for line in lines if line.startswith(">>")]
    # What the model has and the recording lacks stands alone; then both agree again.
    assert len(marked) == 1
    assert marked[0].removeprefix(">>").strip().startswith("> ")
    assert marked[0].split(">")[-1].strip() == event_str(walk_levels[0], "amd")
    after = lines[lines.index(marked[0]) + 1]
    left, right = after.split("|")
    assert left.split(maxsplit=1)[1].strip() == right.strip() == event_str(walk_levels[1], "amd")


def test_the_two_ops_before_are_shown_with_their_events(recording: KernelRecording) -> None:
    number = 5
    op = recording.ops[number]
    longer = dataclasses.replace(op, events=(*op.events, ev.kvm_mmu_walker_error(0)))
    lines = _explained(_changed(recording, number, longer))
    before = [line for line in lines if line.startswith("op ")]
    assert [line.split(":")[0] for line in before] == ["op 2", "op 3", "op 4"]
    shown = [line for line in lines if line.startswith("     = ")]
    assert len(shown) == sum(len(Level.MMU.events(o.events)) for o in recording.ops[number - 2 : number])


def test_the_state_is_that_at_the_event_not_after_the_op(recording: KernelRecording) -> None:
    """At the walk of op 0 no shadow page below the root exists yet; after the op it does."""
    first = recording.ops[1]
    events = Level.MMU.events(first.events)
    at = next(i for i, e in enumerate(events) if isinstance(e, ev.kvm_mmu_pagetable_walk))
    early = _explained(_changed(recording, 1, _without(first, at)))
    wrong = dataclasses.replace(first, outcome={**first.outcome, "rax": 1})
    late = _explained(_changed(recording, 1, wrong))
    path = [lines[lines.index(next(x for x in lines if "shadow path" in x)) + 1 :] for lines in (early, late)]
    assert len([x for x in path[0] if x.lstrip().startswith("l")]) == 1
    assert len([x for x in path[1] if x.lstrip().startswith("l")]) == 4
    assert any("outcome (rax)" in line for line in late)


def test_statistics_and_outcomes_name_the_keys_that_differ(recording: KernelRecording) -> None:
    op = recording.ops[3]
    wrong = dataclasses.replace(op, stats={**op.stats, "mmu_unsync": 9})
    lines = _explained(_changed(recording, 3, wrong), Level.FULL)
    assert any(">>   stats (mmu_unsync):" in line for line in lines)
    assert any("recorded" in line and "mmu_unsync=9" in line for line in lines)


def test_a_failure_shows_how_far_the_model_came(
    recording: KernelRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Machine.execute

    def failing(machine: Machine, op: Op) -> Outcome:
        emit = machine.emit

        def sink(event: ev.Event) -> None:
            if isinstance(event, ev.kvm_mmu_set_spte):
                raise ZeroDivisionError("in the model")
            assert emit is not None
            emit(event)

        machine.emit = sink
        try:
            return execute(machine, op)
        finally:
            machine.emit = emit

    monkeypatch.setattr(Machine, "execute", failing)
    comparison = compare(recording, Level.MMU)
    assert comparison.difference is not None
    assert comparison.difference.part is Part.FAILURE
    text = explain(recording, Level.MMU, comparison)
    assert "ZeroDivisionError: in the model" in text
    marked = next(line for line in text.splitlines() if line.startswith(">>"))
    assert "set_spte" in marked
    assert marked.rstrip().endswith("<")


def test_too_few_or_too_many_ops_are_explained(recording: KernelRecording) -> None:
    lines = _explained(dataclasses.replace(recording, ops=recording.ops[:-1]))
    assert any("after the last op, op" in line for line in lines)
    renamed = dataclasses.replace(recording.ops[4], text="nop")
    lines = _explained(_changed(recording, 4, renamed))
    assert ">>   recorded nop" in lines


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            ev.kvm_mmu_set_spte(0x100, 0x100E67, 1, 8, True, True, 1),
            "set_spte gfn=100 l=1 i=1 s=100:e67 p=rxu",
        ),
        (
            ev.kvm_mmu_get_page(0x20, 0x3711, 0, 0, False, True),
            "get_page gfn=20 3711[l1 g4 q0 uwx nx wp] gen=0 roots=0 unsync=0 created=1",
        ),
        (ev.kvm_mmu_load(), "c_load"),
        (ev.drop_spte(8, 0x8000002000017), "c_drop_spte i=1 s=8000002000017"),
    ],
)
def test_events_are_short(event: ev.Event, text: str) -> None:
    assert event_str(event, "amd") == text


@pytest.mark.parametrize(
    ("mode", "guest", "shadow"),
    [
        ("32", ["l2 gfn 10[100]", "l1 gfn 20[0]", "gpa 100000"], ["l3 special root", "l2 sp", "l1 sp"]),
        ("pae", ["l3 pdptr[1]", "l2 gfn 20[0]", "l1 gfn 21[0]"], ["l3 special root", "l2 sp", "l1 sp"]),
        ("64", ["l4 gfn 10[0]", "l3 gfn 5[1]", "l2", "l1"], ["l4 sp", "l3 sp", "l2 sp", "l1 sp"]),
        ("np", ["no paging"], ["l3 special root", "l2 sp", "l1 sp"]),
    ],
)
def test_the_state_shows_both_walks(mode: str, guest: list[str], shadow: list[str]) -> None:
    gva = 0x100000 if mode == "np" else 0x40000000
    b = ScenarioBuilder(mode)
    if mode != "np":
        b.root(0x10000).map(gva, 0x100000)
    runner = Runner(b.op(f"rd s {gva:x}").build())
    results = runner.results()
    assert [next(results).text for _ in range(2)] == ["init", f"rd s 4 {gva:x}"]
    lines = state_lines(runner.machine, gva)
    at = lines.index(f"guest walk of {gva:x}:")
    to = lines.index(f"{'direct map' if mode == 'np' else 'shadow path'} of {gva:x}:")
    walk = [line.strip() for line in lines[at + 1 : to] if not line.strip().startswith("mode ")]
    path = [line.strip() for line in lines[to + 1 :]]
    for shown, expected in ((walk, guest), (path, shadow)):
        assert len(shown) >= len(expected)
        for line, start in zip(shown, expected, strict=False):
            assert line.startswith(start)
    assert path[-1].endswith("-> page 100 of the backing")


def test_under_two_dimensional_paging_the_direct_map_of_the_physical_address_is_shown() -> None:
    b = ScenarioBuilder("32", host={"npt": 1}).root(0x10000).map(0x40000000, 0x123000)
    runner = Runner(b.op("rd s 40000010").build())
    results = runner.results()
    assert [next(results).outcome.kind for _ in range(2)] == ["host", "ok"]
    lines = [line.strip() for line in state_lines(runner.machine, 0x40000010)]
    assert "gpa 123010" in lines
    at = lines.index("direct map of 123010:")
    assert lines[-1].startswith("l1 sp")
    assert lines[-1].endswith("-> page 123 of the backing")
    assert len(lines) - at - 1 == 5
    other = state_lines(runner.machine, 0x40000010, 0x10000)
    assert other[-1].endswith("-> page 10 of the backing")


def test_the_state_without_an_address_is_the_vcpus() -> None:
    runner = Runner(ScenarioBuilder("np").build())
    assert len(state_lines(runner.machine, None)) == 2
    assert state_lines(runner.machine, 0)[-1].strip() == "no root"


def test_a_root_in_a_place_that_was_never_used_has_no_pgd() -> None:
    """A load of CR3 leaves the last of the places in hand; what to shadow is known at the next entry."""
    runner = Runner(ScenarioBuilder("64").root(0x10000).root(0x11000).op("nop").op("cr3 11000").build())
    for result in runner.results():
        if result.text == "cr3 11000":
            assert "root pgd none hpa none" in state_lines(runner.machine, None)[1]
