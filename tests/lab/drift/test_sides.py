"""Both sides of a change: recorded up to the op where it shows, and set side by side."""

from __future__ import annotations

import pytest

from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.lab.cases.works import find_works
from mmulab.lab.drift.drift import ALL, Drift, drift_each
from mmulab.lab.drift.sides import both_sides, side_by_side


def drift_of(work: str, records: int | None = None) -> Drift:
    works = find_works([work], records=records)
    return Drift.of(LINUX_6_1, LINUX_6_12, list(drift_each(LINUX_6_1, LINUX_6_12, works)))


@pytest.fixture(scope="module")
def drift() -> Drift:
    return drift_of("conformance/6.1.192/sh/dirtylog-32")


def test_each_side_is_its_kernel_at_the_op(drift: Drift) -> None:
    without, with_it = both_sides(drift, "sync_keeps_clean_sptes")
    assert (without.kernel, str(with_it.kernel)) == (LINUX_6_1, "6.1.192+sync_keeps_clean_sptes")
    assert with_it.kernel.behaviours.sync_keeps_clean_sptes
    assert without.texts[: without.at] == with_it.texts[: with_it.at]
    assert without.texts[without.at].startswith("kvm_exit: reason db")
    assert with_it.texts[with_it.at].startswith("kvm_exit: reason pf")
    assert without.recording.op(without.op) == with_it.recording.op(with_it.op)


def test_its_moments_begin_where_the_sides_part(drift: Drift) -> None:
    for change in (*drift.shown, ALL):
        for side in both_sides(drift, change):
            moment = side.recording.moment(side.moment)
            assert moment.op == side.op
            shown = side.steps()
            assert shown.steps[-1].title == "the op has ended"
            assert len(shown.steps) == min(len(side.events) - side.at + 1, 5)
            if len(shown.steps) > 1:
                name = type(side.events[side.at]).__name__
                assert shown.steps[0].title == f"event {side.at + 1}: {name}"


def test_a_change_that_shows_nowhere_has_no_sides(drift: Drift) -> None:
    with pytest.raises(ValueError, match="dummy_root shows nowhere in these 1 pieces of work"):
        both_sides(drift, "dummy_root")


def test_a_boot_is_recorded_up_to_its_record() -> None:
    boot = drift_of("stream/boot-686-nonpae", 9_800)
    without, with_it = both_sides(boot, "ranged_flushes_are_calls")
    assert without.texts != with_it.texts
    assert without.recording.op(without.op).gva == with_it.recording.op(with_it.op).gva


def test_the_picture_has_every_event_once_and_frames_what_one_side_has(drift: Drift) -> None:
    without, with_it = both_sides(drift, "ranged_flushes_are_calls")
    text = side_by_side(without, with_it, title="flushes")._repr_svg_()
    assert text.count("kvm_flush_remote_tlbs_with_address") == 1
    assert "#fff3bf" in text
    same = side_by_side(without, without, title="the same")._repr_svg_()
    assert "#fff3bf" not in same
