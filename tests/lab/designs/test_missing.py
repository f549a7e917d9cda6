"""The bit that a failing access lacked, among all that the word does not say."""

from __future__ import annotations

from itertools import product

import pytest

from mmulab.kvm.roles.design import DESIGNS, LAYOUT_6_1, Passthrough, RoleDesign
from mmulab.kvm.roles.word import BitField, CpuRole, RoleFacts, RoleLayout
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs.compare import DesignCell, compare
from mmulab.lab.designs.missing import WithField

WHOLE = DESIGNS["passthrough"]


def lacking(*names: str) -> RoleDesign:
    """Return 6.1's word without some fields."""
    fields = tuple(BitField("" if f.name in names else f.name, f.width) for f in LAYOUT_6_1.fields)

    class Lacking(Passthrough):
        id, name, layout = "", f"no_{'_'.join(names)}", RoleLayout(fields)

        def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
            return super().pack(facts._replace(**dict.fromkeys(names, False)), cpu)

    return Lacking()


def on(design: RoleDesign, case: str) -> DesignCell:
    (cell,) = compare([design], find_works([case])).cells
    return cell


def test_a_word_that_lacks_only_cr0_wp_is_right() -> None:
    assert on(lacking("cr0_wp"), "mixed-smep-32").verdict == "correct"


@pytest.mark.parametrize("names", [("smep_andnot_wp",), ("cr0_wp", "smep_andnot_wp")], ids="+".join)
def test_the_bit_that_the_access_lacked_is_named(names: tuple[str, ...]) -> None:
    cell = on(lacking(*names), "mixed-smep-32")
    assert cell.verdict == "wrong"
    assert cell.collision is not None
    assert cell.collision.differ == ("smep_andnot_wp",)


def test_the_same_word_lacks_another_bit_in_another_case() -> None:
    cell = on(lacking("cr0_wp", "smep_andnot_wp"), "mixed-wp-32")
    assert cell.collision is not None
    assert cell.collision.differ == ("cr0_wp",)


def test_a_field_that_is_given_back_makes_the_word_whole() -> None:
    mended = WithField(lacking("cr0_wp"), WHOLE, "cr0_wp")
    base = WHOLE.facts(0x1713)
    for wp, nx in product((False, True), repeat=2):
        facts = base._replace(cr0_wp=wp, efer_nx=nx)
        word = mended.pack(facts, CpuRole(level=4))
        assert mended.facts(word) == facts
        child = mended.child(word, direct=False, access=7, quadrant=0)
        assert (mended.facts(child).cr0_wp, mended.facts(child).level) == (wp, facts.level - 1)
