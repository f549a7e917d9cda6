"""The matrix of markers by witnesses: what each verdict rests on."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.validity import Validity
from mmulab.lab.validity.matrix import (
    ValidityCell,
    ValidityMatrix,
    Verdict,
    chosen,
    find_witness,
    markers,
    validity_matrix,
    witnesses,
)

NOTHING = Validity("nothing", "no mark at all", "control")
INVALID_ALONE = Validity("invalid_alone", "root_role.invalid alone", "control", (("root_role.invalid", 1),))
NO_STALENESS = ("root-shadow-unrelated", "root-shadow-nonpaging")
"""Witnesses in which nothing depends on the CPUID that changes."""
UNSEEN = ("root-shadow-twice", "root-shadow-reuse", "guest-npt-twice", "nested-nonpaging", "free-roots-lock")
"""Witnesses in which the guest cannot see a stale context."""


@pytest.fixture(scope="module")
def matrix() -> ValidityMatrix:
    return validity_matrix([*markers().values(), NOTHING, INVALID_ALONE])


def wrong(matrix: ValidityMatrix, marker: str) -> dict[str, Verdict]:
    found = {name: matrix.cell(marker, name).verdict for name in witnesses()}
    return {name: verdict for name, verdict in found.items() if verdict not in ("right", "needless")}


def test_each_witness_bites(matrix: ValidityMatrix) -> None:
    """A witness that is right without any mark would show nothing."""
    for name in witnesses():
        verdict = matrix.cell("nothing", name).verdict
        if name in NO_STALENESS:
            assert verdict is Verdict.RIGHT
        else:
            assert verdict is (Verdict.FOOLED if name in UNSEEN else Verdict.GUEST), name


def test_the_level_is_no_mark_of_a_nonpaging_l2_and_nothing_comes_of_it(matrix: ValidityMatrix) -> None:
    assert wrong(matrix, "level_zero") == {"nested-nonpaging": "fooled", "guest-npt-in-l2": "guest"}
    (found,) = matrix.cell("level_zero", "nested-nonpaging").findings
    assert (found.context, found.stale, found.text) == ("nested_mmu", False, "vmrun b000")


def test_a_flag_handed_down_misses_the_contexts_not_in_use(matrix: ValidityMatrix) -> None:
    assert wrong(matrix, "force_role_reset") == {
        "guest-npt-narrows": "guest",
        "guest-npt-widens": "guest",
        "guest-npt-in-l2": "guest",
        "guest-ept-narrows": "guest",
        "nested-nonpaging": "fooled",
        "nested-paging": "guest",
    }
    widens = matrix.cell("force_role_reset", "guest-npt-widens").difference
    assert widens is not None
    assert widens.expected.startswith("ok ")
    assert widens.seen.startswith("vmexit code=400 ")


def test_maxphyaddr_in_the_role_is_blind_for_other_features(matrix: ValidityMatrix) -> None:
    assert wrong(matrix, "maxphyaddr") == {"root-shadow-gbpages": "guest"}


@pytest.mark.parametrize("marker", ["valid", "zero_word"])
def test_a_cleared_word_takes_the_wrong_lock(matrix: ValidityMatrix, marker: str) -> None:
    assert wrong(matrix, marker) == {"free-roots-lock": "host", "guest-npt-in-l2": "guest"}
    (words,) = matrix.cell(marker, "free-roots-lock").asserts
    assert "mmu_lock held for writing, root_role 0x0" in words


def test_the_mend_of_2024_takes_the_right_lock(matrix: ValidityMatrix) -> None:
    assert matrix.cell("invalid_bit", "free-roots-lock").verdict is Verdict.RIGHT
    assert wrong(matrix, "invalid_bit") == {"guest-npt-in-l2": "guest"}


def test_a_bit_of_its_own_harms_no_context_in_use(matrix: ValidityMatrix) -> None:
    assert wrong(matrix, "cpuid_stale") == {}
    ends = {name: matrix.cell(name, "guest-npt-in-l2").difference for name in ("valid", "invalid_bit")}
    assert [end.seen if end else None for end in ends.values()] == [
        "hang errno=14 EFAULT",
        "no progress: the instruction exits again and again",
    ]


def test_half_of_the_mend_is_no_mark_where_the_root_role_is_not_compared(matrix: ValidityMatrix) -> None:
    found = wrong(matrix, "invalid_alone")
    assert {name for name, verdict in found.items() if verdict == "guest"} == {
        "guest-npt-in-l2",
        "guest-ept-narrows",
        "nested-paging",
    }
    assert "guest-npt-narrows" in found  # nested_mmu; guest_mmu with NPT is compared by its root role too
    assert matrix.cell("invalid_alone", "guest-npt-narrows").difference is None


def test_needless_means_nothing_differs(matrix: ValidityMatrix) -> None:
    cell = matrix.cell("valid", "root-shadow-unrelated")
    assert cell.verdict is Verdict.NEEDLESS
    (decision,) = next(step for step in cell.run.steps if step.accepted).decisions
    assert decision.old_paging == decision.paging
    assert not decision.unchanged
    twice = matrix.cell("valid", "guest-npt-twice")
    assert [found.context for found in twice.findings] == ["guest_mmu", "nested_mmu"]
    assert matrix.cell("maxphyaddr", "guest-npt-twice").verdict is Verdict.RIGHT


def test_what_no_marker_can_mend(matrix: ValidityMatrix) -> None:
    beyond = [name for name in witnesses() if matrix.beyond(name)]
    assert beyond == ["root-shadow-reuse", "guest-npt-in-l2"]
    reuse = matrix.beyond("root-shadow-reuse")
    assert reuse is not None
    assert (reuse.wanted, reuse.reached) == ("#PF 0x9 (P|RSVD)", 0x4000100000)


def test_everywhere_else_a_right_cell_is_right_by_the_guests_tables(matrix: ValidityMatrix) -> None:
    """The reference is no authority: a walk of the guest's tables must agree with it."""
    for marker in matrix.markers:
        for witness in matrix.witnesses:
            cell = matrix.cell(marker.name, witness.name)
            if cell.difference is None and matrix.beyond(witness.name) is None:
                assert cell.run.wrong is None


def test_a_cell_says_what_it_rests_on(matrix: ValidityMatrix) -> None:
    def detail(marker: str, witness: str) -> str:
        return matrix.cell(marker, witness).detail

    assert detail("valid", "root-shadow-narrows") == ""
    assert detail("nothing", "root-shadow-narrows").startswith("op 1 'rd s 4 40000000': expected exc vec=e ")
    assert detail("nothing", "root-shadow-twice").endswith("root_mmu is taken for valid, and is stale")
    assert detail("valid", "root-shadow-unrelated").endswith("root_mmu is configured again, as it was")


def test_it_shows_itself(matrix: ValidityMatrix) -> None:
    small = validity_matrix(["level_zero", NOTHING], ["nested-nonpaging", "root-shadow-reuse"])
    assert small.rows() == [
        ["nested-nonpaging", "fooled", "fooled"],
        ["root-shadow-reuse", "right", "fooled"],
    ]
    assert repr(small).splitlines()[0] == "witness  level_zero  nothing"
    html = small._repr_html_()
    assert html.count("○ unseen</td>") == 3
    assert html.count("wrong even if no configuration is skipped") == 1
    assert "nested_mmu is taken for valid, and nothing in it differs" in html


def test_running_again_gives_the_same(matrix: ValidityMatrix) -> None:
    again = validity_matrix([*markers().values(), NOTHING, INVALID_ALONE])
    assert again.rows() == matrix.rows()
    cells: list[ValidityCell] = [m.cell("force_role_reset", "guest-npt-narrows") for m in (matrix, again)]
    assert cells[0] == cells[1]


def test_unknown_names_are_refused(matrix: ValidityMatrix) -> None:
    with pytest.raises(InputError, match="witness 'x': unknown; the witnesses are root-shadow-narrows, "):
        find_witness("x")
    with pytest.raises(InputError, match="role validity 'x': unknown"):
        validity_matrix(["x"])
    with pytest.raises(InputError, match="no such cell in this matrix"):
        matrix.cell("valid", "x")


def test_names_are_chosen_by_patterns() -> None:
    assert chosen("nested-* root-tdp-*", witnesses()) == [
        "root-tdp-narrows",
        "root-tdp-widens",
        "nested-nonpaging",
        "nested-paging",
    ]
    with pytest.raises(InputError, match="'l3-\\*': fits none of root-shadow-narrows, "):
        chosen("* l3-*", witnesses())
