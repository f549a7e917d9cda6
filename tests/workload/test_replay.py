"""Replays: every access is compared, real boots agree, and wrong designs are found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.kvm.roles.find import find_design
from mmulab.workload.replay import Replay, ReplayResult, memslots
from mmulab.workload.replay_plan import Action, make_plan
from mmulab.workload.stream import Kind, Stream, load_stream
from tests.workload.replays import agrees
from tests.workload.streams import PAGE, PAGING_NAMES, TABLE, USER, Guest, depth_first

DATA = Path(__file__).resolve().parents[2] / "data" / "stream"
ALL_MODES = pytest.mark.parametrize("paging", PAGING_NAMES)
PART = 60_000
"""Records of a real boot that a test replays."""

COPIED = LINUX_6_1.with_(derivation=find_derivation("copied"))


@cache
def boot(name: str) -> Stream:
    return load_stream(DATA / f"{name}.npz")


def ends_well(result: ReplayResult) -> bool:
    return result.mismatch is None and result.agree == result.accesses


# Real boots -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["boot-686-nonpae", "boot-amd64-4l"])
def test_the_beginning_of_a_real_boot_agrees(name: str) -> None:
    result = Replay(boot(name), limit=PART).run()
    assert ends_well(result)
    kind = boot(name).kind[:PART]
    assert result.accesses == int(np.isin(kind, [Kind.READ, Kind.WRITE, Kind.FETCH, Kind.STORE]).sum())
    assert result.records == PART
    assert sum(result.faults.values()) == result.stats["pf_taken"] > 400
    assert result.shadow_pages >= result.shadow_pages_in_use > 10


@pytest.mark.parametrize("kind", ["r", "w", "x", "P"])
def test_a_wrong_address_anywhere_is_found(kind: str) -> None:
    """The last access of each kind is changed: all before it agree, and it does not."""
    stream = boot("boot-686-nonpae")
    record = int(np.flatnonzero(stream.kind[:PART] == ord(kind))[-1])
    gpa = stream.gpa.copy()
    gpa[record] ^= np.uint64(0x1000)
    result = Replay(replace(stream, gpa=gpa), limit=PART).run()
    assert result.mismatch is not None
    assert result.mismatch.record == record
    assert result.mismatch.kind == kind
    assert result.mismatch.gva == int(stream.gva[record])
    assert result.mismatch.gpa == int(gpa[record])
    assert result.mismatch.reached is not None
    assert result.mismatch.reached >> 12 == int(stream.gpa[record]) >> 12
    done = np.isin(stream.kind[:record], [Kind.READ, Kind.WRITE, Kind.FETCH, Kind.STORE])
    assert result.agree == int(done.sum()) < result.accesses


def test_the_copied_quadrant_fails_where_both_halves_of_a_table_are_in_use() -> None:
    result = Replay(boot("boot-686-nonpae"), limit=PART, kernel=COPIED).run()
    mismatch = result.mismatch
    assert mismatch is not None
    assert (mismatch.record, mismatch.kind, mismatch.gva) == (9657, "r", 0xC1E3D000)
    # The other half of the table: 2 MiB away.
    assert mismatch.reached == mismatch.gpa - 0x200000
    text = "\n".join(mismatch.state)
    assert "guest walk of c1e3d000" in text
    assert "gpa 1e3d000" in text
    assert "shadow path of c1e3d000" in text
    assert "page 1c3d of the backing" in text


def test_the_copied_quadrant_is_right_for_8_byte_entries() -> None:
    assert ends_well(Replay(boot("boot-amd64-4l"), limit=PART, kernel=COPIED).run())


def test_the_older_word_is_right_for_these_guests() -> None:
    result = Replay(boot("boot-amd64-4l"), limit=PART, kernel=LINUX_6_1.with_(design=find_design("D0"))).run()
    assert ends_well(result)
    assert result.shadow_pages == Replay(boot("boot-amd64-4l"), limit=PART).run().shadow_pages


def test_recording_changes_nothing() -> None:
    events: list[ev.Event] = []
    recorded = Replay(boot("boot-686-nonpae"), limit=PART, emit=events.append).run()
    assert recorded == Replay(boot("boot-686-nonpae"), limit=PART).run()
    faults = [event for event in events if isinstance(event, ev.kvm_page_fault)]
    assert len(faults) == sum(recorded.faults.values())
    created = [event for event in events if isinstance(event, ev.kvm_mmu_get_page) and event.created]
    assert len(created) == recorded.shadow_pages
    assert sum(isinstance(event, ev.kvm_mmu_invlpg) for event in events) == recorded.stats["invlpg"]


def test_progress_ends_with_all_records() -> None:
    told: list[int] = []
    Replay(boot("boot-686-nonpae"), limit=PART).run(told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == PART


def test_a_limit_beyond_the_end_is_the_end() -> None:
    guest = Guest("32")
    guest.read(0x5000, 0x5000)
    result = Replay(guest.stream(), limit=10**9).run()
    assert (result.records, result.accesses, result.agree) == (len(guest.rows), 1, 1)


@pytest.mark.parametrize("limit", [1, 4, 5])
def test_a_limit_within_the_state_at_the_start(limit: int) -> None:
    result = Replay(Guest("32").stream(), limit=limit).run()
    assert (result.records, result.accesses, result.mismatch) == (limit, 0, None)


# Every access is compared -----------------------------------------------------


def wrong_miss(guest: Guest) -> int:
    record = guest.write(guest.tables[1], 0x61000, size=4)
    guest.set_entry(0x60000, 0x60000 | PAGE)
    return record


MISSED: dict[str, Callable[[Guest], int]] = {
    "read": lambda g: g.read(0x60000, 0x61000),
    "read at CPL 3": lambda g: g.read(0x60000, 0x61000, cpl=3),
    "write": lambda g: g.write(0x60000, 0x61000),
    "fetch": lambda g: g.fetch(0x60000, 0x61000),
    "table store": lambda g: g.store(g.tables[1] + 8, 0x61008, 1, 0, 4),
    "miss of a table store": wrong_miss,
}


@pytest.mark.parametrize("warm", [False, True], ids=["fault", "hit"])
@pytest.mark.parametrize("name", MISSED)
def test_every_sort_of_access_is_compared(name: str, warm: bool) -> None:
    guest = Guest("32")
    if warm:
        guest.set_entry(0x60000, 0x60000 | PAGE)
        guest.write(0x60000, 0x60000)
        guest.fetch(0x60000, 0x60000)
    record = MISSED[name](guest)
    guest.read(0x70000, 0x70000)
    result = Replay(guest.stream()).run()
    assert result.mismatch is not None
    assert result.mismatch.record == record
    assert result.mismatch.gpa & ~0xFFF == 0x61000
    assert result.agree == result.accesses - (3 if "miss" in name else 2)


def test_an_emulated_store_is_compared() -> None:
    """A directory is never out of sync, so KVM emulates stores to it."""
    guest = Guest("32")
    gpa = guest.entry_gpa(2, 1 << 22)
    record = guest.store(gpa, gpa ^ 0x8000, 2, 0x20000 | TABLE, 4)
    result = Replay(guest.stream()).run()
    assert result.stats["pf_emulate"] == 1
    assert result.mismatch is not None
    assert (result.mismatch.record, result.mismatch.reached) == (record, gpa)


@pytest.mark.parametrize("warm", [False, True], ids=["fault", "hit"])
def test_a_wrong_table_store_does_not_hide_behind_its_miss(warm: bool) -> None:
    guest = Guest("32")
    if warm:
        guest.set_entry(0x60000, 0x60000 | PAGE)
    gpa = guest.entry_gpa(1, 0x61000)
    guest.miss(gpa)
    record = guest.store(gpa, gpa ^ 0x8000, 1, 0, 4)
    guest.read(0x70000, 0x70000)
    result = Replay(guest.stream()).run()
    assert result.mismatch is not None
    assert result.mismatch.record == record
    assert result.agree == result.accesses - 2 == 1 + warm


def test_a_root_outside_memory_shuts_the_vcpu_down() -> None:
    guest = Guest("32")
    guest.control(3, 0x7000_0000)
    record = guest.read(0x5000, 0x5000)
    mismatch = Replay(guest.stream()).run().mismatch
    assert mismatch is not None
    assert (mismatch.record, mismatch.reached) == (record, None)
    assert mismatch.what == "the vCPU shuts down (triple fault)"


# Random guests ----------------------------------------------------------------

PAGES = st.integers(0x40, 0x4F)
"""Pages that a random guest maps and touches: two groups of eight neighbours."""
MAP = st.tuples(st.just("map"), PAGES, st.integers(0x80, 0x8F), st.sampled_from([PAGE, USER, PAGE & ~2]))
TOUCH = st.tuples(st.just("touch"), PAGES, st.sampled_from("rwx"), st.sampled_from([0, 3]))
RELOAD = st.tuples(st.just("reload"), st.just(0), st.just(0), st.just(0))


@ALL_MODES
@settings(max_examples=40)
@given(steps=st.lists(st.one_of(MAP, TOUCH, TOUCH, RELOAD), max_size=40))
def test_a_random_guest_agrees(paging: str, steps: list[tuple[str, int, int | str, int]]) -> None:
    """A dict from page to page and rights is the oracle; the guest flushes after each change."""
    guest = Guest(paging)
    held = {page: (page, PAGE) for page in range(0x40, 0x50)}
    for what, page, value, flags in steps:
        gva = page << 12
        if what == "map":
            assert isinstance(value, int)
            held[page] = (value, flags)
            guest.set_entry(gva, value << 12 | flags)
            guest.invlpg(gva)
        elif what == "reload":
            guest.control(3, guest.registers.cr3)
        else:
            target, rights = held[page]
            user_page, writable = bool(rights & 4), bool(rights & 2)
            # What the rights forbid would be the guest's own fault, which a stream has no access for.
            if (value == "w" and not writable) or (value == "x" and flags == 3 and not user_page):
                continue
            method = {"r": guest.read, "w": guest.write, "x": guest.fetch}[str(value)]
            method(gva, target << 12, flags)
    assert ends_well(Replay(guest.stream()).run())


# Memslots and the plan --------------------------------------------------------


def test_memslots_leave_holes_where_devices_are() -> None:
    guest = Guest("32")
    for gpa in (0xA0000, 0xA1000, 0xFEE00000, 0xFFFF000):
        guest.read(0x5000, gpa, device=True)
    slots = memslots(guest.stream())
    assert [(slot.gpa, slot.size, slot.offset) for slot in slots] == [
        (0, 0xA0000, 0),
        (0xA2000, 0xFFFF000 - 0xA2000, 0xA2000),
    ]
    assert [slot.id for slot in slots] == [0, 1]
    (whole,) = memslots(Guest("32").stream())
    assert (whole.gpa, whole.size) == (0, 256 << 20)


def test_steps_stand_before_the_accesses_that_follow_them() -> None:
    guest = Guest("32")
    guest.read(0x5000, 0x5000)
    load = guest.control(3, 0x1000)
    block = guest.new_table(0x9000, 2)
    guest.read(0x5000, 0x5000)
    miss = guest.miss(guest.entry_gpa(2, 1 << 22))
    guest.set_entry(1 << 22, 0x20000 | TABLE, level=2)
    second = guest.new_table(0x20000, 1)
    end = guest.table_end(0x9000, 2)
    flush = guest.invlpg(0x5000)
    plan = make_plan(guest.stream(), len(guest.rows), 100, None)
    assert plan.record.tolist() == [load - 1, load + 2, miss, miss + 1]
    assert [(step.position, step.record, step.action) for step in plan.steps] == [
        (1, block, Action.TABLES),
        (1, load, Action.CONTROL),
        (2, second, Action.TABLES),
        (4, end, Action.TABLE_END),
        (4, flush, Action.INVLPG),
    ]
    assert plan.miss.tolist() == [False, False, True, False]
    assert plan.pfec.tolist() == [0, 0, 2, 2]
    assert plan.not_smap.tolist() == [True] * 4
    assert plan.frame.tolist() == [105, 105, 101, 101]
    assert plan.stores.position.tolist() == [3]
    assert plan.stores.value.tolist() == [0x20000 | TABLE]


def test_kinds_of_accesses() -> None:
    guest = Guest("32")
    for cpl in (0, 3):
        guest.read(0x5000, 0x5000, cpl)
        guest.write(0x5000, 0x5000, cpl)
        guest.fetch(0x5000, 0x5000, cpl)
    plan = make_plan(guest.stream(), len(guest.rows), 100, None)
    assert plan.pfec.tolist() == [0, 2, 16, 4, 6, 20]
    assert plan.not_smap.tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_replay_that_is_stopped_counts_what_it_did(one_by_one: bool) -> None:
    asked = iter(range(1_000_000))
    replay = Replay(boot("boot-686-nonpae"), limit=PART, one_by_one=one_by_one)
    result = replay.run(stop=lambda: next(asked) == 200)
    assert result.interrupted
    assert result.mismatch is None
    assert 0 < result.agree == result.accesses
    assert 0 < result.records < PART
    before = Replay(boot("boot-686-nonpae"), limit=result.records).run()
    assert (before.agree, before.faults, before.shadow_pages) == (
        result.agree,
        result.faults,
        result.shadow_pages,
    )


def test_tables_that_a_block_announces_depth_first() -> None:
    guest = depth_first()
    guest.read(0x55001000, 0x300000)
    run = agrees(guest)
    assert run.memory(0x200EEA0, 8) == 0x200F001
    assert run.memory(0x200EEA8, 8) == 0x2016001
    assert run.memory(0x2016540, 8) == 0x2018000 | TABLE
