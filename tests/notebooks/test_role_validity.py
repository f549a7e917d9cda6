"""notebooks/role_validity.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import pytest

from mmulab.lab.validity.matrix import markers, validity_matrix, witnesses
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import harvest
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import Reports


def test_its_tables_are_those_of_the_matrix(reported: Reports) -> None:
    done = reported("role_validity")
    tables = done.tables
    matrix = validity_matrix()
    assert [list(row) for row in tables["validity"].rows] == [[str(v) for v in row] for row in matrix.rows()]
    assert [row[0] for row in tables["markers"].rows] == list(markers())
    assert [row[0] for row in tables["witnesses"].rows] == list(witnesses())
    listed = {(row[0], row[1]): row[3] for row in tables["fooled"].rows}
    assert listed["nested-nonpaging", "level_zero"] == matrix.cell("level_zero", "nested-nonpaging").detail
    assert [row[2] for row in tables["after_run"].rows] == ["host ret=-22 EINVAL", "host ret=0", "host ret=0"]
    assert [row[4].split(",")[0] for row in tables["after_run"].rows] == ["yes", "no", "the VM runs no more"]
    page = done.html
    assert remote_references(page) == []
    assert "In JupyterLab an interactive control stands here" not in page
    assert "nested_mmu: unchanged: left as it is" in page
    assert "never wrong: cpuid_stale" in page
    guests = sum(verdict == "guest" for row in matrix.rows() for verdict in row)
    assert done.last_line == f"cells: {len(markers()) * len(witnesses())}, wrong for the guest: {guests}"
    right = sum(value == "right" for row in tables["validity"].rows for value in row)
    assert result.harvest(done.notebook).sentence == (
        f"{guests} of {len(markers()) * len(witnesses())} cells wrong for the guest, {right} right"
    )


def test_a_few_cells_and_another_one_closely(papermill: Papermill) -> None:
    done = papermill(
        "role_validity",
        markers="valid invalid_bit",
        witnesses="free-*",
        marker="force_role_reset",
        witness="guest-npt-narrows",
    )
    assert done.returncode == 0, done.stderr
    tables = {table.name: table for table in harvest(done.notebook)}
    assert [list(row) for row in tables["validity"].rows] == [["free-roots-lock", "host", "right"]]
    assert "guest_mmu: unchanged: left as it is" in export(done.notebook, "role_validity")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("markers", "level_one", "'level_one': fits none of valid, level_zero, "),
        ("marker", "level_one", "parameter 'marker' is 'level_one'; it must be one of valid, "),
        ("witness", "x", "parameter 'witness' is 'x'; it must be one of root-shadow-narrows, "),
        ("seed", 1, "unknown parameter 'seed'; the notebook has markers, witnesses, marker, witness"),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, name: str, value: object, says: str) -> None:
    assert refusal("role_validity", **{name: value}).startswith(says)
