"""The helper pages against those that the recorder wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.scenario.helpers import CODE, HELPER_S, HELPER_U, STUBS, STUBS_OF_OPS, Stub, helper_lines


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_the_pages_are_the_recorders(root: Path, vendor: str) -> None:
    recorded = json.loads((root / f"data/conformance/helpers-{vendor}.json").read_text())
    assert helper_lines(vendor) == {int(at, 16): bytes.fromhex(line) for at, line in recorded.items()}


def test_both_pages_hold_the_same_stubs() -> None:
    lines = helper_lines("intel", STUBS_OF_OPS.values())
    for stub in Stub:
        line = lines[HELPER_S + STUBS + 16 * stub]
        assert line == lines[HELPER_U + STUBS + 16 * stub]
        assert line.startswith(bytes.fromhex(CODE[stub]))
