"""A cell of the matrix closely, live and still."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.lab.validity.matrix import ValidityMatrix, validity_matrix
from mmulab.lab.validity.view import ValidityView, cell_steps
from mmulab.report.page import remote_references


@pytest.fixture(scope="module")
def matrix() -> ValidityMatrix:
    return validity_matrix(
        ["valid", "level_zero", "force_role_reset"],
        ["nested-nonpaging", "free-roots-lock", "guest-npt-narrows", "root-shadow-narrows"],
    )


@pytest.mark.parametrize(
    ("marker", "witness", "step", "says"),
    [
        ("level_zero", "nested-nonpaging", 4, "nested_mmu is taken for valid, and nothing in it differs"),
        ("valid", "free-roots-lock", 1, "mmu_lock held for writing; an assertion fails"),
        ("force_role_reset", "guest-npt-narrows", 6, "expected: vmexit code=400"),
        ("valid", "root-shadow-narrows", 1, "root_mmu: configured again"),
    ],
)
def test_it_opens_where_the_verdict_is_made(
    matrix: ValidityMatrix, marker: str, witness: str, step: int, says: str
) -> None:
    steps = cell_steps(matrix.cell(marker, witness))
    assert steps.at == step
    assert says in steps.steps[step].html


def test_a_marked_word_is_shown_beside_the_calculated_one(matrix: ValidityMatrix) -> None:
    html = cell_steps(matrix.cell("valid", "root-shadow-narrows")).steps[1].html
    assert "root_role calculated, compared with what it has" in html
    assert "<td>it has</td><td>0x0</td>" in html
    # From bit 40 before, from bit 36 now, to bit 51.
    assert "<td>0xfff0000000000</td>" in html
    assert "<td>0xffff000000000</td>" in html


def test_another_cell_is_chosen_from_the_lists(matrix: ValidityMatrix) -> None:
    view = ValidityView(matrix, "valid", "nested-nonpaging")
    assert repr(view) == "<ValidityView nested-nonpaging under valid: needless>"
    view.marker.value = "level_zero"
    assert view.cell is matrix.cell("level_zero", "nested-nonpaging")
    heading, steps = view._body.children
    assert "Verdict: <b>fooled</b>" in heading.value
    assert "5 of 7" in steps.children[0].children[-1].value


def test_without_a_kernel_it_is_steps_that_fetch_nothing(matrix: ValidityMatrix) -> None:
    view = ValidityView(matrix, "level_zero", "nested-nonpaging")
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert remote_references(bundle["text/html"]) == []
    assert bundle["text/html"].count("<section id=") == 7


def test_a_cell_that_is_not_there_is_refused(matrix: ValidityMatrix) -> None:
    with pytest.raises(InputError, match="marker 'cpuid_stale' and witness 'nested-nonpaging': no such cell"):
        ValidityView(matrix, "cpuid_stale", "nested-nonpaging")
