"""Workloads: the same from the same seed, right on every host, and each with what it is named after."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.oos_2008 import oos_2008
from mmulab.kvm.sync.oos_state import OosState
from mmulab.machine import op as ops
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner, run
from mmulab.scenario.scenario import Scenario
from mmulab.workload.patterns import (
    HOSTS,
    WORKLOADS,
    ContextSwitches,
    ForkExec,
    KernelMaps,
    MigrationRounds,
    SparseWrites,
    TextPatching,
    Workload,
    is_written,
    named_workloads,
)

MODES = ("32", "pae", "64", "57")
SMALL: list[Workload] = [
    ForkExec(processes=2, pages=5),
    TextPatching(patches=6, sites=3),
    ContextSwitches(roots=3, switches=10, touches=2, changes_percent=50),
    KernelMaps(tables=3, changes=12, hot=1, flush_every=5),
]


def seen(scenario: Scenario) -> list[tuple[object, ...]]:
    """Return what the guest saw of each op."""
    return [
        (r.text, r.outcome.kind, r.outcome.rax, r.outcome.vector, r.outcome.error_code, r.outcome.cr2)
        for r in run(scenario)
        if not r.text.startswith("~")
    ]


def count(scenario: Scenario) -> Counter[str]:
    """Count events by name, and outcomes by kind."""
    found: Counter[str] = Counter()
    for result in run(scenario):
        found[result.outcome.kind.value] += 1
        found.update(type(event).__name__ for event in result.events)
    return found


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMALL), st.integers(0, 2**32), st.sampled_from(MODES))
def test_the_guest_sees_the_same_on_every_host(work: Workload, seed: int, mode: str) -> None:
    """Two-dimensional paging translates by itself, so it is the oracle of shadow paging."""
    work = replace(work, seed=seed)
    shadow, tdp, legacy = (seen(work.scenario(mode, host)) for host in HOSTS)
    assert shadow == tdp == legacy


@pytest.mark.parametrize("work", SMALL, ids=lambda work: work.name)
def test_a_seed_is_all_that_is_drawn(work: Workload) -> None:
    assert work.scenario() == work.scenario()
    assert work.scenario().steps != replace(work, seed=1).scenario().steps


@pytest.mark.parametrize("mode", MODES)
def test_each_patch_unsyncs_one_table_and_syncs_it(mode: str) -> None:
    """As in the real boots: the entry written, CR3 loaded, the page written, and all of it undone."""
    found = count(TextPatching(patches=20).scenario(mode))
    assert found["kvm_mmu_unsync_page"] == found["kvm_mmu_sync_page"] == 20
    assert found["exc"] == 0
    loads = [s.op for s in TextPatching(patches=20).scenario(mode).steps if isinstance(s.op, ops.WriteCr)]
    assert len(loads) == 40
    assert len({op.value for op in loads}) == 2


def test_a_patch_is_read_back() -> None:
    work = TextPatching(patches=9)
    reads = [r.outcome.rax for r in run(work.scenario("64", "shadow")) if isinstance(r.op, ops.Read)]
    assert reads == list(range(9))


@pytest.mark.parametrize("mode", MODES)
def test_every_fault_of_a_process_is_the_guests_own(mode: str) -> None:
    """A fault each: the pages that exec and copy-on-write touch."""
    work = ForkExec(processes=3, pages=9)
    faults = 3 * (1 + 3 + 9 + 8)  # shell's copy, child's copies, demand, and the shell's pages again
    for host in HOSTS:
        found = [r.outcome for r in run(work.scenario(mode, host)) if r.outcome.kind is OutcomeKind.EXC]
        assert len(found) == faults
        assert {outcome.vector for outcome in found} == {14}


def test_tables_are_used_again() -> None:
    """A hundred processes take no more tables than a few: each is given back, empty."""
    steps = ForkExec(processes=100, pages=2).scenario().steps
    assert len({s.op.value for s in steps if isinstance(s.op, ops.WriteCr)}) <= 4


def test_context_switches_load_each_root() -> None:
    scenario = ContextSwitches(roots=5, switches=60).scenario()
    roots = {s.op.value for s in scenario.steps if isinstance(s.op, ops.WriteCr)}
    assert len(roots) == 5
    assert count(scenario)["kvm_mmu_sync_page"] > 0
    assert count(ContextSwitches(roots=5, switches=60, changes_percent=0).scenario())["exc"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_kernel_maps_are_global_and_survive_loads_of_cr3(mode: str) -> None:
    """More tables go out of sync than the 2008 design has places for, and a load of CR3 leaves them there."""
    scenario = KernelMaps().scenario(mode)
    runner = Runner(scenario, config=machine_config(scenario, LINUX_6_1.with_(sync=oos_2008)))
    kvm, before, loaded = runner.machine.kvm, 0, []
    for result in runner.results():
        assert isinstance(kvm.sync_state, OosState)
        if isinstance(result.op, ops.WriteCr) and result.op.cr == 3:
            loaded.append((before, len(kvm.sync_state.in_array())))
        before = len(kvm.sync_state.in_array())
    assert {now for _, now in loaded} >= {1, 7}
    assert all(was == now for was, now in loaded)
    assert kvm.sync_stat["evicted"] > 0


@pytest.mark.parametrize("percent", [0, 5, 50, 100])
def test_the_share_of_writes_is_met(percent: int) -> None:
    steps = SparseWrites(written_percent=percent, passes=3).scenario().steps
    writes = [step for step in steps if isinstance(step.op, ops.Write)]
    assert len(writes) == 3 * sum(is_written(page, percent) for page in range(512))
    assert len(steps) == 1 + 3 * 512


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("manual", [False, True])
def test_a_migration_loses_no_write(host: str, manual: bool) -> None:
    """What was written in a round is in its log; logging is off at the end."""
    runner = Runner(MigrationRounds(written_percent=5, rounds=2, manual=manual).scenario("64", host))
    written: set[int] = set()
    logs = []
    for result in runner.results():
        if isinstance(result.op, ops.Write):
            written.add((result.outcome.hpa >> 12) - runner.machine.memory.backing)
        elif isinstance(result.op, ops.SetMemslot):
            written = set()
        elif isinstance(result.op, ops.GetDirtyLog):
            assert written <= set(result.outcome.dirty or [])
            logs.append(len(written))
            written = set()
    assert logs == [25, 25]


def test_every_workload_has_a_name_in_each_mode_and_host() -> None:
    names = [name for name, *_ in named_workloads()]
    assert len(names) == len(set(names)) == len(WORKLOADS) * len(MODES) * len(HOSTS)
    for name, work, mode, host in named_workloads():
        assert work.scenario(mode, host).header.mode == name.split("/")[1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ForkExec(processes=0), "fork-exec: processes is 0, expected a larger number"),
        (lambda: ContextSwitches(changes_percent=-1), "changes_percent is -1, expected a larger number"),
        (lambda: MigrationRounds(rounds=0), "migration: large_pages and rounds are at least 1"),
        (lambda: ForkExec().scenario("np"), "mode 'np': a workload runs in one of 32, pae, 64, 57"),
        (lambda: ForkExec().scenario("64", "none"), "host 'none'"),
        (lambda: SparseWrites(large_pages=99).scenario(), "bytes of memory are too few"),
        (lambda: SparseWrites(large_pages=2).scenario("32"), "do not lie below one entry of the root"),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()  # type: ignore[operator]


def test_events_of_a_split_are_the_tdp_mmus() -> None:
    work = MigrationRounds(rounds=1)
    splits = {host: count(work.scenario("64", host))["kvm_mmu_split_huge_page"] for host in HOSTS}
    assert splits == {"shadow": 0, "tdp": 2, "legacy": 0}
