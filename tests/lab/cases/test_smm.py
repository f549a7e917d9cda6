"""System management mode: a page that only ``smm`` in the role tells from another."""

from __future__ import annotations

import pytest

from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.build import UPPER
from mmulab.lab.cases.table import find_cases
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs.compare import compare
from mmulab.scenario.scenario import MODES
from tests.lab.forgetful import forgetting

NAMES = [case.name for case in find_cases(["smm-*"])]


def test_every_mode_and_every_kind_of_tables_is_there() -> None:
    shadow = [f"smm-shadow-{mode}-l0-{5 if mode == '57' else 4}" for mode in MODES]
    tdp = [f"smm-{kind}-{tables}-l0-4" for kind in ("tdp", "tdp-mmu") for tables in ("npt", "ept")]
    assert [*shadow, *tdp] == NAMES


def test_whoever_has_smm_in_the_word_is_right() -> None:
    designs = [name for name, design in DESIGNS.items() if "smm" in design.layout.mask]
    assert {"passthrough", "cpu_mode", "glevel"} <= set(designs)
    assert not [c for c in compare(designs, find_works(["smm-*"])).cells if c.first_wrong]


@pytest.mark.parametrize("name", NAMES)
def test_whoever_forgets_it_reads_the_other_memory(name: str) -> None:
    """The first read in SMM of the page that differs finds the page from outside."""
    (cell,) = compare([forgetting("smm")], find_works([name])).cells
    wrong, shared = cell.first_wrong, cell.collision
    assert wrong is not None
    assert wrong.op >= 4
    assert wrong.expected == UPPER
    assert f"rax=c0de0{UPPER >> 12:x}" in wrong.seen, "the memory from outside"
    if "tdp-mmu" in name:
        assert shared is None, "kvm_mmu_get_page does not tell of the TDP MMU's roots"
    else:
        assert shared is not None
        assert shared.differ == ("smm",)
