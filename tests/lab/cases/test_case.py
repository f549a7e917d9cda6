"""A case is of one kind."""

from __future__ import annotations

from functools import partial

import pytest

from mmulab.lab.cases.build import plain_guest
from mmulab.lab.cases.case import Case, CaseKind
from mmulab.lab.cases.table import find_cases
from mmulab.lab.cases.works import find_works


def test_what_it_is_made_of_is_its_kind() -> None:
    (built,) = find_cases(["shadow-32-l0-4"])
    recorded, boot = find_works(["conformance/6.1.192/sh/basic-32", "stream/boot-686-nonpae"])
    assert [case.kind for case in (built, recorded, boot)] == [
        CaseKind.SCENARIO,
        CaseKind.RECORDING,
        CaseKind.BOOT,
    ]


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"recording": "a", "stream": "b"},
        {"scenario": partial(plain_guest, "32", 4), "stream": "b"},
        {"scenario": partial(plain_guest, "32", 4), "recording": "a"},
    ],
)
def test_it_is_not_of_two_kinds_nor_of_none(of: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="case x needs a scenario, a recording or a stream"):
        Case("x", "npt=0", "32-bit", **of)
