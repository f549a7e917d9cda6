"""The random search: its seed decides, it keeps what is new, and it finds a wrong design."""

from __future__ import annotations

from mmulab.check.finding import FindingKind
from mmulab.check.fuzz import Fuzzer, Progress
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.oracle import Oracle
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.machine import op as ops
from tests.check.test_trial import Dislikes

COPIED = LINUX_6_1.with_(derivation=find_derivation("copied"))


def fuzzer(seed: int = 0, **changes: object) -> Fuzzer:
    return Fuzzer(plan(GUESTS["shadow-32"]), LINUX_6_1, [], seed=seed, **changes)  # type: ignore[arg-type]


def test_the_seed_decides() -> None:
    def run(seed: int) -> Progress:
        search = fuzzer(seed)
        assert search.run(lambda progress: progress.trials < 8) is None
        return search.progress

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_later_trials_meet_more() -> None:
    search = fuzzer()
    search.run(lambda progress: progress.trials < 3)
    few = search.progress.features
    search.run(lambda progress: progress.trials < 12)
    assert search.progress.features > few > 0


def test_the_quadrant_that_is_copied_from_the_parent_is_found_at_once() -> None:
    """Both halves of a 32-bit guest's table then have one shadow page: the series' first version."""
    search = Fuzzer(plan(GUESTS["shadow-32"]), COPIED, [Oracle], seed=0, right=LINUX_6_1)
    found = search.run(lambda progress: progress.trials < 40)
    assert found is not None
    assert found.finding.kind is FindingKind.OUTCOME
    assert make_bench(found.scenario, COPIED, [Oracle]).run(()).finding == found.finding
    assert make_bench(found.scenario, LINUX_6_1, [Oracle]).run(()).finding is None


def test_what_the_right_kernel_shows_too_is_known_and_not_reported() -> None:
    watchers = [Dislikes(ops.Invlpg)]
    search = Fuzzer(plan(GUESTS["shadow-32"]), COPIED, watchers, seed=0, right=LINUX_6_1)
    assert search.run(lambda progress: progress.trials < 12) is None
    assert search.progress.known[FindingKind.INVARIANT.value, "Invlpg"] > 0


def test_without_a_right_kernel_everything_is_reported() -> None:
    search = Fuzzer(plan(GUESTS["shadow-32"]), LINUX_6_1, [Dislikes(ops.Invlpg)], seed=0)
    found = search.run(lambda progress: progress.trials < 12)
    assert found is not None
    assert isinstance(found.scenario.steps[-1].op, ops.Invlpg)
    assert found.finding.op == len(found.scenario.steps) - 1
