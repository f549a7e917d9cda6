"""What a random search finds is made short, replays, and names its kernel."""

from __future__ import annotations

import pytest

from mmulab.check.finding import MakeWatcher
from mmulab.check.fuzz import Found, Fuzzer
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.minimal import shrink_found
from mmulab.check.oracle import Oracle
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


def found_in(kernel: Kernel, guest: str, watcher: MakeWatcher) -> Found:
    fuzzer = Fuzzer(plan(GUESTS[guest]), kernel, [watcher], seed=0, right=LINUX_6_1)
    found = fuzzer.run(lambda progress: True)
    assert found is not None
    return found


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
    found = found_in(kernel, guest, Oracle)
    scenario = shrink_found(found, kernel, [Oracle], LINUX_6_1)
    assert len(scenario.steps) <= min(most, len(found.scenario.steps))
    again = parse_scenario(format_scenario(scenario))
    finding = make_bench(again, kernel, [Oracle]).run(()).finding
    assert finding is not None
    assert (finding.kind, finding.name) == (found.finding.kind, found.finding.name)
    assert make_bench(again, LINUX_6_1, [Oracle]).run(()).finding is None


def test_a_kernel_with_a_name_stands_in_the_scenario() -> None:
    kernel = find_kernel("6.1+B1")
    dislikes = Dislikes(ops.Invlpg)
    found = Fuzzer(plan(GUESTS["shadow-64"]), kernel, [dislikes], seed=0).run(lambda progress: True)
    assert found is not None
    scenario = shrink_found(found, kernel, [dislikes])
    assert scenario.header.kernel == kernel.name
    assert [type(step.op) for step in scenario.steps] == [ops.Invlpg]
