"""The tour shows what it says, in every mode and from every seed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.view import gpa_of
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording
from mmulab.workload.tour import SHAPES, Tour, tour


def ops_of(recording: Recording, found: Tour) -> list[int]:
    """Return the numbers of the tour's ops, without what the runner does around them."""
    helpers = (ops.SetSregs, ops.Sysexit, ops.Sysenter, ops.HostWrite, ops.Teardown)
    numbers = [n for n, op in enumerate(recording.ops) if not isinstance(op, helpers)]
    assert len(numbers) == len(found.stops)
    return numbers


def happened(recording: Recording, op: int, kind: type) -> int:
    return sum(isinstance(event, kind) for event in recording.events_of(op))


@settings(max_examples=20)
@given(st.sampled_from(list(SHAPES)), st.integers(0, 2**32))
def test_stops_are_as_told(mode: str, seed: int) -> None:
    found = tour(mode, seed)
    recording = record(found.scenario)
    miss, hit, write, change, stale, invlpg, fresh, _, synced = ops_of(recording, found)
    assert happened(recording, miss, ev.kvm_page_fault)
    assert not happened(recording, hit, ev.kvm_page_fault)
    assert happened(recording, write, ev.kvm_mmu_set_dirty_bit)
    (gone,) = (e for e in recording.events_of(change) if isinstance(e, ev.kvm_mmu_unsync_page))
    assert gone.gfn == found.table
    assert happened(recording, invlpg, ev.drop_spte)
    assert not happened(recording, fresh, ev.kvm_page_fault)
    # In PAE paging an instruction that changes the privilege stands in between, and meets it.
    assert sum(happened(recording, op, ev.kvm_mmu_sync_page) for op in (synced - 1, synced))

    def reached(op: int) -> int | None:
        return gpa_of(recording.after(op).machine, recording.outcome(op).hpa)

    assert [reached(op) for op in (miss, stale)] == [found.first << 12] * 2
    assert [reached(op) for op in (fresh, synced)] == [found.second << 12] * 2
    assert list(recording.verdicts) == [stale]


def test_readers_own_ops() -> None:
    found = tour("32-bit", 1, "wr s 4 {entry} 0; rd u {data} ;")
    assert [stop.why for stop in found.stops[-2:]] == ["Your own."] * 2
    recording = record(found.scenario)
    assert recording.op(ops_of(recording, found)[-1]).gva == found.data  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("mode", "extra", "says"),
    [
        ("48", "", "mode '48': a tour has one of 32-bit, pae, 4-level, 5-level"),
        ("4-level", "fly 1", "op 'fly 1': unknown op 'fly', expected one of"),
        ("4-level", "rd u {page}", "extra: 'page' in braces; data, entry, root, first, second are known"),
        ("4-level", "rd u {", "extra: a brace without its other half; data"),
    ],
)
def test_bad_input(mode: str, extra: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tour(mode, 0, extra)
