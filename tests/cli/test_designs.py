"""``mmulab designs`` says what the tables of designs and derivations say."""

from __future__ import annotations

import json

import pytest

from mmulab.cli.main import run
from mmulab.kvm.derivation import DERIVATIONS
from mmulab.kvm.design import DESIGNS


def test_every_design_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["designs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for design in DESIGNS.values():
        (found,) = [line for line in lines if line.split()[:2] == [design.id, design.name]]
        assert design.summary in found
    named = [line.split()[0] for line in lines[lines.index("child-role derivations:") + 1 :]]
    assert [name for name in named if name != "source:"] == list(DERIVATIONS)


def test_bits_are_those_of_the_kernels_union(capsys: pytest.CaptureFixture[str]) -> None:
    """Linux 6.1, ``union kvm_mmu_page_role`` in arch/x86/include/asm/kvm_host.h."""
    run(["designs"])
    out = capsys.readouterr().out
    assert "level:0-3 has_4_byte_gpte:4 quadrant:5-6 direct:7 access:8-10 invalid:11" in out
    assert "passthrough:18 smm:24-31" in out


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["designs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in found["designs"]] == list(DESIGNS)
    assert set(found["derivations"]) == set(DERIVATIONS)
    for item in found["designs"]:
        assert sum(field["width"] for field in item["fields"]) == item["used_bits"] <= item["width"]
