"""What is counted of a run: pages, sharing, which field tells pages apart."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.designs.measures import Lookup, Observed, TellingApart, measure, telling_apart

D4 = DESIGNS["passthrough"]
WORD = D4.layout.pack(level=3, access=7, efer_nx=1, cr0_wp=1)


def lookup(gfn: int, role: int = WORD, *, created: bool = True, op: int = 0) -> Lookup:
    return Lookup(op, gfn, role, created)


def observed(*lookups: Lookup) -> Observed:
    return Observed(lookups, page_faults=3, syncs=2, zaps=1)


def test_events_and_statistics_become_counts() -> None:
    zap = ev.kvm_mmu_prepare_zap_page
    counts = Counter[type[ev.Event]]({ev.kvm_mmu_sync_page: 4, zap: 5, ev.kvm_mmu_get_page: 6})
    found = Observed.of([lookup(1), lookup(1, created=False)], counts, {"pf_taken": 7})
    assert (found.page_faults, found.syncs, found.zaps, found.created) == (7, 4, 5, 1)


def test_a_field_works_where_a_pair_differs_in_it_alone() -> None:
    set_ = D4.layout.set
    wp, both = set_(WORD, "cr0_wp", 0), set_(set_(WORD, "cr0_wp", 0), "access", 3)
    apart = telling_apart(D4, [lookup(1), lookup(1, wp), lookup(1, both), lookup(2, both)])
    assert apart == TellingApart(3, {"cr0_wp": 2, "access": 2}, {"cr0_wp": 1, "access": 1})
    # Words that were only found again, and words of different gfns, are no pairs.
    assert telling_apart(D4, [lookup(1), lookup(1, wp, created=False), lookup(2, wp)]).pairs == 0


def test_sums_of_pairs() -> None:
    one, other = TellingApart(1, {"access": 1}, {}), TellingApart(2, {"access": 2, "level": 1}, {"level": 1})
    assert one + other == TellingApart(3, {"access": 3, "level": 1}, {"level": 1})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, (1 << 19) - 1)), max_size=12))
def test_pairs_are_those_of_distinct_words(made: list[tuple[int, int]]) -> None:
    apart = telling_apart(D4, [lookup(gfn, word) for gfn, word in made])
    sizes = Counter(gfn for gfn, _ in set(made))
    assert apart.pairs == sum(n * (n - 1) // 2 for n in sizes.values())
    assert sum(apart.alone.values()) <= apart.pairs <= sum(apart.differ.values())


def test_duplicates_and_lost_sharing_are_against_the_base() -> None:
    base = observed(lookup(1), lookup(2), lookup(1, created=False), lookup(3))
    run = observed(lookup(1), lookup(2), lookup(1, WORD ^ 1), lookup(2, WORD ^ 1))
    found = measure(D4, run, "coarse", base)
    assert (found.shadow_pages, found.found, found.duplicated, found.sharing_lost) == (4, 0, 2, 1)
    assert (found.coarsest, found.page_faults, found.syncs, found.zaps) == ("coarse", 3, 2, 1)
    alone = measure(D4, run, "", None)
    assert (alone.duplicated, alone.sharing_lost) == (0, 0)
