"""Scopes at the edge of what L1 may do: the search meets what is known of Linux there, unasked."""

from __future__ import annotations

import pytest

from mmulab.check.asserted import Asserted
from mmulab.check.explore import explore
from mmulab.check.explored import Bounds
from mmulab.check.oracle import Oracle
from mmulab.check.scopes import find_scope
from mmulab.kvm.kernels import LINUX_6_1

REACHED = (
    ("edge-npt-root", "nested.c:nested_svm_vmexit:run_pending", 3),
    ("edge-ept-root", "nested.c:nested_vmx_vmexit:run_pending", 4),
    ("edge-ept-rights", "spte.c:make_spte:access", 3),
    ("edge-nx-32", "spte.c:make_spte:reserved", 2),
    ("edge-control-block", "x86.c:kvm_check_and_inject_events:vmexit_pending", 4),
    ("edge-registers-pae", "svm.c:svm_load_mmu_pgd:pcid", 3),
)


@pytest.mark.parametrize(("name", "assertion", "length"), REACHED, ids=str)
def test_an_assertion_of_linux_is_reached(name: str, assertion: str, length: int) -> None:
    scope = find_scope(name).with_(depth=length)
    explored = explore(scope, LINUX_6_1, (Oracle, Asserted), Bounds())
    assert [example.finding.name for example in explored.found] == [assertion]
    assert len(explored.found[0].scenario.steps) == len(scope.scenario.steps) + length


def test_one_step_less_reaches_none() -> None:
    for name, _, length in REACHED[:4]:
        scope = find_scope(name).with_(depth=length - 1)
        explored = explore(scope, LINUX_6_1, (Oracle, Asserted), Bounds())
        assert explored.complete, name
        assert not explored.found, name
