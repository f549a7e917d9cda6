"""Role designs of users: loaded from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmulab.kvm.roles.design import DESIGNS, find_design

FORGETFUL = """
from mmulab.kvm.roles.design import Passthrough

class Forgetful(Passthrough):
    id, name = "X", "forgetful"
"""


def test_a_design_knows_its_file_and_what_stood_in_it(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(FORGETFUL)
    design = find_design(f"{source}:Forgetful")
    assert design.reference == f"{source}:Forgetful"
    assert design.digest == hashlib.sha256(FORGETFUL.encode()).hexdigest()
    assert {(built_in.reference, built_in.digest) for built_in in DESIGNS.values()} == {("", "")}
