"""Savepoints: a machine that was put back is the machine that it was."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmulab.check.explore import TABLE_FRAMES
from mmulab.check.savepoint import Keeper
from mmulab.check.scope import Scope
from mmulab.check.scopes import MAKERS, find_scope
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.trace.checkpoints import digest


def begun(scope: Scope) -> Runner:
    config = replace(machine_config(scope.scenario), table_frames=TABLE_FRAMES)
    runner = Runner(scope.scenario, config=config)
    list(runner.begin())
    for index, step in enumerate(scope.scenario.steps):
        list(runner.step(index, step))
    return runner


def told(runner: Runner, scope: Scope, choice: int) -> str:
    return repr(list(runner.step(0, scope.ops[choice])))


def whole(runner: Runner) -> str:
    """A digest of everything but what lies in free frames, which nobody reads."""
    memory = runner.machine.memory
    for frame in memory.pool()[1]:
        memory.frames[frame] = 0
    return digest(runner.machine)


@pytest.mark.parametrize("name", MAKERS)
def test_a_machine_put_back_runs_on_as_a_fresh_one(name):
    scope = find_scope(name)
    runner = begun(scope)
    keeper = Keeper(runner.machine)
    draw = random.Random(14)
    beginning = keeper.now
    for _ in range(4):
        keeper.put(beginning)
        runner.cpl.clear()
        fresh = begun(scope)
        for _ in range(5):
            before, cpl = keeper.now, dict(runner.cpl)
            told(runner, scope, draw.randrange(len(scope.ops)))  # another way, not gone on with
            ended = runner.ended
            keeper.take()
            keeper.put(before)
            runner.cpl = cpl
            choice = draw.randrange(len(scope.ops))
            assert told(runner, scope, choice) == told(fresh, scope, choice)
            keeper.take()
            assert whole(runner) == whole(fresh)
            if ended or runner.ended:
                break


def test_a_savepoint_shares_what_an_op_did_not_change():
    scope = find_scope("paths-64")
    runner = begun(scope)
    keeper = Keeper(runner.machine)
    told(runner, scope, 0)
    before = keeper.take()
    told(runner, scope, 0)
    after = keeper.take()
    assert after.pages is before.pages
    assert all(after.frames[frame] is piece for frame, piece in before.frames.items())
    assert after.slots[0] is before.slots[0]


def test_what_is_equal_is_one_piece():
    scope = find_scope("paths-64")
    runner = begun(scope)
    keeper = Keeper(runner.machine)
    beginning = keeper.now
    told(runner, scope, 0)
    one = keeper.take()
    keeper.put(beginning)
    told(runner, scope, 0)
    other = keeper.take()
    assert one.pages
    assert all(other.pages[frame] is piece for frame, piece in one.pages.items())
    assert all(other.frames[frame] is piece for frame, piece in one.frames.items())
    assert other.vm is one.vm


def test_what_is_put_back_is_not_changed_by_what_runs_then():
    scope = find_scope("linked-64")
    runner = begun(scope)
    keeper = Keeper(runner.machine)
    for choice in (4, 0, 2):
        told(runner, scope, choice)
    kept = keeper.take()
    was = whole(runner)
    for choice in (5, 1, 4, 3):
        told(runner, scope, choice)
    keeper.take()
    assert whole(runner) != was
    keeper.put(kept)
    assert whole(runner) == was


def test_what_nobody_can_copy_is_refused():
    runner = begun(find_scope("paths-64"))
    keeper = Keeper(runner.machine)
    runner.machine.kvm.vcpus[0].pkru = {1, 2}  # a set
    with pytest.raises(TypeError, match="no savepoint can hold a set"):
        keeper.take()
