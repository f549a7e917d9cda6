"""What FILE may be: a scenario, a recording, or the name of a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.cli.work import read_work
from mmulab.errors import InputError
from mmulab.lab.cases.build import la57_switch_nested
from mmulab.scenario.scenario import Scenario

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests/scenario/examples/first_fault.mmu"


def test_a_built_case() -> None:
    assert read_work("la57-switch-npt-4to5-l0-5") == la57_switch_nested("64", 5)


def test_a_recorded_case_is_what_was_recorded() -> None:
    path = ROOT / "data/conformance/6.1.192/nested-ept/ept-basic-ad.jsonl.xz"
    assert read_work("ept-ad") == read_work(str(path))
    assert read_work("ept-5-level-ad") != read_work(str(path)), "with a level above"


def test_a_file_goes_before_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ept-ad").write_bytes(EXAMPLE.read_bytes())
    found = read_work("ept-ad")
    assert isinstance(found, Scenario)
    assert [type(step.op).__name__ for step in found.steps] == ["Read", "Write"]


def test_neither() -> None:
    with pytest.raises(InputError, match=r"^la57: neither a file nor a case; 'mmulab cases' lists"):
        read_work("la57")
