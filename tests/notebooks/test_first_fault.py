"""notebooks/first_fault.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab.report import result
from mmulab.report.page import remote_references
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import Reports

NAME = "first_fault"


def test_default_is_right(reported: Reports) -> None:
    done = reported(NAME)
    assert done.last_line == "wrong accesses: 0"
    wrong = [row[-1] for row in done.tables["reads"].rows]
    assert result.harvest(done.notebook).sentence == (
        f"{sum(wrong[:4])} of 4 reads wrong with quadrants by parity, {sum(wrong[4:])} by copied"
    )
    html = done.html
    assert remote_references(html) == []
    assert "WRONG" in html, "the page shows the copied quadrant's wrong translation too"


def test_a_design_of_the_readers_own(papermill: Papermill, tmp_path: Path) -> None:
    """It forgets the rights of the way, which this guest does not vary."""
    source = tmp_path / "own.py"
    source.write_text(
        "from mmulab.kvm.roles.design import Passthrough\n\n\n"
        "class Own(Passthrough):\n    id, name = 'X', 'own'\n\n"
        "    def pack(self, facts, cpu):\n        return super().pack(facts._replace(access=7), cpu)\n"
    )
    done = papermill(NAME, design=f"{source}:Own")
    assert done.returncode == 0, done.stderr
    assert done.last_line == "wrong accesses: 0"


def test_copied_names_the_wrong_access(papermill: Papermill) -> None:
    done = papermill(NAME, derivation="copied", seed=3)
    assert done.returncode == 0
    found = re.fullmatch(
        r"wrong accesses: 1; op 3: read of gva (0x\w+): expected gpa (0x\w+), reached gpa (0x\w+)",
        done.last_line,
    )
    assert found, done.last_line
    assert found[2] != found[3]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"derivation": "x"}, "parameter 'derivation' is 'x'; it must be one of parity, copied"),
        ({"design": "D99"}, "parameter 'design' is 'D99'; it must be one of"),
        ({"seed": -1}, "parameter 'seed' is -1; it must be an integer of at least 0"),
        ({"quadrant": 0}, "unknown parameter 'quadrant'; the notebook has kernel, design, derivation, seed"),
    ],
    ids=["derivation", "design", "seed", "unknown"],
)
def test_bad_parameters_are_refused(refusal: Refusal, parameters: dict[str, object], says: str) -> None:
    assert refusal(NAME, **parameters).startswith(says)
