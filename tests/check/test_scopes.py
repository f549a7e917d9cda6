"""What the scopes are aimed at: each finds a bug that was switched on, and the right kernel is free of it."""

from __future__ import annotations

import pytest

from mmulab.check.explore import explore
from mmulab.check.explored import Bounds, Counterexample
from mmulab.check.hunt import IN_SCOPES
from mmulab.check.mmu import Invariants
from mmulab.check.scopes import MAKERS, find_scope, kinds_first
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1, find_kernel

WATCHERS = (*IN_SCOPES, Invariants)


def known(example: Counterexample) -> bool:
    other = make_bench(example.scenario, LINUX_6_1, WATCHERS).run(()).finding
    return other is not None and other.op <= example.finding.op


@pytest.mark.parametrize(
    ("bug", "scope", "ops"),
    [
        ("B1", "behind-64", 3),
        ("B2", "behind-64", 3),
        ("B2", "behind-pae", 3),
        ("B13", "upper-paths-64", 4),
        ("B15", "large-64", 2),
        ("B20", "huge-nx-64", 2),
        ("B22", "cpuid-64", 2),
        ("B10", "rights-64", 3),
        ("B11", "rights-64", 3),
        ("B12", "rights-64", 3),
        ("B25", "nested-pcid", 5),
        ("B27", "forms-64", 6),
        ("B32", "ept-emulated-64", 2),
        ("B33", "nested-logged-ept-pml", 2),
        ("B34a", "npt-host32", 1),
        ("B34b", "npt-host32", 1),
    ],
)
def test_a_scope_finds_what_it_is_aimed_at_in_few_ops(bug: str, scope: str, ops: int) -> None:
    kernel = find_kernel(f"6.1+{bug}")
    explored = explore(find_scope(scope), kernel, IN_SCOPES, Bounds(first=True), known=known)
    assert explored.found
    for example in explored.found:
        assert len(example.choices) == ops
        again = make_bench(example.scenario, kernel, WATCHERS).run(()).finding
        assert again is not None
        assert (again.kind, again.name) == (example.finding.kind, example.finding.name)
        assert again.op >= example.finding.op, "a run looks at some books now and then, a scope always"
        assert make_bench(example.scenario, LINUX_6_1, WATCHERS).run(()).finding is None


FREE = ("cpuid-64", "nested-logged-ept-pml", "nested-logged-npt", "npt-emulated-64")


@pytest.mark.parametrize("scope", FREE)
def test_the_right_kernel_is_free_in_a_small_scope(scope: str) -> None:
    explored = explore(find_scope(scope), LINUX_6_1, IN_SCOPES)
    assert explored.complete
    assert explored.found == ()


def test_a_scope_of_each_kind_comes_before_a_second_of_any() -> None:
    names = kinds_first()
    assert sorted(names) == sorted(MAKERS)
    kinds = [getattr(MAKERS[name], "func", MAKERS[name]) for name in names]
    first = len(set(kinds))
    assert len(set(kinds[:first])) == first
