"""Every policy on random guests: what the guest's own tables say must be seen once it has flushed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mmulab.check.allowed import two_walks
from mmulab.kvm.invariants import violations
from mmulab.kvm.sync.find import find_sync
from mmulab.machine import op as ops
from mmulab.machine.op import OutcomeKind
from mmulab.x86.pferr import PFERR_PRESENT_MASK
from mmulab.x86.regs import X86_CR4_PGE
from tests.kvm.guest import DATA, GVA, PAGE, G, Guest, cr4

WINDOW = GVA + 0x40000000
TABLES, ENTRIES = 9, 2
"""More tables than the array of 2008 has places; the last two hold no global translation."""
POLICIES = (
    "unsync_children",
    "write_protect",
    "oos_2008",
    "oos_2008+globals=list",
    "oos_2008+index=lru",
    "oos_2008+global_by=counters+on_change=move",
    "oos_2008+roots=unsync",
    "oos_2008+parent_zap=refuse",
)

Place = tuple[int, int]


class Model:
    """A guest with two roots over the same leaf tables, and what its processor may still remember."""

    def __init__(self, policy: str, mode: str, shared_level: int) -> None:
        self.guest = guest = Guest(mode, sync=find_sync(policy), on=cr4(X86_CR4_PGE))
        self.span = 1 << guest.mode.level_shift(2)
        self.stale: dict[Place, bool] = {}
        for place in self.places():
            guest.map(self.gva(place), DATA + 0x1000 * place[0], self.flags(place))
        for table in range(TABLES):
            guest.map(WINDOW + table * 0x1000, guest.table(self.gva((table, 0))))
        self.roots = guest.root, guest.new_table()
        level = min(shared_level, guest.mode.root_level)
        for gva in (*(self.gva((table, 0)) for table in range(TABLES)), WINDOW):
            # Tables above the shared one are the second root's own.
            guest.map(gva, 0, level=level, root=self.roots[1])
            guest.poke(guest.entry(gva, level, self.roots[1]), guest.load(guest.entry(gva, level)))

    def places(self) -> list[Place]:
        return [(table, entry) for table in range(TABLES) for entry in range(ENTRIES)]

    def gva(self, place: Place) -> int:
        return GVA + place[0] * self.span + place[1] * 0x1000

    def flags(self, place: Place) -> int:
        return PAGE | (G if place[0] < TABLES - 2 else 0)

    def edit(self, place: Place, page: int) -> None:
        """Write a leaf entry; page 0: not present. What was there may be remembered."""
        guest = self.guest
        entry = page and (DATA + 0x20000 + 0x1000 * page | self.flags(place))
        at = guest.entry(self.gva(place))
        self.stale[place] = self.stale.get(place, False) or bool(guest.load(at) & 1)
        width = guest.mode.entry_bytes
        done = guest.write(WINDOW + place[0] * 0x1000 + (at & 0xFFF), entry, size=width)
        assert done.kind is OutcomeKind.OK

    def flush(self, root: int) -> None:
        self.guest.cr3(self.roots[root])
        for place in self.places():
            if not self.flags(place) & G:
                self.stale[place] = False

    def flush_all(self) -> None:
        for value in (self.guest.vcpu.cr4 & ~X86_CR4_PGE, self.guest.vcpu.cr4):
            self.guest.machine.execute(ops.WriteCr(4, value))
        self.stale = {}

    def invlpg(self, place: Place) -> None:
        self.guest.invlpg(self.gva(place))
        self.stale[place] = False

    def relink(self, place: Place) -> None:
        """Store a directory entry again, often enough for a flood."""
        at = self.guest.entry(self.gva(place), 2)
        for _ in range(4):
            self.guest.store(at, self.guest.load(at))

    def check(self, place: Place) -> None:
        """Read, and compare with the tables unless something older may be remembered."""
        guest, gva = self.guest, self.gva(place)
        if self.stale.get(place):
            guest.read(gva)
            return
        wanted = two_walks(guest.machine, gva).gpa
        seen = guest.read(gva)
        if wanted is None:
            assert seen.kind is OutcomeKind.EXC
            assert not (seen.error_code or 0) & PFERR_PRESENT_MASK
        else:
            assert seen.hpa == guest.hpa(wanted)


PLACES = st.tuples(
    st.one_of(st.integers(0, TABLES - 1), st.integers(TABLES - 2, TABLES - 1)), st.integers(0, ENTRIES - 1)
)
STEPS = st.one_of(
    st.tuples(st.just("edit"), PLACES, st.integers(0, 3)),
    st.tuples(st.just("edit"), PLACES, st.integers(0, 3)),
    st.tuples(st.just("check"), PLACES),
    st.tuples(st.just("invlpg"), PLACES),
    st.tuples(st.just("relink"), PLACES),
    st.tuples(st.just("flush"), st.integers(0, 1)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("check"), PLACES),
    st.tuples(st.just("flush_all")),
)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(
    mode=st.sampled_from(["32", "64", "57"]),
    shared_level=st.integers(2, 3),
    steps=st.lists(STEPS, min_size=5, max_size=40),
)
def test_a_flushed_guest_sees_its_own_tables(
    policy: str, mode: str, shared_level: int, steps: list[tuple[Any, ...]]
) -> None:
    model = Model(policy, mode, shared_level)
    for name, *given_ in steps:
        getattr(model, name)(*given_)
        assert violations(model.guest.kvm) == []
    model.flush_all()
    for root in (0, 1):
        model.flush(root)
        for place in model.places():
            model.check(place)
    assert violations(model.guest.kvm) == []


def test_the_guests_make_the_policies_differ() -> None:
    """Else the property would hold of anything."""
    counts = {}
    for policy in POLICIES[:3]:
        model = Model(policy, "64", 3)
        for table in range(TABLES):
            model.check((table, 0))
        for table in range(TABLES):
            model.edit((table, 0), 1)
        model.flush(0)
        stat = model.guest.kvm.sync_stat
        counts[policy] = stat["unsyncs"], stat["emulated_writes"], stat["evicted"]
    assert counts == {
        "unsync_children": (9, 0, 0),
        "write_protect": (0, 9, 0),
        "oos_2008": (9, 0, 0),
    }
