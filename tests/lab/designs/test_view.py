"""The matrix of a comparison: what it marks, and where its wrong cells lead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import copied
from mmulab.kvm.roles.design import DESIGNS, LAYOUT_6_1, RoleDesign
from mmulab.kvm.roles.word import RoleLayout
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs.compare import Comparison, compare
from mmulab.lab.designs.view import design_matrix, record_wrong, wrong_steps
from mmulab.machine import op as ops
from mmulab.report.page import remote_references
from mmulab.widgets.stepper import Stepper

SWITCH = "la57-switch-npt-4to5-l0-5"


class NoQuadrant(RoleDesign):
    """Both halves of a 4-byte table are one page: the MMU itself comes to nothing."""

    id = "F"
    name = "no_quadrant"
    layout = RoleLayout(tuple(f._replace(name="") if f.name == "quadrant" else f for f in LAYOUT_6_1.fields))

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        layout = self.layout
        word = layout.set(parent, "level", layout.get(parent, "level") - 1)
        word = layout.set(layout.set(word, "access", access), "direct", direct)
        return word & ~(layout.mask["invalid"] | layout.mask["passthrough"])


@pytest.fixture(scope="module")
def switches() -> Comparison:
    works = find_works(["la57-switch-*", "nonpt-shadow-32-l2-np-l0-4", "tdp-64-l0-4"])
    return compare(["D0", "D4", "D7"], works)


COPIED = LINUX_6_1.with_(derivation=copied)


def test_verdicts_are_those_of_the_comparison(switches: Comparison) -> None:
    matrix = design_matrix(switches)
    marks = {row.name: [verdict.mark for verdict in row.verdicts] for row in matrix.rows}
    assert marks[SWITCH] == ["✗ op 8", "✓", "✓†"]
    assert marks["nonpt-shadow-32-l2-np-l0-4"] == ["! op 4"] * 3
    assert set(marks["la57-switch-shadow-4to5-l0-5"]) == {"✓", "✓†"}
    assert len(marks) == len(switches.works)


def test_equal_steps_on_one_page_are_kept_apart(switches: Comparison) -> None:
    """Steps without a script are radio buttons: two groups of one name would be one."""
    cell = switches.cell("pre_fix", SWITCH)
    pages = [
        wrong_steps(cell).html(),
        design_matrix(switches, name="one").html(),
        design_matrix(switches, name="two").html(),
    ]
    names = [set(re.findall(r'<input type="radio" name="(\w+)"', page)) for page in pages]
    assert all(names)
    assert len(set.union(*names)) == sum(map(len, names))


def test_page_has_a_view_for_each_wrong_access(switches: Comparison) -> None:
    html = design_matrix(switches).html()
    assert remote_references(html) == []
    assert html.count('<section class="view"') == 3, "two switches, and one that is Linux's own"
    assert "the page is found, though it is not the one wanted" in html
    assert "expected gpa 0x300000; reached gpa 0x100000" in html


def test_click_opens_a_stepper_at_the_access(switches: Comparison) -> None:
    matrix = design_matrix(switches)
    place = next(place for place in matrix.wrong if matrix.rows[place[0]].name == SWITCH)
    stepper = matrix._live(*place)
    assert isinstance(stepper, Stepper)
    look = stepper.look
    assert isinstance(look.op, ops.Read)
    assert (look.event, look.op_name, look.op.gva) == (None, "op 8", 0x3000)
    assert look.found_wrongly
    assert look.page is not None
    assert (look.page.page.gfn, look.page.page.level) == (0x14, 5)
    matrix.buttons[place].click()
    assert SWITCH in matrix.view.children[0].value


def test_moments_end_with_the_wrong_op(switches: Comparison) -> None:
    wrong = record_wrong(switches.cell("pre_fix", SWITCH))
    moment = wrong.recording.moment(wrong.moments[-1][0])
    op = wrong.recording.op(moment.op)
    assert moment.event is None
    assert isinstance(op, ops.Read)
    assert op.gva == 0x3000
    assert wrong.recording.config.kernel.design is DESIGNS["pre_fix"]
    with pytest.raises(ValueError, match=f"{SWITCH} is correct under passthrough"):
        record_wrong(switches.cell("passthrough", SWITCH))


@pytest.mark.parametrize("case", ["shadow-32-l0-4", "npt-32-l2-np-l0-4"])
def test_an_access_that_faults_for_ever_is_shown_itself(case: str) -> None:
    (cell,) = compare([NoQuadrant()], find_works([case])).cells
    assert cell.first_wrong is not None
    assert cell.first_wrong.seen == "the access faults again and again, and KVM never mends it"
    wrong = record_wrong(cell)
    number, title = wrong.moments[-1]
    assert f"op {cell.first_wrong.op} '{cell.first_wrong.text}'" in title
    assert wrong.recording.moment(number).event is None
    assert wrong.recording.at(wrong.recording.first_event(wrong.recording.moment(number).op) + 1)
    assert "exits again and again" in wrong_steps(cell).html()


def test_a_run_that_ends_badly_after_its_wrong_op_is_shown_with_it() -> None:
    """The word before 2.6.35 has no smm: pages are zapped in the wrong address space at the end."""
    wrong_cells = [c for c in compare(["D7"], find_works(["smm-*"])).cells if c.first_wrong]
    assert wrong_cells
    for cell in wrong_cells:
        assert cell.first_wrong is not None
        wrong = record_wrong(cell)
        assert f"op {cell.first_wrong.op}" in wrong.moments[-1][1]
        assert wrong_steps(cell).html()


def test_a_boot_is_shown_at_its_record() -> None:
    boot = find_works(["stream/boot-686-nonpae"], records=10_000)
    (cell,) = compare(["D4"], boot, kernel=COPIED).cells
    assert cell.first_wrong is not None
    wrong = record_wrong(cell, COPIED)
    op = wrong.recording.op(wrong.recording.moment(wrong.moments[-1][0]).op)
    assert (getattr(op, "gva", None), cell.first_wrong.op) == (cell.first_wrong.gva, 9657)
    assert wrong.recording.name_of_op(wrong.recording.moment(wrong.moments[-1][0]).op) == "record 9657"
    assert list(wrong.recording.verdicts.values()) == [cell.first_wrong.said]
    (row,) = design_matrix(compare(["D4"], boot, kernel=COPIED), kernel=COPIED).rows
    assert row.verdicts[0].mark == "✗ record 9657"


FAILS = """
from mmulab.kvm.roles.design import Passthrough

class Leaf(Passthrough):
    name = "leaf"

    def facts(self, role):
        found = super().facts(role)
        return None if found.level == 1 else found

class Root(Passthrough):
    name = "root"

    def pack(self, facts, cpu):
        return None if facts.level == 3 else super().pack(facts, cpu)
"""


def test_a_boot_in_which_the_mmu_fails_is_shown_up_to_there(tmp_path: Path) -> None:
    source = tmp_path / "fails.py"
    source.write_text(FAILS)
    works = find_works(["stream/boot-686-nonpae"], records=20000)
    (cell,) = compare([f"{source}:Leaf"], works).cells
    found = record_wrong(cell)
    ((number, title),) = found.moments
    assert title == "before record 9,241, in which the MMU fails"
    assert number > 9241, "the moments of all that went before are there"


def test_a_failure_in_the_beginning_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "fails.py"
    source.write_text(FAILS)
    found = compare([f"{source}:Root"], find_works(["shadow-32-l0-4", "stream/boot-686-nonpae"], records=100))
    for cell in found.cells:
        says = f"{cell.case.name} under root: nothing before the failure can be shown"
        with pytest.raises(InputError, match=says):
            record_wrong(cell)
    assert "nothing before the failure can be shown" in design_matrix(found).html()
