"""How many upper-level pages one gfn can have, against counts by hand and the kernel's own figures."""

from __future__ import annotations

from math import isnan

import pytest

from mmulab.kvm.roles.design import DESIGNS, Passthrough
from mmulab.kvm.roles.root_strategy import shadow
from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.lab.designs import page_bound as counting
from mmulab.lab.designs.page_bound import WRITE_TRACK_BITS, page_bound

D4 = DESIGNS["passthrough"]


def test_pages_of_one_gfn_under_6_1s_word() -> None:
    """Of a guest without TDP, counted by hand.

    Four quadrants of a 32-bit directory; the root of 5-level paging; at levels 4, 3 and 2 one page for
    each of eight accesses. Each under five settings of WP, SMEP and SMAP (the latter two count only while
    WP is 0), in L1 and in L2. EFER.NX is always 1 in the word (``kvm_init_shadow_mmu``).
    """
    bound = page_bound(D4)
    assert bound.possible == (4 + 1 + 3 * 8) * 5 * 2
    assert bound.raw_bits == 19, "the comment above union kvm_mmu_page_role counts as many"
    assert bound.fits
    assert 2**bound.bits == pytest.approx(bound.possible)


def test_what_the_designs_cost_in_bits() -> None:
    """Spare bits as the kernel's own unions have them: 6 in 5.17, 2 with glevel:4, 5 with passthrough:1."""
    spare = {name: 32 - design.layout.used_bits for name, design in DESIGNS.items()}
    assert (spare["pre_fix"], spare["glevel"], spare["passthrough"]) == (6, 2, 5)
    raw = {name: page_bound(design).raw_bits for name, design in DESIGNS.items()}
    assert (raw["pre_fix"], raw["passthrough"], raw["glevel"]) == (18, 19, 22)


def test_modes_in_the_key_allow_more_pages() -> None:
    possible = {name: page_bound(design).possible for name, design in DESIGNS.items()}
    assert possible["passthrough_levels"] == possible["target_level"] == possible["passthrough"]
    # PAE's one directory becomes a page of its own: five settings, two worlds.
    assert possible["cpu_mode_passthrough"] == possible["passthrough"] + 5 * 2
    # With LA57 in the key two page modes of 64-bit paging double as well: a root, and levels 3 and 2.
    assert possible["cpu_mode"] == possible["cpu_mode_passthrough"] + (1 + 2 * 8) * 5 * 2
    assert possible["glevels"] < possible["pre_fix"]
    assert all(number < 1 << WRITE_TRACK_BITS for number in possible.values())


def test_a_count_beyond_the_counter_is_said() -> None:
    bound = page_bound(D4)._replace(possible=1 << WRITE_TRACK_BITS)
    assert not bound.fits
    assert bound._replace(possible=(1 << WRITE_TRACK_BITS) - 1).fits


def test_other_roots_do_not_change_the_count() -> None:
    """Portals shadow no table, so they are not counted."""
    assert page_bound(D4, shadow).possible == page_bound(D4).possible


class NoLevel5(Passthrough):
    """Has no word for a page of level 5."""

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        if facts.level == 5:
            raise ValueError("no room for level 5")
        return super().pack(facts, cpu)


class NeverSettles(Passthrough):
    """A page's child has its level, and a number that no other page had."""

    number = 0

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        self.number += 1
        return parent & 0xF | self.number << 4


def test_a_design_that_fails_in_a_context_has_no_bound_and_the_reason() -> None:
    bound = page_bound(NoLevel5())
    assert (bound.possible, bound.raw_bits, bound.fits) == (None, 19, None)
    assert "no room for level 5" in bound.missing
    assert isnan(bound.bits)


def test_counting_ends_where_words_have_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_TOO_MANY", 1000)
    bound = page_bound(NeverSettles())
    assert bound.possible is None
    assert "more than 1000 words in one context" in bound.missing
