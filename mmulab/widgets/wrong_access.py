"""A wrong access and what led to it, as steps that need neither a Jupyter kernel nor a script."""

from __future__ import annotations

from typing import NamedTuple

from mmulab import events as ev
from mmulab.trace.recording import Moment, Recording
from mmulab.widgets.blocks import Line, Panel, panels_html
from mmulab.widgets.session import Session
from mmulab.widgets.steps import Step, Steps

__all__ = ["MOST", "Where", "moments", "wrong_access"]

MOST = 6
"""Moments of the wrong access that are shown at most."""
TELLING = (ev.kvm_page_fault, ev.kvm_mmu_get_page, ev.kvm_mmu_set_spte, ev.kvm_nested_vmexit)
"""Events that tell how KVM came to let the access through, or not."""

Page = tuple[int, int]
"""gfn and role."""


class Where(NamedTuple):
    """An op of a recording: its number, and what it is called."""

    op: int
    name: str


def moments(
    recording: Recording, wrong: Where, *, found: Where | None = None, page: Page | None = None
) -> list[tuple[int, str]]:
    """Return the moments that tell how an op went wrong: number and title of each.

    Parameters
    ----------
    recording : Recording
    wrong : Where
        The op.
    found : Where, optional
        The op, the same or an earlier one, in which a page was found that should not have been.
    page : (int, int), optional
        gfn and role of that page.
    """
    told = []
    if found is not None and page is not None:
        told += [
            (number, f"{found.name}: the page is found, though it is not the one wanted")
            for number, event in _events(recording, found.op)
            if isinstance(event, ev.kvm_mmu_get_page)
            and (event.gfn, event.role) == page
            and not event.created
        ][:1]
    telling = [
        (number, f"{wrong.name}: {recording.name_of(event)}")
        for number, event in _events(recording, wrong.op)
        if isinstance(event, TELLING) and number not in [known for known, _ in told]
    ]
    told += telling[-(MOST - 1) :]
    return [*told, (recording.number(Moment(wrong.op, None)), f"{wrong.name} has ended, and it is wrong")]


def _events(recording: Recording, op: int) -> list[tuple[int, ev.Event]]:
    """Return the events of an op with the numbers of their moments."""
    first = recording.first_event(op)
    return [
        (recording.number(Moment(op, first + at)), event) for at, event in enumerate(recording.events_of(op))
    ]


def wrong_access(recording: Recording, told: list[tuple[int, str]], *, name: str, verdict: str) -> Steps:
    """Return moments to step through; they open at the wrong access, the last of them.

    Parameters
    ----------
    recording : Recording
    told : list of (int, str)
        Numbers and titles of the moments; the last one is the end of the wrong op.
    name : str
        What they are the moments of.
    verdict : str
        What is wrong, for the last one.
    """
    session = Session(recording)
    steps = []
    for number, title in told:
        session.goto(number)
        panels = session.panels()
        if number == told[-1][0]:
            panels = [Panel("the judge", [Line(verdict, marked=True)], wide=True), *panels]
        steps.append(Step(title, panels_html(panels)))
    return Steps(steps, name=name, at=len(steps) - 1)
