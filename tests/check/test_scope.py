"""Scopes: a beginning, and ops to choose from."""

from __future__ import annotations

import pytest

from mmulab.check.scope import Scope, steps
from mmulab.check.scopes import MAKERS, find_scope
from mmulab.errors import InputError
from mmulab.scenario.grammar import format_step
from mmulab.scenario.runner import run
from mmulab.scenario.text import format_scenario, parse_scenario


def test_each_scope_is_small_and_says_what_it_is_aimed_at():
    for name in MAKERS:
        scope = find_scope(name)
        assert scope.name == name
        assert scope.about
        assert 5 <= len(scope.ops) <= 16


def test_what_was_chosen_is_a_scenario_that_runs_from_its_text():
    scope = find_scope("linked-64")
    chosen = scope.taken((4, 0, 4))
    again = parse_scenario(format_scenario(chosen))
    assert [format_step(step) for step in again.steps] == [format_step(scope.ops[at]) for at in (4, 0, 4)]
    assert [result.outcome for result in run(again)] == [result.outcome for result in run(chosen)]


def test_a_scope_refuses_what_it_cannot_be():
    scenario = find_scope("linked-64").scenario
    with pytest.raises(InputError, match="0 ops, expected 1 to 64"):
        Scope("s", "", scenario, (), 1)
    with pytest.raises(InputError, match="twice"):
        Scope("s", "", scenario, steps("nop", "nop"), 1)
    with pytest.raises(InputError, match="depth is 0"):
        Scope("s", "", scenario, steps("nop"), 0)
    with pytest.raises(InputError, match="op 'rd': "):
        steps("rd")
    with pytest.raises(InputError, match="unknown; the scopes are paths-32"):
        find_scope("none")
