"""A root that is a portal under two paging modes of L1."""

from __future__ import annotations

import pytest

from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES
from mmulab.lab.cases.build import LOWER, UPPER
from mmulab.lab.cases.portal import portal_switch_nested
from mmulab.lab.cases.run import run_case

CORRECT = ("D1", "D2", "D3", "D4", "D5", "D6")


@pytest.mark.parametrize("l0", [4, 5])
@pytest.mark.parametrize("strategy", ROOT_STRATEGIES)
def test_one_bit_is_too_little_where_all_roots_are_found_by_gfn_and_role(l0: int, strategy: str) -> None:
    """With a level between, the merged bit says the same of both portals at the top."""
    wrong = {}
    for name in CORRECT:
        kernel = LINUX_6_1.with_(root_strategy=ROOT_STRATEGIES[strategy])
        run = run_case(portal_switch_nested(l0), name, kernel=kernel)
        assert run.judged == 3
        if run.wrong is not None:
            wrong[name] = (run.wrong.expected, run.wrong.reached)
    assert wrong == ({"D4": (UPPER, LOWER)} if (l0, strategy) == (5, "shadow") else {})
