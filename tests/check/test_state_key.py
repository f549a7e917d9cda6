"""Keys of states: equal where no op can tell, different where one can."""

from __future__ import annotations

from dataclasses import replace

from mmulab.check.savepoint import Keeper
from mmulab.check.scopes import find_scope
from mmulab.check.state_key import Key, StateKey
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import parse_step
from mmulab.scenario.runner import Runner


class Keyed:
    """A scope's machine, of which keys are asked for."""

    def __init__(self, name: str, *, taken: int = 0) -> None:
        scope = find_scope(name)
        config = replace(machine_config(scope.scenario), table_frames=500)
        self.runner = Runner(scope.scenario, config=config)
        for _ in range(taken):
            self.runner.machine.memory.alloc_frame()
        list(self.runner.begin())
        for step in scope.scenario.steps:
            list(self.runner.step(0, step))
        self.keeper = Keeper(self.runner.machine)
        self.keys = StateKey(self.runner.machine.memory.backing)

    def after(self, *lines: str) -> Key:
        for line in lines:
            list(self.runner.step(0, parse_step(line)))
        return self.keys.key(self.keeper.take())


READS = "rd s 4 40000000", "rd s 4 40200000"


def test_the_frames_of_tables_do_not_count():
    one, other = Keyed("paths-64"), Keyed("paths-64", taken=3)
    assert one.after(*READS) == other.after(*READS)
    assert one.runner.machine.kvm.pages.keys() != other.runner.machine.kvm.pages.keys()


def test_what_only_counts_does_not_count():
    one, other = Keyed("paths-64"), Keyed("paths-64")
    assert one.after(*READS) == other.after(*READS, READS[0], READS[0])
    assert one.runner.machine.stats != other.runner.machine.stats or one.runner.at != other.runner.at


def test_the_mmu_has_a_name_of_its_own():
    keyed = Keyed("moved-64")
    before = keyed.after("wr s 4 40000000 1")
    written = keyed.after("wr s 4 40000000 2")
    assert written.machine != before.machine
    assert written.mmu == before.mmu
    zapped = keyed.after("hinval 80000 1000")
    assert zapped.mmu != before.mmu


def test_tables_that_were_zapped_and_made_again_are_the_same():
    keyed = Keyed("moved-64")
    before = keyed.after("rd s 4 40000000")
    frames = set(keyed.runner.machine.kvm.pages)
    zapped = keyed.after("hinval 80000 1000")
    assert zapped != before
    assert keyed.after("rd s 4 40000000") == before
    assert set(keyed.runner.machine.kvm.pages) == frames


def test_a_word_of_memory_a_register_and_a_right_count():
    first = "rd s 4 40000000"
    base = Keyed("rights-64").after(first)
    more = ("cr0 80010031", "cr4 100020", "rd u 4 40000000", "hw 8 80100 1", "slot 0 0 100000 1 0")
    keys = [Keyed("rights-64").after(first, line) for line in more if not line.startswith("rd u")]
    assert len({base, *keys}) == 1 + len(keys)


def test_the_order_of_ops_that_commute_does_not_count():
    one, other = Keyed("hosts-64"), Keyed("hosts-64")
    pages = "rd s 4 40000000", "rd s 4 40001000"
    assert one.after(*pages) == other.after(*reversed(pages))


def test_two_vcpus_are_told_apart():
    one, other = Keyed("linked-64-two"), Keyed("linked-64-two")
    assert one.after("rd s 4 40000000") != other.after("@1 rd s 4 40000000")
