"""Two runs side by side: every event once, the fields that differ marked, the op that stands open."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.conform.codec import EVENT_NAMES
from mmulab.conform.diff import Run, model_run
from mmulab.conform.recording import KernelRecording, read_recording
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.find import find_design
from mmulab.lab.side_by_side import BOTH, LEFT, MOVED, OTHER, RIGHT, SideBySide, model_at
from mmulab.report.page import remote_references

NAME = "sh/shared-pt-32"
SIDES = ("old", "new")


def recorded(root: Path, kernel: str, name: str = NAME) -> KernelRecording:
    return read_recording(root / f"data/conformance/{kernel}/{name}.jsonl.xz")


@pytest.fixture(scope="module")
def old(root: Path) -> KernelRecording:
    return recorded(root, "6.1.192")


@pytest.fixture(scope="module")
def apart(root: Path, old: KernelRecording) -> SideBySide:
    """The same scenario on two kernels."""
    return SideBySide.of("ops", SIDES, (Run.of(old), Run.of(recorded(root, "6.12.117"))), at="most")


def with_events(run: Run, number: int, events: tuple[ev.Event, ...]) -> Run:
    ops = list(run.ops)
    ops[number] = replace(ops[number], events=events)
    return run._replace(ops=tuple(ops))


def text_of(html: str) -> str:
    return re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", html, flags=re.S))


def test_each_event_of_both_sides_is_in_one_row(root: Path, old: KernelRecording, apart: SideBySide) -> None:
    new = recorded(root, "6.12.117")
    for one, other, op in zip(old.ops, new.ops, apart.ops, strict=True):
        assert op.events == (len(one.events), len(other.events))
        assert sum(bool(row.left) for row in op.rows) == len(one.events)
        assert sum(bool(row.right) for row in op.rows) == len(other.events)
    assert [apart.ops[at].number for at in apart.differing] == [-1, 0, 3, 12, 13, 16, 20, 23]


def test_marks_say_what_differs_and_where(apart: SideBySide) -> None:
    init, late = apart.ops[0], apart.ops[14]
    assert (late.number, late.events, late.parted) == (13, (1, 8), 0)
    assert [row.mark for row in late.rows] == [RIGHT] * 7 + [BOTH]
    assert late.others == (
        "statistic pages_4k +0 → statistic pages_4k +1",
        "statistic pf_taken +0 → statistic pf_taken +1",
        "statistic pf_fixed +0 → statistic pf_fixed +1",
    )
    (row, *_) = [row for row in init.rows if row.mark == OTHER]
    assert [word.text for word in row.left if word.differs] == ["mask=ffffffffffffffff"]
    assert [word.text for word in row.right if word.differs] == ["mask=f"]
    assert row.left[0] == ("c_free_roots", False)


def test_exchanged_sides_give_exchanged_marks(root: Path, old: KernelRecording, apart: SideBySide) -> None:
    back = SideBySide.of("ops", SIDES, (Run.of(recorded(root, "6.12.117")), Run.of(old)))
    mirrored = {LEFT: RIGHT, RIGHT: LEFT}
    for one, other in zip(apart.ops, back.ops, strict=True):
        marks = [mirrored.get(row.mark, row.mark) for row in other.rows]
        assert sorted(marks) == sorted(row.mark for row in one.rows)


def test_an_event_that_moved_is_one_row(old: KernelRecording) -> None:
    run = Run.of(old)
    first, second, *rest = run.ops[4].events
    moved = with_events(run, 4, (second, *rest, first))
    (op,) = (op for op in SideBySide.of("ops", SIDES, (run, moved)).ops if op.differs)
    assert [row.mark for row in op.rows if row.mark != BOTH] == [MOVED]


def test_the_model_agrees_and_the_longest_step_stands_open(old: KernelRecording) -> None:
    both = SideBySide.of("ops", SIDES, (Run.of(old), model_run(old, LINUX_6_1)))
    assert both.differing == []
    assert both.verdict == "All 25 ops agree, with 241 events, outcomes and statistics"
    assert both.shown is not None
    assert (both.ops[both.shown].number, both.ops[both.shown].parted) == (0, 0)
    assert both.table.caption == both.verdict
    assert [row[-1] for row in both.table.rows] == [True] * 25


def test_role_words_of_another_design_may_differ(old: KernelRecording) -> None:
    run = model_run(old, LINUX_6_1.with_(design=find_design("D5")))
    assert SideBySide.of("ops", SIDES, (Run.of(old), run)).differing
    assert SideBySide.of("ops", SIDES, (Run.of(old), run), roles=False).differing == []


def test_what_the_model_raised_is_shown_where_it_was(old: KernelRecording) -> None:
    run = model_run(old, LINUX_6_1)
    failed = run._replace(ops=run.ops[:5], failure="KeyError: 7")
    both = SideBySide.of("ops", SIDES, (Run.of(old), failed))
    assert both.ops[5].others[0] == "the model failed: KeyError: 7"
    assert both.ops[5].outcomes[1] is None
    assert both.differing[0] == 5


@pytest.mark.parametrize(("at", "number"), [("first", -1), ("most", 13), ("20", 20), ("-1", -1)])
def test_the_op_that_stands_open_is_chosen(apart: SideBySide, at: str, number: int) -> None:
    assert apart.ops[apart.position(at)].number == number


def test_an_op_that_is_not_there_is_refused(apart: SideBySide) -> None:
    with pytest.raises(InputError, match="op '99': neither first nor most nor one of -1 to 23"):
        apart.position("99")


def test_the_html_lists_each_op_and_opens_one(apart: SideBySide) -> None:
    html = apart._repr_html_()
    assert html.count("<summary>") == 25
    assert html.count("<details open>") == 1
    assert html.count("class='differs'>differs") == 8
    assert "<mark>mask=f</mark>" in html
    shown = html.partition("<details open>")[2].partition("</details>")[0]
    assert "13  rd s 4 40001000 → ok rip=1802 rax=90909090 (1 event | 8 events)" in text_of(shown)
    assert shown.count("<td class='mark'>&gt;</td>") == 7
    assert "walk: kvm_mmu_pagetable_walk" in html
    assert remote_references(html) == []
    assert apart._repr_mimebundle_()["text/html"] == html


def test_long_stretches_and_long_scenarios_are_cut(old: KernelRecording) -> None:
    run = Run.of(old)
    events = tuple(ev.kvm_mmu_pagetable_walk(n << 12, 0) for n in range(60))
    many = with_events(run, 4, events)
    one = SideBySide.of("ops", SIDES, (many, with_events(run, 4, events[:-1])), at="first")
    shown = one._repr_html_().partition("<details open>")[2].partition("</details>")[0]
    assert "… 56 more" in shown
    assert shown.count("<tr") == 1 + 1 + 4, "heads, the fold, three before, the one that differs"
    alike = SideBySide.of("ops", SIDES, (many, many), at="3")._repr_html_()
    assert "… 20 more" in alike
    ops = tuple(replace(run.ops[1], index=n) for n in range(300))
    long = SideBySide.of("ops", SIDES, (run._replace(ops=ops), run._replace(ops=ops)), at="299")
    assert long._repr_html_().count("<summary>") == 120
    assert "180 more ops are in ops.csv alone" in long._repr_html_()


@pytest.mark.parametrize("name", [NAME, "nested48/nested-64-l2-64"])
def test_the_model_is_stepped_from_where_the_sides_part(root: Path, name: str) -> None:
    old, new = (recorded(root, kernel, name) for kernel in ("6.1.192", "6.12.117"))
    both = SideBySide.of("ops", SIDES, (model_run(old, LINUX_6_1), Run.of(new)))
    seen = 0
    for at in both.differing:
        op = both.ops[at]
        side = model_at(replace(both, shown=at), 0, old.scenario, LINUX_6_1)
        row = op.rows[op.parted]
        if op.event_differences and row.left:
            assert type(side.events[side.at]) is EVENT_NAMES[row.left[0].text], op.text
            assert len([e for e in side.events if not isinstance(e, ev.kvm_nested_vmenter)]) == op.events[0]
            seen += 1
    assert seen >= 4
