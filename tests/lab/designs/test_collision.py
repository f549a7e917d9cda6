"""The first page that a design shares and the default design does not."""

from __future__ import annotations

from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.designs.collision import Collision, collision
from mmulab.lab.designs.measures import Lookup

D4 = DESIGNS["passthrough"]
ON = D4.layout.pack(level=3, access=7, cr0_wp=1)
OFF = D4.layout.pack(level=3, access=7)
KEY = OFF
"""What a design without CR0.WP has for both."""


def found(ours: list[Lookup], theirs: list[Lookup], until: int = 9) -> Collision | None:
    return collision(ours, D4, theirs, until)


def test_the_words_and_the_fact_that_differs() -> None:
    ours = [Lookup(1, 5, KEY, True), Lookup(4, 5, KEY, False)]
    theirs = [Lookup(1, 5, ON, True), Lookup(4, 5, OFF, True)]
    shared = found(ours, theirs)
    assert shared == Collision(4, 5, KEY, ON, OFF, 1, ("cr0_wp",), D4)
    assert shared.record() == {
        "op": 4,
        "gfn": 5,
        "shared": KEY,
        "made": ON,
        "wanted": OFF,
        "made_op": 1,
        "differ": ["cr0_wp"],
        "reference": "passthrough",
    }
    assert str(shared) == (
        f"gfn 0x5: the page of op 1 is found again in op 4 under {KEY:#x}; the wanted page differs in cr0_wp"
    )


def test_the_same_page_found_by_both_is_none() -> None:
    ours = [Lookup(1, 5, KEY, True), Lookup(4, 5, KEY, False)]
    assert found(ours, [Lookup(1, 5, ON, True), Lookup(4, 5, ON, False)]) is None


def test_a_page_made_again_is_none() -> None:
    """The default design made the page anew because the first was zapped: the word is the same."""
    ours = [Lookup(1, 5, KEY, True), Lookup(4, 5, KEY, False)]
    assert found(ours, [Lookup(1, 5, ON, True), Lookup(4, 5, ON, True)]) is None


def test_what_comes_after_the_wrong_access_does_not_count() -> None:
    ours = [Lookup(1, 5, KEY, True), Lookup(4, 5, KEY, False)]
    theirs = [Lookup(1, 5, ON, True), Lookup(4, 5, OFF, True)]
    assert found(ours, theirs, until=3) is None
    assert found(ours, theirs, until=4) is not None


def test_lookups_are_matched_by_op_gfn_and_order() -> None:
    """What one side does besides, at other gfns, shifts nothing."""
    ours = [Lookup(1, 5, KEY, True), Lookup(1, 6, KEY, True), Lookup(2, 5, KEY, False)]
    theirs = [Lookup(1, 7, ON, True), Lookup(1, 5, ON, True), Lookup(2, 8, ON, True), Lookup(2, 5, OFF, True)]
    shared = found(ours, theirs)
    assert shared is not None
    assert (shared.gfn, shared.made_op, shared.op) == (5, 1, 2)
