"""Counts by kind, and which example is the smallest."""

from __future__ import annotations

from mmulab.conform.classify import Delta, How, Kind
from mmulab.conform.tally import MOST_LINES, WHOLE, Diff, Example, OpDiff

FLUSH = Kind("c_flush", How.ADDED)
LOAD = Kind("c_load", How.MISSING)


def added(text: str = "c_flush") -> Delta:
    return Delta((FLUSH,), theirs=text)


def differs(number: int, text: str, size: int, *deltas: Delta) -> OpDiff:
    return OpDiff(number, text, size, deltas or (added(),))


def test_a_kind_counts_scenarios_ops_and_times() -> None:
    found = Diff.of("one", 9, [differs(0, "nop", 4, added(), added()), differs(1, "nop", 4)])
    found.add(Diff.of("two", 5, []))
    found.add(Diff.of("three", 5, [differs(0, "nop", 1, Delta((LOAD,), ours="c_load"))]))
    assert (found.scenarios, found.scenarios_differ, found.ops, found.ops_differ) == (3, 2, 19, 3)
    assert [(str(k), t.scenarios, t.ops, t.times) for k, t in found.kinds] == [
        ("c_flush added", 1, 2, 3),
        ("c_load missing", 1, 1, 1),
    ]


def test_the_smallest_example_has_the_fewest_events_and_then_the_shortest_text() -> None:
    found = Diff.of(
        "a", 3, [differs(0, "rd s 4 1000", 2), differs(1, "nop", 3), differs(2, "rd s 4 0", 2)], 2
    )
    found.add(Diff.of("b", 1, [differs(-1, "init", 2)], 2))
    assert [example.place for example in found.tallies[FLUSH].examples] == ["b op init", "a op 2 'rd s 4 0'"]
    assert found.smallest is not None
    assert found.smallest.record() == {
        "scenario": "b",
        "op": -1,
        "text": "init",
        "events": 2,
        "differences": ["+ c_flush"],
        "left_out": 0,
    }


def test_without_examples_there_is_no_smallest() -> None:
    found = Diff.of("a", 1, [differs(0, "nop", 2)], 0)
    assert (found.tallies[FLUSH].examples, found.smallest) == ([], None)


def test_of_an_op_that_differs_much_the_kind_alone_is_shown() -> None:
    other = Delta((LOAD,), ours="c_load")
    op = differs(0, "nop", 2, *[other] * MOST_LINES, added())
    assert (Example.of("a", op, FLUSH).lines, Example.of("a", op, FLUSH).left_out) == (
        ("+ c_flush",),
        MOST_LINES,
    )
    assert (len(Example.of("a", op, LOAD).lines), Example.of("a", op, LOAD).left_out) == (MOST_LINES, 1)


def test_a_whole_scenario_is_no_op() -> None:
    alone = Delta((Kind("scenario", How.ADDED),), theirs="b/x.jsonl")
    found = Diff.of("x", 0, [OpDiff(WHOLE, "", 0, (alone,))])
    assert (found.scenarios_differ, found.ops_differ) == (1, 0)
    assert found.smallest is not None
    assert found.smallest.place == "x"
    assert "op" not in found.smallest.record()
