"""Kinds of cases: every case has one."""

from __future__ import annotations

from mmulab.lab.cases.kinds import KINDS, kind_of
from mmulab.lab.cases.table import cases


def test_every_case_has_a_kind() -> None:
    assert [case.name for case in cases() if kind_of(case.name) == "others"] == []
    assert kind_of("tdp-mmu-64-l0-4") != kind_of("tdp-64-l0-4")
    assert kind_of("conformance/6.1.192/sh/basic-32") == "recordings of a real kernel"
    assert KINDS.count("others") == 1
