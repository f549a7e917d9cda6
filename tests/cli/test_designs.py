"""``mmulab designs`` says what the tables of designs and derivations say."""

from __future__ import annotations

import json

import pytest

from mmulab.cli.main import run
from mmulab.kvm.roles.derivation import DERIVATIONS
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES
from mmulab.kvm.sync.find import SYNC_POLICIES


def test_every_design_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["designs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for design in DESIGNS.values():
        (found,) = [line for line in lines if line.split()[:2] == [design.id, design.name]]
        assert design.summary in found
    titles = ("child-role derivations:", "root strategies:", "sync policies:")
    rules, roots, syncs = map(lines.index, titles)
    parts = (lines[rules + 1 : roots], lines[roots + 1 : syncs], lines[syncs + 1 :])
    for part, known in zip(parts, (DERIVATIONS, ROOT_STRATEGIES, SYNC_POLICIES), strict=True):
        assert [name for name in (line.split()[0] for line in part) if name != "source:"] == list(known)


def test_historic_designs_say_what_came_after_them(capsys: pytest.CaptureFixture[str]) -> None:
    run(["designs"])
    lines = capsys.readouterr().out.splitlines()
    modes = {lines[at].split()[0]: lines[at + 3].strip() for at in range(0, 4 * len(DESIGNS), 4)}
    assert modes["D4"] == modes["D0"] == "modes:  all"
    assert "before SMEP, SMAP, SMM, 5-level paging" in modes["D7"]
    assert "nested NPT" in modes["D7"]
    assert modes["D8"] == "modes:  of its time, before TDP MMU, 5-level nested NPT host"


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
    assert set(found["root_strategies"]) == set(ROOT_STRATEGIES)
    for item in found["designs"]:
        assert sum(field["width"] for field in item["fields"]) == item["used_bits"] <= item["width"]
