"""A followed search: it ends where the hunt does, and its samples add up."""

from __future__ import annotations

import pytest

from mmulab.check.hunt import Hunted, Job
from mmulab.errors import InputError
from mmulab.kvm.bug import SWITCHES
from mmulab.kvm.bugs import find_bug
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.known_bugs.follow import Followed, Sample, Search, find_switches, follow, switched

QUICK = Search("6.1.192", ("paths-32",), 0, 120.0)


def test_a_bug_is_found_and_the_search_is_told() -> None:
    told: list[tuple[int, str]] = []
    followed = follow("B17", QUICK, lambda one: told.append((one.hunted.states, one.hunted.place)))
    assert followed.trouble is not None
    assert followed.trouble.place == "paths-32"
    assert followed.hunted.job.kernel == find_kernel("6.1.192+B17")
    assert followed.hunted.job.right == find_kernel("6.1.192")
    assert told[-1] == (followed.hunted.states, "paths-32")
    assert followed.samples[-1].states == followed.hunted.states > 0
    assert followed.seconds == followed.trouble.seconds <= followed.samples[-1].seconds
    assert "B17: found in paths-32 after" in followed.said
    assert "1 after shrinking" in followed.said


def test_what_is_not_found_is_said_so() -> None:
    followed = follow("B29", QUICK._replace(budget=0.5))
    assert followed.trouble is None
    assert followed.said.startswith("B29: not found in ")
    assert followed.seconds == followed.samples[-1].seconds > 0


def made(*samples: Sample, interrupted: bool = False) -> Followed:
    job = Job(find_kernel("6.1+B13"), find_kernel("6.1"), (), 0, 1.0, 1)
    hunted = Hunted(job, states=70, ops=300, interrupted=interrupted)
    return Followed(find_bug("B13"), hunted, [Sample(0.0, "", 0, 0), *samples])


TURNS = (
    Sample(1.0, "scope", 10, 0),
    Sample(1.5, "guest", 10, 100),
    Sample(4.0, "scope", 70, 100),
    Sample(5.0, "guest", 70, 300),
    Sample(5.25, "other", 70, 300),
)


def test_turns_of_a_place_are_added() -> None:
    assert made(*TURNS).by_place(9) == [
        Sample(3.5, "scope", 70, 0),
        Sample(1.5, "guest", 0, 300),
        Sample(0.25, "other", 0, 0),
    ]


def test_many_places_are_one_line() -> None:
    assert made(*TURNS).by_place(1) == [Sample(3.5, "scope", 70, 0), Sample(1.75, "2 others", 0, 300)]


def test_an_interrupted_search_says_so() -> None:
    said = made(*TURNS, interrupted=True).said
    assert said == "B13: interrupted after 5.2 s, 70 states and 300 random ops; nothing found"


def test_switched_kernels_differ_in_the_bug_alone() -> None:
    bug, wrong, right = switched("B13", "6.1.192")
    assert bug.id == "B13"
    assert wrong.bugs.names() == ("B13",)
    assert right.bugs.names() == ()


def test_switches_are_read_in_their_order() -> None:
    assert find_switches("B24, B1", SWITCHES) == ["B24", "B1"]
    assert find_switches("*", SWITCHES) == list(SWITCHES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("B99", "bug 'B99': unknown"),
        ("B6", "bug B6 has no switch: the assertion"),
        ("B1,B1", "switches 'B1,B1': B1 is there twice"),
        ("", "bug '': unknown"),
    ],
)
def test_wrong_switches_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        find_switches(text, SWITCHES)
    assert str(refused.value).startswith(says)


def test_a_bug_without_a_switch_is_not_searched() -> None:
    with pytest.raises(InputError, match="bug B6 has no switch"):
        follow("B6", QUICK)
