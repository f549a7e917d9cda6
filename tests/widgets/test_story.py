"""Chosen moments of a recording."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.trace.recording import Recording
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.session import Session
from mmulab.widgets.story import moments_of_op, story, telling_moment


def test_moments_of_an_op_end_with_its_end(unsync: Recording) -> None:
    for op in (0, 3, 7):
        found = [unsync.moment(number) for number in moments_of_op(unsync, op)]
        assert {moment.op for moment in found} == {op}
        assert [unsync.events[m.event] for m in found[:-1] if m.event is not None] == unsync.events_of(op)
        assert found[-1].event is None


def test_telling_moment_is_the_rarest(unsync: Recording) -> None:
    gone = int(unsync.events.places(ev.kvm_mmu_unsync_page)[0])
    op = unsync.op_of(gone)
    # KVM reports it before it does it, so the moment behind shows what came of it.
    assert unsync.moment(telling_moment(unsync, [op])).event == gone + 1
    quiet = next(n for n in range(len(unsync.ops)) if len(unsync.events_of(n)) == 1)
    assert unsync.moment(telling_moment(unsync, [quiet])) == (quiet, None)


def test_story_has_the_panels_of_each_moment(unsync: Recording) -> None:
    steps = story(unsync, [3, 60], name="two", titles=["one", "other"])
    assert [step.title for step in steps.steps] == ["one", "other"]
    for step, number in zip(steps.steps, (3, 60), strict=True):
        assert step.html == panels_html(Session(unsync, at=number).panels())
    named = story(unsync, moments_of_op(unsync, 0), name="init")
    assert [step.title for step in named.steps][:1] == ["kvm_mmu_reset_context"]
    assert named.steps[-1].title == "the end of the op"
