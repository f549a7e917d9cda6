"""Tracks: effects counted, behaviours that were asked for, the first thing that differs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import paths
from mmulab.conform.recording import read_recording
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12, find_kernel
from mmulab.kvm.roles.derivation import copied
from mmulab.lab.cases.works import find_works
from mmulab.lab.drift.track import Effects, Track, Tracks, first_difference

DIRTYLOG = "conformance/6.1.192/sh/dirtylog-32"
NUMBERS = st.lists(st.integers(0, 3), max_size=6)


def tracks_of(work: str, records: int | None = None) -> Tracks:
    (case,) = find_works([work], records=records)
    return Tracks(case)


def of(marks: list[int]) -> Track:
    track = Track(LINUX_6_1)
    for where, mark in enumerate(marks):
        track.keep(where // 2, mark)
    return track


def test_effects_are_what_the_recording_of_either_kernel_has() -> None:
    work = tracks_of(DIRTYLOG)
    for kernel in (LINUX_6_1, LINUX_6_12):
        path = paths.data(f"{DIRTYLOG.replace('6.1.192', kernel.name)}.jsonl.xz")
        names = [type(event).__name__ for op in read_recording(path).ops for event in op.events]
        wanted = Effects(
            names.count("kvm_page_fault"),
            names.count("kvm_flush_remote_tlbs"),
            names.count("kvm_mmu_sync_page"),
            names.count("kvm_mmu_prepare_zap_page"),
            names.count("kvm_emulate_insn"),
        )
        assert work.on(kernel).effects == wanted
        assert all(wanted)


@pytest.mark.parametrize(
    ("work", "records"),
    [(DIRTYLOG, None), ("conformance/6.1.192/ept0/roots3-pae", None), ("stream/boot-686-nonpae", 10_000)],
)
def test_a_behaviour_that_is_not_asked_for_changes_nothing(work: str, records: int | None) -> None:
    run = tracks_of(work, records)
    watched = run.on(LINUX_6_1, watched=True)
    assert first_difference(run.on(LINUX_6_1), watched) is None
    others = [name for name in CHANGES if name not in watched.asked]
    assert others
    assert watched.asked
    for name in others:
        changed = run.on(LINUX_6_1.toggled(**{name: not CHANGES[name].removed}))
        assert first_difference(watched, changed) is None, name


def test_a_boot_is_told_by_its_records() -> None:
    run = tracks_of("stream/boot-686-nonpae", 10_000)
    plain = run.on(LINUX_6_1)
    assert (plain.texts, plain.end) == ({}, "")
    assert first_difference(plain, run.on(find_kernel("6.1+invalidate_syncs_in_place"))) == 9724
    broken = run.on(LINUX_6_1.with_(derivation=copied))
    assert broken.end
    assert broken.where[-1] == 9657


@given(NUMBERS, NUMBERS)
def test_the_first_difference_is_the_first(ours: list[int], theirs: list[int]) -> None:
    found = first_difference(of(ours), of(theirs))
    if ours == theirs:
        assert found is None
        return
    assert found is not None
    assert ours[: 2 * found] == theirs[: 2 * found]
    assert ours[: 2 * found + 2] != theirs[: 2 * found + 2]


def test_equal_fields_of_another_event_are_a_difference() -> None:
    one, other = Track(LINUX_6_1), Track(LINUX_6_1)
    one.keep(4, Effects(1))
    other.keep(4, (1, 0, 0, 0, 0))
    assert first_difference(one, other) == 4


def test_effects_add_up() -> None:
    steps = [Effects(1, 2, 3, 4, 5), Effects(0, 5, 1, 1, 1), Effects(2)]
    gone = [later.minus(earlier) for earlier, later in pairwise(steps)]
    assert gone[0].plus(gone[1]).plus(steps[0]) == steps[-1]
    assert str(Effects(0, -3, 0, 2)) == "flushes -3, zaps +2"
    assert str(Effects()) == "none"
