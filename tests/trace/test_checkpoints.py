"""Checkpoints of random machines: in any order they are the state that was, and run on as it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.mmu import RootInfo
from mmulab.kvm.state import Request
from mmulab.machine import op as ops
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.trace.checkpoints import SMALL, Checkpoints, digest, places
from tests.kvm.guest import DATA, GVA, MIB, MODES, Guest
from tests.machine.random_guest import layout_of, op_lists, random_machine

Done = tuple[Outcome, list[ev.Event]]


def execute(machine: Machine, listed: list[Op]) -> list[Done]:
    """Execute ops and return what each did; an endless fault ends them."""
    done = []
    for op in listed:
        seen: list[ev.Event] = []
        machine.emit = seen.append
        done.append((machine.execute(op), seen))
        if is_endless(done[-1][0]):
            break
    machine.emit = None
    return done


@pytest.mark.parametrize("tdp", [False, True], ids=["shadow", "tdp"])
@pytest.mark.parametrize("name", MODES)
def test_any_checkpoint_is_what_was_and_runs_on(name: str, tdp: bool) -> None:
    layout = layout_of(name)

    @settings(max_examples=8, phases=[Phase.generate])
    @given(
        st.integers(0, 1 << 16),
        op_lists(layout, length=40),
        st.lists(st.integers(0, 7), min_size=3, max_size=6),
    )
    def check(seed: int, listed: list[Op], visits: list[int]) -> None:
        machine = random_machine(seed, layout, tdp=tdp)
        checkpoints, states = Checkpoints(), []
        parts = [listed[start : start + 6] for start in range(0, len(listed), 6)]
        done = []
        for part in parts:
            checkpoints.take(machine)
            states.append(digest(machine))
            done.append(execute(machine, part))
        checkpoints.freeze()
        copy = Machine(machine.config)
        before = -1
        for visit in visits:
            number = visit % len(parts)
            checkpoints.restore(copy, number, before)
            assert digest(copy) == states[number]
            assert execute(copy, parts[number]) == done[number]
            before = number

    check()


def test_dirty_rings_come_back() -> None:
    guest = Guest("np", dirty_ring=256)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, 1, 0))
    checkpoints = Checkpoints()
    checkpoints.take(guest.machine)
    guest.write(DATA)
    checkpoints.take(guest.machine)
    checkpoints.freeze()
    copy = Machine(guest.machine.config)
    for number, ring in ((1, [(0, DATA >> 12)]), (0, [])):
        checkpoints.restore(copy, number, -1)
        assert copy.execute(ops.GetDirtyRing()).ring == ring


def test_a_table_that_is_asked_for_nothing_is_not_decoded() -> None:
    """Going back costs what is looked at: shadow pages are fetched one by one."""
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    checkpoints = Checkpoints()
    checkpoints.take(guest.machine)
    checkpoints.freeze()
    frame = guest.vcpu.mmu.root_hpa >> 12
    copy = Machine(guest.machine.config)
    checkpoints.restore(copy, 0, -1)
    pages = copy.kvm.pages
    assert dict.__len__(pages) == 0
    assert pages[frame].gfn == guest.root >> 12
    assert dict.__len__(pages) == 1


def test_what_did_not_change_is_kept_once() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    checkpoints = Checkpoints()
    for _ in range(3):
        checkpoints.take(guest.machine)
    checkpoints.freeze()
    for name, table in checkpoints.tables.items():
        if name != SMALL:
            assert table.changed(0, 2) == [], name
    assert checkpoints.tables["pages"].keys(0) == sorted(guest.kvm.pages)


# What a digest sees ---------------------------------------------------------------------------


def touch_memory(guest: Guest) -> None:
    guest.poke(DATA, 0x77)


def touch_spte(guest: Guest) -> None:
    at = guest.sptep(GVA)
    guest.machine.memory.store64(at, guest.machine.memory.words[at >> 3] ^ 1 << 9)


def touch_page(guest: Guest) -> None:
    guest.page(GVA).write_flooding_count += 1


def touch_rmap(guest: Guest) -> None:
    guest.slot.rmap[1][DATA >> 12][0][0] += 8


def touch_tracking(guest: Guest) -> None:
    guest.slot.gfn_track[5] = 1


def touch_lpage(guest: Guest) -> None:
    guest.slot.disallow_lpage[2][0] = 9


def touch_request(guest: Guest) -> None:
    guest.vcpu.requests |= Request.MMU_SYNC


def touch_context(guest: Guest) -> None:
    guest.vcpu.mmu.prev_roots[0] = RootInfo(0x5000, 0x6000)


def touch_statistics(guest: Guest) -> None:
    guest.kvm.stat["mmu_flooded"] += 1


def touch_hash(guest: Guest) -> None:
    guest.kvm.page_hash[0x999] = [1]


def touch_slot(guest: Guest) -> None:
    guest.slot.flags ^= 1


TOUCHES = [
    touch_memory,
    touch_spte,
    touch_page,
    touch_rmap,
    touch_tracking,
    touch_lpage,
    touch_request,
    touch_context,
    touch_statistics,
    touch_hash,
    touch_slot,
]


@pytest.mark.parametrize("touch", TOUCHES, ids=lambda touch: touch.__name__)
def test_a_digest_sees_every_kind_of_state(touch: Callable[[Guest], None]) -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.write(GVA)
    before = digest(guest.machine)
    assert digest(guest.machine) == before
    touch(guest)
    assert digest(guest.machine) != before


@pytest.mark.parametrize("touch", TOUCHES, ids=lambda touch: touch.__name__)
def test_a_checkpoint_keeps_every_kind_of_state(touch: Callable[[Guest], None]) -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.write(GVA)
    checkpoints = Checkpoints()
    checkpoints.take(guest.machine)
    before = digest(guest.machine)
    touch(guest)
    checkpoints.take(guest.machine)
    after = digest(guest.machine)
    checkpoints.freeze()
    copy = Machine(guest.machine.config)
    checkpoints.restore(copy, 1, -1)
    assert digest(copy) == after
    checkpoints.restore(copy, 0, 1)
    assert digest(copy) == before


def test_digests_do_not_depend_on_who_looked() -> None:
    """A table of a checkpoint, fetched in part, counts as the whole."""
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    checkpoints = Checkpoints()
    checkpoints.take(guest.machine)
    checkpoints.freeze()
    copy = Machine(guest.machine.config)
    checkpoints.restore(copy, 0, -1)
    fresh = digest(copy)
    checkpoints.restore(copy, 0, 0)
    for place in places(copy.kvm):
        for key in list(place.get()):
            assert place.get()[key] is not None
    assert digest(copy) == fresh == digest(guest.machine)


def test_a_slot_that_is_made_anew_keeps_nothing_of_the_old_one() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    checkpoints = Checkpoints()
    checkpoints.take(guest.machine)
    assert guest.slot.rmap[1]
    for op in (ops.DeleteMemslot(0), ops.SetMemslot(0, 0, 8 * MIB, 0, 0)):
        guest.machine.execute(op)
        checkpoints.take(guest.machine)
    checkpoints.freeze()
    copy = Machine(guest.machine.config)
    checkpoints.restore(copy, 2, -1)
    slot = copy.kvm.slots[0].by_id(0)
    assert slot is not None
    assert list(slot.rmap[1]) == []
    assert digest(copy) == digest(guest.machine)
