"""Chosen moments of a recording, told one after the other; no Jupyter and no script needed to step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmulab import events as ev
from mmulab.trace.recording import Moment, Recording
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.session import Session
from mmulab.widgets.steps import Step, Steps

TELLING = (
    ev.kvm_mmu_unsync_page,
    ev.kvm_mmu_sync_page,
    ev.kvm_mmu_walker_error,
    ev.kvm_mmu_set_dirty_bit,
    ev.kvm_mmu_set_spte,
    ev.drop_spte,
    ev.kvm_mmu_get_page,
)
"""What tells most about an op, first the rarest."""
BEFOREHAND = (ev.kvm_mmu_unsync_page, ev.kvm_mmu_sync_page, ev.drop_spte)
"""Events that KVM reports before it does what they say."""


def moments_of_op(recording: Recording, op: int) -> list[int]:
    """Return the numbers of an op's moments: its events, then its end."""
    first = recording.first_event(op) + op
    return list(range(first, recording.number(Moment(op, None)) + 1))


def telling_moment(recording: Recording, ops: Iterable[int]) -> int:
    """Return the number of the moment that tells most about some ops, the end of the last if none does."""
    ops = list(ops)
    places = [(op, at) for op in ops for at in range(recording.first_event(op), int(recording.ends[op]))]
    for kind in TELLING:
        found = [Moment(op, at) for op, at in places if recording.events.kind(at) is kind]
        if found:
            return recording.number(found[-1]) + (kind in BEFOREHAND)
    return recording.number(Moment(ops[-1], None))


def story(
    recording: Recording, numbers: Sequence[int], *, name: str, titles: Sequence[str] | None = None
) -> Steps:
    """Return moments to step through, each with all its panels.

    Parameters
    ----------
    recording : Recording
    numbers : sequence of int
        Numbers of the moments.
    name : str
        What they are the moments of.
    titles : sequence of str, optional
        One a moment; the event's name if left out.
    """
    session = Session(recording)
    steps = []
    for place, number in enumerate(numbers):
        session.goto(number)
        event = session.look().event
        named = "the end of the op" if event is None else recording.name_of(event)
        title = titles[place] if titles else named
        steps.append(Step(title, panels_html(session.panels())))
    return Steps(steps, name=name)
