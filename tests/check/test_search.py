"""A whole search: it finds what is known to be wrong, in short scenarios that replay."""

from __future__ import annotations

import pytest

from mmulab.check.guests import GUESTS
from mmulab.check.oracle import Oracle
from mmulab.check.search import Searched, search
from mmulab.check.trial import make_bench
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.kvm.roles.design import DESIGNS
from mmulab.machine import op as ops
from mmulab.scenario.text import format_scenario, parse_scenario
from tests.check.test_trial import Dislikes


def of_design(name: str) -> Kernel:
    return LINUX_6_1.with_(design=DESIGNS[name])


COPIED = LINUX_6_1.with_(derivation=find_derivation("copied"))
LONG = 600.0
"""Seconds; the searches of the tests end by what they find."""


def found_in(kernel: Kernel, *guests: str, seed: int = 0) -> Searched:
    chosen = [GUESTS[name] for name in guests]
    return search(kernel, chosen, [Oracle], seed=seed, budget=LONG, right=LINUX_6_1)


@pytest.mark.parametrize(
    ("kernel", "guest", "most"),
    [
        pytest.param(COPIED, "shadow-32", 4, id="copied"),
        pytest.param(of_design("pre_fix"), "nested-npt-5-57", 10, id="pre_fix", marks=pytest.mark.slow),
        pytest.param(of_design("glevels"), "shadow-32", 6, id="glevels", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_design_is_found_and_its_scenario_is_short_and_replays(
    kernel: Kernel, guest: str, most: int
) -> None:
    searched = found_in(kernel, guest)
    (minimal,) = searched.found
    assert len(minimal.scenario.steps) <= most
    assert len(minimal.scenario.steps) <= minimal.steps
    again = parse_scenario(format_scenario(minimal.scenario))
    assert make_bench(again, kernel, [Oracle]).run(()).finding == minimal.finding
    assert make_bench(again, LINUX_6_1, [Oracle]).run(()).finding is None


def test_a_kernel_with_a_name_stands_in_the_scenario() -> None:
    kernel = find_kernel("6.1+B1")
    searched = search(
        kernel, [GUESTS["shadow-64"]], [Dislikes(ops.Invlpg)], seed=0, budget=LONG
    )
    (minimal,) = searched.found
    assert minimal.scenario.header.kernel == kernel.name
    assert [type(step.op) for step in minimal.scenario.steps] == [ops.Invlpg]


def test_findings_of_one_kind_and_name_are_one() -> None:
    watchers = [Dislikes(ops.Invlpg), Dislikes(ops.Nop)]
    seen: list[int] = []
    searched = search(
        LINUX_6_1,
        [GUESTS["shadow-64"], GUESTS["shadow-np"]],
        watchers,
        seed=0,
        budget=LONG,
        most=2,
        progress=lambda so_far: seen.append(len(so_far.found)),
    )
    assert sorted(minimal.finding.name for minimal in searched.found) == ["Invlpg", "Nop"]
    assert seen == sorted(seen)
    assert seen[-1] == 2


def test_an_interrupted_search_keeps_what_it_found() -> None:
    def stop(so_far: Searched) -> None:
        if so_far.found:
            raise KeyboardInterrupt

    searched = search(
        LINUX_6_1, [GUESTS["shadow-64"]], [Dislikes(ops.Invlpg)], seed=0, budget=LONG, most=2, progress=stop
    )
    assert searched.interrupted
    assert [minimal.finding.name for minimal in searched.found] == ["Invlpg"]


def test_no_budget_no_trial() -> None:
    searched = search(LINUX_6_1, [GUESTS["shadow-64"]], [Oracle], seed=0, budget=0)
    assert (searched.trials, searched.found, searched.interrupted) == (0, [], False)
