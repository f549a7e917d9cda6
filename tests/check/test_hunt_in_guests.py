"""The hunt in guests, at random: what it finds is short and is shown again, and what ends it keeps that."""

from __future__ import annotations

import pytest

from mmulab.check.finding import FindingKind, MakeWatcher
from mmulab.check.hunt import IN_GUESTS, Hunted, Job, hunt
from mmulab.check.known import beyond
from mmulab.check.trial import make_bench
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.machine import op as ops
from tests.check.test_trial import Dislikes

LONG = 600.0
"""Seconds; what is looked for is found long before."""
B17 = find_kernel("6.1+B17")


def job(kernel: Kernel, *names: str, right: Kernel | None = LINUX_6_1, most: int = 1) -> Job:
    return Job(kernel, right, names, seed=0, budget=LONG, most=most)


class Ending:
    """Stops a hunt after it has been asked so often."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def never() -> bool:
    return False


def test_a_bug_is_found_and_made_short_and_the_right_kernel_does_not_show_it() -> None:
    hunted = hunt(job(B17, "shadow-32"), never)
    (trouble,) = hunted.found
    assert (trouble.place, hunted.searched) == ("shadow-32", ["shadow-32"])
    assert 0 < len(trouble.scenario.steps) <= min(12, trouble.steps)
    assert trouble.scenario.header.kernel == B17.name
    assert hunted.ops > 0
    assert not hunted.interrupted
    watchers = beyond(IN_GUESTS, {})
    assert make_bench(trouble.scenario, B17, watchers).run(()).finding == trouble.finding
    assert make_bench(trouble.scenario, LINUX_6_1, watchers).run(()).finding is None


def test_what_the_right_kernel_shows_too_is_known_and_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    disliking: tuple[MakeWatcher, ...] = (Dislikes(ops.Invlpg),)
    monkeypatch.setattr("mmulab.check.hunt.IN_GUESTS", disliking)
    hunted = hunt(job(B17, "shadow-32"), Ending(40))
    assert not hunted.found
    assert hunted.known[FindingKind.INVARIANT.value, "Invlpg"] > 0
    (trouble,) = hunt(job(B17, "shadow-32", right=None), never).found
    assert [type(step.op) for step in trouble.scenario.steps] == [ops.Invlpg]


def test_one_that_is_told_to_stop_keeps_what_it_has() -> None:
    told: list[int] = []

    def stop_after_the_first() -> bool:
        return bool(told)

    def progress(hunted: Hunted) -> None:
        told.extend(range(len(hunted.found)))

    hunted = hunt(job(B17, "shadow-32", most=99), stop_after_the_first, progress)
    assert len(hunted.found) == 1
    assert hunted.interrupted


def test_an_interrupt_keeps_it_too() -> None:
    told: list[str] = []

    def progress(hunted: Hunted) -> None:
        if hunted.found and not told:
            told.append("once")
            raise KeyboardInterrupt

    hunted = hunt(job(B17, "shadow-32", most=99), never, progress)
    assert len(hunted.found) == 1
    assert hunted.interrupted
