"""A wrong access as steps: the page that was found, what followed, and how it ended."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.build import NPT_ROOT, la57_switch_nested
from mmulab.report.page import remote_references
from mmulab.scenario.record import record_steps
from mmulab.trace.recording import Recording
from mmulab.widgets.session import Session
from mmulab.widgets.wrong_access import MOST, Where, moments, wrong_access

GFN = NPT_ROOT >> 12


@pytest.fixture(scope="module")
def switch() -> tuple[Recording, dict[int, int]]:
    return record_steps(la57_switch_nested("64", 5), kernel=LINUX_6_1.with_(design=DESIGNS["pre_fix"]))


def told(switch: tuple[Recording, dict[int, int]]) -> list[tuple[int, str]]:
    recording, numbers = switch
    role = next(
        e.role
        for e in recording.events_of(numbers[7])
        if isinstance(e, ev.kvm_mmu_get_page) and e.gfn == GFN and not e.created
    )
    return moments(recording, Where(numbers[8], "op 8"), found=Where(numbers[7], "op 7"), page=(GFN, role))


def test_it_begins_where_the_page_is_found_and_ends_with_the_op(
    switch: tuple[Recording, dict[int, int]],
) -> None:
    recording, numbers = switch
    first, *_, last = told(switch)
    look = Session(recording, at=first[0]).look()
    assert isinstance(look.event, ev.kvm_mmu_get_page)
    assert (look.event.gfn, look.event.created) == (GFN, False)
    assert first[1] == "op 7: the page is found, though it is not the one wanted"
    assert recording.moment(last[0]) == (numbers[8], None)


@pytest.mark.parametrize("op", range(10))
def test_moments_are_few_and_in_order(switch: tuple[Recording, dict[int, int]], op: int) -> None:
    found = moments(switch[0], Where(op, "op"))
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    assert 1 <= len(numbers) <= MOST
    assert all(switch[0].moment(number).op == op for number in numbers)


def test_the_verdict_stands_at_the_end(switch: tuple[Recording, dict[int, int]]) -> None:
    steps = wrong_access(switch[0], told(switch), name="the switch", verdict="reached gpa 1 < 2")
    assert remote_references(steps.html()) == []
    assert [("reached gpa 1 &lt; 2" in step.html) for step in steps.steps] == [False, False, True]
    assert [step.title for step in steps.steps] == [title for _, title in told(switch)]
