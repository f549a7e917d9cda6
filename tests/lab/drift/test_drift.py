"""Each change alone, left out, and all at once."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.behaviours import RELEASED
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12, find_kernel
from mmulab.kvm.roles.derivation import copied
from mmulab.lab.cases.works import find_works
from mmulab.lab.drift.drift import ALL, Drift, drift_each, parts
from mmulab.lab.drift.track import Effects

WORKS = ["sh/dirtylog-32", "sh/nonpaging", "ept0-host-noad/roots3-pae", "intel-sh/fuzz-32-mix-00"]


def drift_of(base: Kernel, other: Kernel, works: list[str], jobs: int = 1) -> Drift:
    found = find_works([f"conformance/6.1.192/{work}" for work in works])
    return Drift.of(base, other, list(drift_each(base, other, found, jobs=jobs)))


@pytest.fixture(scope="module")
def drift() -> Drift:
    return drift_of(LINUX_6_1, LINUX_6_12, WORKS)


def test_the_parts_lead_from_one_kernel_to_the_other() -> None:
    found = parts(LINUX_6_1, LINUX_6_12)
    assert [part.name for part in found] == list(RELEASED)
    for part in found:
        assert list(part.alone.changes_from(LINUX_6_1)) == [part.name]
        assert list(LINUX_6_12.changes_from(part.without)) == [part.name]


def test_a_field_is_a_part_too() -> None:
    other = LINUX_6_1.with_(derivation=copied).toggled(dummy_root=True, B2=True)
    assert [part.name for part in parts(LINUX_6_1, other)] == ["dummy_root", "derivation", "bugs"]
    assert parts(LINUX_6_1, other)[1].alone.derivation is copied
    assert parts(LINUX_6_1, other)[1].without.derivation is LINUX_6_1.derivation


def test_equal_kernels_are_refused() -> None:
    with pytest.raises(InputError, match=r"^kernels 6\.1\.192 and 6\.1\.192 are the same; name two that"):
        next(drift_each(LINUX_6_1, find_kernel("6.1"), []))


def test_leaving_clean_sptes_alone_costs_write_faults_after_dirty_logging(drift: Drift) -> None:
    (dirtylog,) = (e for e in drift.seen("sync_keeps_clean_sptes") if e.work.endswith("sh/dirtylog-32"))
    assert dirtylog.effects == Effects(faults=3)
    assert dirtylog.place == "conformance/6.1.192/sh/dirtylog-32 op 43 'wr s 4 40000008 55aa5590'"


def test_the_first_op_is_that_of_the_table_of_behaviours(drift: Drift) -> None:
    for name in ("invalidate_syncs_in_place", "cr0_wp_needs_paging"):
        first = drift.first(name)
        assert first is not None
        assert RELEASED[name].shows == f"{first.work.removeprefix('conformance/6.1.192/')} op {first.first}"


def test_a_change_that_needs_another_one_shows_only_when_left_out(drift: Drift) -> None:
    """Without the 64-bit error code nobody sees the bits that the other behaviour clears."""
    assert drift.seen("pdpte_violation_is_no_guest_page") == []
    (left_out,) = drift.seen("pdpte_violation_is_no_guest_page", added=False)
    assert drift.first("pdpte_violation_is_no_guest_page") == left_out
    assert drift.count("pdpte_violation_is_no_guest_page") == 1


def test_the_whole_is_what_both_kernels_do(drift: Drift) -> None:
    assert len(drift.seen(ALL)) == len(drift.works) == len(WORKS)
    assert drift.total(ALL) == Effects(
        *map(sum, zip(*(e.effects for e in drift.effects if e.change == ALL), strict=True))
    )
    assert drift.sum() == Effects(*map(sum, zip(*map(drift.total, drift.changes), strict=True)))


def test_of_one_work_it_is_the_rest_left_out(drift: Drift) -> None:
    one = drift.of_work(drift.works[1])
    assert one.works == ("conformance/6.1.192/sh/nonpaging",)
    assert "cr0_wp_needs_paging" in one.shown
    assert "invalidate_syncs_in_place" not in one.shown
    assert len({(record["change"], record["added"]) for record in one.records()}) == len(one.effects)


def test_the_other_way_round_everything_is_undone(drift: Drift) -> None:
    back = drift_of(LINUX_6_12, LINUX_6_1, WORKS)
    assert back.total(ALL) == Effects().minus(drift.total(ALL))
    for name in drift.changes:
        assert back.total(name) == Effects().minus(drift.total(name, added=False))


def test_two_processes_find_the_same(drift: Drift) -> None:
    assert drift_of(LINUX_6_1, LINUX_6_12, WORKS, jobs=2).effects == drift.effects


def test_a_kernel_that_fails_says_how_it_ended() -> None:
    (case,) = find_works(["stream/boot-686-nonpae"], records=10_000)
    other = LINUX_6_1.with_(derivation=copied)
    (rows,) = drift_each(LINUX_6_1, other, [case])
    whole, alone, left_out = rows
    assert (whole.change, alone.change, left_out.change) == (ALL, "derivation", "derivation")
    assert whole.end == alone.end != ""
    assert whole.place == "stream/boot-686-nonpae record 9241"  # the first page with a copied quadrant
