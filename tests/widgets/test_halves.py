"""The picture of a 4-byte table and its shadow pages: ways that go wrong are told from those that do not."""

from __future__ import annotations

import re

import pytest

from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.widgets.halves import halves_picture
from mmulab.workload.two_halves import two_halves


def texts(derivation: str, seed: int = 1) -> tuple[list[str], str]:
    """Return the words of the picture, and its markup."""
    guest = two_halves(LINUX_6_1.with_(derivation=find_derivation(derivation)), seed)
    picture = halves_picture(guest.run().machine, guest.table_gfn, guest.pages, title="both halves")
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.markup), picture.markup


@pytest.mark.parametrize("seed", range(4))
def test_each_half_has_its_own_shadow_page(seed: int) -> None:
    guest = two_halves(LINUX_6_1.with_(derivation=find_derivation("parity")), seed)
    words, markup = texts("parity", seed)
    headings = [word for word in words if word.startswith("frame ")]
    assert sorted(word.rsplit(" ", 1)[1] for word in headings) == ["0", "1"]
    for gva, gfn in guest.pages.items():
        assert f"[{gva >> 12 & 1023}] gfn {gfn:#x}" in words
        assert f"[{gva >> 12 & 511}] maps gfn {gfn:#x}" in words
    assert "✗ wrong" not in words
    assert "stroke-dasharray" not in markup


def test_a_copied_quadrant_leads_the_second_half_into_the_first_page() -> None:
    guest = two_halves(LINUX_6_1.with_(derivation=find_derivation("copied")), 1)
    lower, upper = guest.pages.values()
    words, markup = texts("copied")
    assert len([word for word in words if word.startswith("frame ")]) == 1
    assert words.count("✗ wrong") == 1
    assert markup.count("stroke-dasharray") == 1
    mapped = [word for word in words if "maps gfn" in word]
    index = next(iter(guest.pages)) >> 12 & 511
    assert mapped in ([f"[{index}] maps gfn {gfn:#x}"] * 2 for gfn in (lower, upper))


def test_a_page_that_was_not_reached_has_no_way() -> None:
    guest = two_halves(LINUX_6_1.with_(derivation=find_derivation("parity")), 1)
    run = guest.run()
    elsewhere = next(iter(guest.pages)) ^ 0x1000
    picture = halves_picture(run.machine, guest.table_gfn, {elsewhere: 0x123}, title="none")
    assert "gfn 0x123" in picture.markup
    assert "maps gfn" not in picture.markup
