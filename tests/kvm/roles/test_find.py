"""Designs by name, id and file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.kvm.context import base_facts
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.word import CpuRole


def test_designs_go_by_name_and_by_id() -> None:
    for design in DESIGNS.values():
        assert find_design(design.id) is find_design(design.name) is design
    with pytest.raises(InputError, match=r"'nolevel'.*D0 pre_fix, D1 glevel"):
        find_design("nolevel")


FORGETFUL = """
from mmulab.kvm.roles.design import Passthrough

class Forgetful(Passthrough):
    id, name = "X", "forgetful"

    def pack(self, facts, cpu):
        return super().pack(facts._replace(access=7), cpu)
"""


def test_a_users_own_design_comes_from_a_file(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(FORGETFUL)
    design = find_design(f"{source}:Forgetful")
    cpu = CpuRole(level=4, valid=1)
    assert design.facts(design.pack(base_facts(cpu)._replace(access=1), cpu)).access == 7


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:X", "No module named"),
        ("nowhere.py:X", "nowhere.py"),
        ("mmulab.kvm.roles.design:Missing", "Missing"),
        ("mmulab.kvm.roles.word:CpuRole", "is no subclass"),
    ],
)
def test_a_design_that_cannot_be_loaded_is_refused(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        find_design(name)
    assert "\n" not in str(caught.value)
