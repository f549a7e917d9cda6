"""Two lists of events beside each other: what belongs together, what moved, what is alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.conform.align import Pair, align

FLUSH = ev.kvm_flush_remote_tlbs()
LOAD = ev.kvm_mmu_load()

events = st.one_of(
    st.just(FLUSH),
    st.just(LOAD),
    st.builds(ev.kvm_mmu_set_accessed_bit, st.integers(0, 2)),
    st.builds(ev.kvm_mmu_set_dirty_bit, st.integers(0, 2)),
    st.builds(ev.kvm_mmu_spte_requested, st.integers(0, 2), st.integers(0, 1), st.integers(1, 2)),
)
lists = st.lists(events, max_size=12)


def requested(gfn: int, pfn: int = 0, level: int = 1) -> ev.Event:
    return ev.kvm_mmu_spte_requested(gfn, pfn, level)


@given(lists)
def test_a_list_agrees_with_itself(ours: list[ev.Event]) -> None:
    assert align(ours, ours) == [Pair(at, at) for at in range(len(ours))]


@given(lists, lists)
def test_each_event_is_in_one_pair_and_a_pair_has_one_type(
    ours: list[ev.Event], theirs: list[ev.Event]
) -> None:
    pairs = align(ours, theirs)
    assert sorted(p.ours for p in pairs if p.ours is not None) == list(range(len(ours)))
    assert sorted(p.theirs for p in pairs if p.theirs is not None) == list(range(len(theirs)))
    for i, j, moved in pairs:
        if i is not None and j is not None:
            assert type(ours[i]) is type(theirs[j])
            assert ours[i] == theirs[j] or not moved
        else:
            assert not (i is j is None)
            assert not moved


@given(lists, lists)
def test_exchanged_sides_give_the_exchanged_pairs(ours: list[ev.Event], theirs: list[ev.Event]) -> None:
    exchanged = Counter(Pair(p.theirs, p.ours, p.moved) for p in align(theirs, ours))
    assert Counter(align(ours, theirs)) == exchanged


@given(lists, lists)
def test_what_did_not_move_is_in_one_order_on_both_sides(
    ours: list[ev.Event], theirs: list[ev.Event]
) -> None:
    fixed = [
        (p.ours, p.theirs) for p in align(ours, theirs) if None not in (p.ours, p.theirs) and not p.moved
    ]
    assert fixed == sorted(fixed)
    assert [j for _, j in fixed] == sorted(j for _, j in fixed if j is not None)


def test_an_event_between_others_is_alone() -> None:
    assert align([LOAD, FLUSH], [LOAD, requested(1), FLUSH]) == [Pair(0, 0), Pair(None, 1), Pair(1, 2)]


def test_an_event_behind_another_has_moved() -> None:
    a, b = requested(1), requested(2)
    pairs = align([FLUSH, a, b], [a, b, FLUSH])
    assert pairs == [Pair(0, 2, True), Pair(1, 0), Pair(2, 1)]


def test_events_about_one_place_belong_together() -> None:
    pairs = align([requested(1, 7), requested(2, 7)], [requested(2, 8), requested(3, 8)])
    assert pairs == [Pair(0, None), Pair(1, 0), Pair(None, 1)]


def test_types_that_look_alike_are_told_apart() -> None:
    dirty, accessed = ev.kvm_mmu_set_dirty_bit(8), ev.kvm_mmu_set_accessed_bit(8)
    assert dirty == accessed  # both are tuples of one number
    assert align([dirty], [accessed]) == [Pair(0, None), Pair(None, 0)]
