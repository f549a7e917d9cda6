"""Any moment of a recording is the state that a straight run has there."""

from __future__ import annotations

import contextlib
import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.record import record
from mmulab.scenario.runner import Runner, load_memory
from mmulab.trace.checkpoints import digest
from mmulab.trace.columns import Log
from mmulab.trace.recorder import Recorder
from mmulab.trace.recording import Moment, Recording
from tests.trace.conftest import scenario

NAMES = (
    "sh/os-64-00",
    "sh/fuzz-32-mix-02",
    "sh/fuzz-pae-mix-00",
    "sh/memslot-64",
    "sh/dirtylog-manual-thp-64",
    "sh/mmu-pages-limit-pae",
    "tdp1/memslot-64",
    "nested48/nested-basic-32",
    "nested48/nested-fuzz-64-00",
)


@cache
def recorded(name: str, interval: int) -> Recording:
    return record(scenario(name), interval=interval)


class Stopped(Exception):
    pass


def init(name: str) -> ops.SetSregs:
    """The op with which a scenario's run begins."""
    return ops.SetSregs(**scenario(name).header.regs._asdict())


def straight(name: str, recording: Recording, moment: Moment) -> str:
    """Run from the beginning on a fresh machine, without any checkpoint, and return the state's digest."""
    machine = Machine(recording.config)
    load_memory(machine.memory, scenario(name).header)
    for number in range(moment.op):
        machine.execute(recording.op(number))
    left = itertools.count(0 if moment.event is None else moment.event - recording.first_event(moment.op), -1)

    def sink(event: ev.Event) -> None:
        if next(left) == 0:
            raise Stopped

    machine.emit = sink if moment.event is not None else None
    with contextlib.suppress(Stopped):
        machine.execute(recording.op(moment.op))
    machine.emit = None
    return digest(machine)


@settings(max_examples=25)
@given(st.sampled_from(NAMES), st.sampled_from([40, 300, 10**6]), st.data())
def test_state_is_that_of_a_straight_run(name: str, interval: int, data: st.DataObject) -> None:
    recording = recorded(name, interval)
    for _ in range(4):
        moment = recording.moment(data.draw(st.integers(0, len(recording) - 1)))
        assert recording.visit(moment).digest() == straight(name, recording, moment), moment


def test_digest_tells_states_apart(unsync: Recording) -> None:
    digests = [unsync.at(event).digest() for event in range(0, len(unsync.events), 7)]
    writes = [e for e in unsync.events if isinstance(e, (ev.kvm_mmu_get_page, ev.kvm_mmu_set_spte))]
    assert len(writes) > 20
    assert len(set(digests)) > len(digests) // 2


def test_recorded_is_what_happened() -> None:
    name = "sh/mode-switch"
    recording = record(scenario(name), interval=50)
    results = list(Runner(scenario(name)).results())
    assert list(recording.events) == [event for result in results for event in result.events]
    assert list(recording.outcomes) == [result.outcome for result in results]
    assert list(recording.ops) == [result.op for result in results]
    assert recording.checkpoints.count > 3


def test_moments_are_numbered_in_order(unsync: Recording) -> None:
    moments = [unsync.moment(number) for number in range(len(unsync))]
    assert [unsync.number(moment) for moment in moments] == list(range(len(unsync)))
    assert [m.event for m in moments if m.event is not None] == list(range(len(unsync.events)))
    assert [m.op for m in moments if m.event is None] == list(range(len(unsync.ops)))
    assert [m.op for m in moments] == sorted(m.op for m in moments)
    for event in (0, len(unsync.events) // 2, len(unsync.events) - 1):
        assert unsync.events[event] in unsync.events_of(unsync.op_of(event))
    for wrong in (-1, len(unsync)):
        with pytest.raises(IndexError):
            unsync.moment(wrong)
    for look, wrong in ((unsync.at, len(unsync.events)), (unsync.after, len(unsync.ops)), (unsync.at, -1)):
        with pytest.raises(IndexError):
            look(wrong)


def test_state_is_inside_the_fault(unsync: Recording) -> None:
    events = unsync.events
    created = next(n for n, e in enumerate(events) if isinstance(e, ev.kvm_mmu_get_page) and e.created)
    event = events[created]
    state = unsync.at(created)
    assert state.event == event
    (page,) = (state.machine.kvm.pages[f] for f in state.machine.kvm.page_hash[event.gfn][:1])
    assert (page.role, page.root_count, page.parent_ptes) == (event.role, 0, [])
    mapped = next(n for n, e in enumerate(events) if isinstance(e, ev.kvm_mmu_set_spte))
    spte = events[mapped]
    assert unsync.at(mapped).machine.memory.words[spte.sptep >> 3] == spte.spte
    assert unsync.at(mapped - 1).machine.memory.words[spte.sptep >> 3] != spte.spte


def test_old_state_is_not_shown_for_another(unsync: Recording) -> None:
    state = unsync.at(5)
    assert state.machine is not None
    unsync.at(6)
    with pytest.raises(RuntimeError, match="is gone"):
        state.machine  # noqa: B018 -- the property raises


def test_model_that_changed_is_noticed() -> None:
    recording = record(scenario("sh/basic-32"))
    changed = Log()
    events = list(recording.events)
    at = next(n for n, e in enumerate(events) if isinstance(e, ev.kvm_mmu_set_spte))
    events[at] = events[at]._replace(spte=1)
    changed.extend(events)
    recording.events = changed
    recording.at(at - 1)
    with pytest.raises(
        InputError, match=rf"event {at} is no longer what mmulab .* recorded; record it again"
    ):
        recording.at(at)


def test_recorder_gives_the_machine_back() -> None:
    runner = Runner(scenario("sh/basic-32"))
    machine = runner.machine
    mine, sink = machine.emit, machine.op_sink
    recorder = Recorder(machine)
    assert machine.emit != mine
    machine.execute(init("sh/basic-32"))
    recording = recorder.finish()
    assert (machine.emit, machine.op_sink) == (mine, sink)
    assert len(recording.ops) == 1
    assert len(recording.events) > 0
    machine.execute(ops.Nop())
    assert len(recording.ops) == 1


def test_checkpoint_costs_what_changed() -> None:
    """A thousand ops on a few pages make no thousand copies of the rest."""
    machine = Runner(scenario("sh/os-64-00")).machine
    machine.execute(init("sh/os-64-00"))
    recorder = Recorder(machine, interval=10)
    first = recorder._checkpoints.nbytes
    for _ in range(1000):
        machine.execute(ops.Nop())
    recording = recorder.finish()
    assert recording.checkpoints.count > 90
    frames = recording.checkpoints.tables["frames"]
    assert len(frames.changed(1, recording.checkpoints.count - 1)) < 20
    added = recording.checkpoints.nbytes - first
    assert added < 4096 * recording.checkpoints.count


def test_verdicts_name_accesses_that_the_tables_do_not_give(unsync: Recording) -> None:
    assert unsync.verdicts
    op, verdict = next(iter(unsync.verdicts.items()))
    access = unsync.op(op)
    assert isinstance(access, (ops.Read, ops.Write))
    assert verdict.startswith("reached gpa 0x")
    assert "the guest's tables lead to gpa 0x" in verdict
    assert np.all(np.diff(unsync.ends) >= 0)
