"""The hunt: what is wrong is found, short and once; what is right is free, and the hunt ends by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.check.guests import GUESTS
from mmulab.check.hunt import IN_SCOPES, Job, hunt, places
from mmulab.check.mmu import Invariants
from mmulab.check.scope import steps
from mmulab.check.scopes import find_scope, kinds_first
from mmulab.check.trial import make_bench
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.lab.hunts import merged

LONG = 600.0
"""Seconds; the hunts of the tests end by what they find, or when every sequence was tried."""


def test_a_bug_is_found_in_the_scope_that_is_aimed_at_it_and_replays() -> None:
    kernel = find_kernel("6.1+B22")
    hunted = hunt(Job(kernel, LINUX_6_1, ("cpuid-64",), 0, LONG, 1), lambda: False)
    (trouble,) = hunted.found
    assert trouble.place == "cpuid-64"
    assert len(trouble.scenario.steps) == 2
    watchers = (*IN_SCOPES, Invariants)
    assert make_bench(trouble.scenario, kernel, watchers).run(()).finding == trouble.finding
    assert make_bench(trouble.scenario, LINUX_6_1, watchers).run(()).finding is None


def test_a_scope_that_was_tried_whole_is_free_and_the_hunt_ends() -> None:
    hunted = hunt(Job(LINUX_6_1, None, ("nested-logged-npt",), 0, LONG, 1), lambda: False)
    assert list(hunted.free) == ["nested-logged-npt"]
    assert hunted.found == []
    assert hunted.states > 10


def test_what_the_right_kernel_does_as_well_is_no_finding() -> None:
    kernel = find_kernel("6.1+B22")
    hunted = hunt(Job(kernel, kernel, ("cpuid-64",), 0, LONG, 1), lambda: False)
    assert hunted.found == []


def test_what_is_not_modelled_is_passed_over_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMRUN with exits asked for that the model refuses; the rest of the scope is tried."""
    ops = steps("?vmrun a000", "?hw 4 a00c 8000000", "!vmmcall")
    scope = replace(find_scope("nested-logged-npt"), ops=ops, depth=3)
    monkeypatch.setattr("mmulab.check.hunt.find_scope", lambda name: scope)
    hunted = hunt(Job(LINUX_6_1, None, (scope.name,), 0, LONG, 1), lambda: False)
    assert (hunted.refused, hunted.found) == (1, [])
    assert hunted.free == {scope.name: "up to depth 3 of 3 ops, 6 states, but for what follows 1 refused op"}
    assert merged([hunted, hunted]).refused == 2


def test_a_hunt_that_is_told_to_stop_does_nothing_more() -> None:
    hunted = hunt(Job(LINUX_6_1, None, places(), 0, LONG, 1), lambda: True)
    assert (hunted.interrupted, hunted.states, hunted.ops) == (True, 0, 0)


def test_places_are_scopes_in_turn_with_guests() -> None:
    every = places()
    assert every[0::2][:20] == tuple(kinds_first()[:20])
    assert every[1::2][:20] == tuple(GUESTS)[:20]
    assert places(["npt-la57", "behind-*"]) == tuple(
        name for name in every if name in {"npt-la57", "behind-64", "behind-pae"}
    )
    with pytest.raises(InputError, match="scope 'nowhere': unknown"):
        places(["nowhere"])
