"""The oracle on outcomes that are as they are, and on some that are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.oracle import Oracle, Verdict
from mmulab.check.trial import make_bench
from mmulab.conform.recording import read_recording
from mmulab.kvm.kernels import find_kernel
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mmio, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.text import read_scenario

GVA, WINDOW = 0x40000000, 0x50000000
OLD, NEW, TABLE = 0x100000, 0x101000, 0x20000
READ, EDIT = f"rd s 4 {GVA:x}", f"wr s 4 {WINDOW:x} {NEW | 0x67:x}"
INVLPG = f"invlpg {GVA:x}"
Change = Callable[[Machine, Result], Result]


def builder(*, vcpus: int = 1, flags: int = 0) -> ScenarioBuilder:
    """Return a 32-bit guest with one page at :data:`GVA`, whose table is seen at :data:`WINDOW`."""
    b = ScenarioBuilder("32", vcpus=vcpus)
    b.slot(0, 0, 0x800000, flags).slot(1, 0x2000000, 0x200000, flags, 0x800000)
    b.root(0x10000).alloc(TABLE).map(GVA, OLD).map(WINDOW, TABLE).map(GVA + 0x2000, 0x2000000)
    return b.value(4, OLD, 0x01D).value(4, NEW, 0x2E3).value(4, 0x800000, 0x407)


def to(gpa: int) -> Change:
    """Let a read arrive at a page, and see what is there."""

    def change(machine: Machine, result: Result) -> Result:
        hpa = (machine.memory.backing << 12) + gpa
        outcome = replace(result.outcome, hpa=hpa, rax=machine.memory.read(hpa, 4), mmio=None)
        return result.with_(outcome=outcome)

    return change


def judged(b: ScenarioBuilder, *steps: str, changes: Mapping[int, Change] | None = None) -> list[Verdict]:
    """Return the verdict on each step, some of which are changed before they are judged."""
    for step in steps:
        b.op(step)
    runner = Runner(b.build())
    oracle = Oracle(runner.machine)
    verdicts = []
    for result in runner.results():
        change = (changes or {}).get(result.index)
        seen = result if change is None else change(runner.machine, result)
        verdict = oracle.judge(seen)[0]
        if 0 <= result.index < len(steps):
            verdicts.append(verdict)
    return verdicts


def test_a_page_may_be_remembered_until_it_is_flushed() -> None:
    stale = {2: to(OLD), 4: to(OLD)}
    found = judged(builder(), READ, EDIT, READ, INVLPG, READ, changes=stale)
    assert found[2] is Verdict.ALLOWED
    assert found[4] is Verdict.WRONG
    assert judged(builder(), READ, EDIT, READ, INVLPG, READ, changes={2: to(NEW)})[2] is Verdict.ALLOWED
    assert judged(builder(), READ, EDIT, READ, changes={2: to(0x102000)})[2] is Verdict.WRONG


def test_each_processor_has_obligations_of_its_own() -> None:
    steps = (f"@1 {READ}", READ, EDIT, INVLPG, READ, f"@1 {READ}", f"@1 {INVLPG}", f"@1 {READ}")
    stale = {4: to(OLD), 5: to(OLD), 7: to(OLD)}
    found = judged(builder(vcpus=2), *steps, changes=stale)
    assert [found[at] for at in (4, 5, 7)] == [Verdict.WRONG, Verdict.ALLOWED, Verdict.WRONG]


def test_where_memory_lies_is_not_remembered() -> None:
    """The slot is gone for every vCPU once the ioctl has returned; the guest need not flush."""
    read = f"rd s 4 {GVA + 0x2000:x}"
    steps = (read, f"@1 {read}", "slotdel 1", read, f"@1 {read}")
    found = judged(builder(vcpus=2), *steps)
    assert [found[at] for at in (0, 1, 3, 4)] == [Verdict.ALLOWED] * 4
    found = judged(builder(vcpus=2), *steps, changes={3: to(0x800000), 4: to(0x800000)})
    assert [found[at] for at in (3, 4)] == [Verdict.WRONG] * 2


def test_a_device_access_where_memory_is_is_wrong() -> None:
    def device(machine: Machine, result: Result) -> Result:
        mmio = [Mmio(write=False, gpa=OLD, size=4, value=0xD0D0D0D0)]
        return result.with_(outcome=replace(result.outcome, hpa=-1, rax=0xD0D0D0D0, mmio=mmio))

    assert judged(builder(), READ, changes={0: device}) == [Verdict.WRONG]


def test_a_page_that_the_host_has_swapped_out_cannot_be_reached() -> None:
    def still_out(machine: Machine, result: Result) -> Result:
        machine.memory.swapped[result.outcome.hpa >> 12] = None
        return result

    steps = (READ, f"swapout {OLD:x} 1000", READ)
    assert judged(builder(), *steps)[2] is Verdict.ALLOWED
    assert judged(builder(), *steps, changes={2: still_out})[2] is Verdict.WRONG


def test_a_write_is_in_the_page_that_it_went_to() -> None:
    def lost(machine: Machine, result: Result) -> Result:
        machine.memory.write(result.outcome.hpa, 4, 7)
        return result

    write = f"wr s 4 {GVA:x} 55aa"
    assert judged(builder(), write) == [Verdict.ALLOWED]
    assert judged(builder(), write, changes={0: lost}) == [Verdict.WRONG]


def without(*gfns: int) -> Change:
    """Let a dirty log lack pages."""

    def change(machine: Machine, result: Result) -> Result:
        named = [gfn for gfn in result.outcome.dirty or [] if gfn not in gfns]
        return result.with_(outcome=replace(result.outcome, dirty=named))

    return change


def test_a_dirty_log_names_each_page_that_was_written_since_the_last_one() -> None:
    write = f"wr s 4 {GVA:x} 1"
    steps = (write, "getdirty 0", READ, "getdirty 0")
    logged = KVM_MEM_LOG_DIRTY_PAGES
    found = judged(builder(flags=logged), *steps)
    assert Verdict.WRONG not in found
    found = judged(builder(flags=logged), *steps, changes={1: without(OLD >> 12)})
    assert [found[1], found[3]] == [Verdict.WRONG, Verdict.NO_ACCESS]


def test_a_write_to_a_read_only_slot_is_the_vmms_and_no_dirty_page() -> None:
    flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
    steps = (f"slot 1 2000000 200000 {flags:x} 800000", f"wr s 4 {GVA + 0x2000:x} 1", "getdirty 1")
    assert judged(builder(), *steps)[1:] == [Verdict.ALLOWED, Verdict.NO_ACCESS]


def test_accessed_bits_that_are_set_are_written_pages_too() -> None:
    b = builder(flags=KVM_MEM_LOG_DIRTY_PAGES).value(4, TABLE, OLD | 0x7)
    assert judged(b, READ, "getdirty 0", changes={1: without(TABLE >> 12)})[1] is Verdict.WRONG


def test_a_watcher_says_what_the_oracle_finds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = read_recording(root / "data/conformance/6.1.192/sh/pt-write-unsync-64.jsonl.xz")

    def finding() -> Finding | None:
        runner = Runner(recording.scenario)
        oracle = Oracle(runner.machine)
        found = map(oracle.after, runner.results())
        return next((one for one in found if one is not None), None)

    assert finding() is None
    monkeypatch.setattr("mmulab.kvm.exits.kvm_mmu_invlpg", lambda vcpu, gva: None)
    wrong = finding()
    assert wrong is not None
    assert (wrong.kind, wrong.op, wrong.text) == (FindingKind.OUTCOME, 11, "rd s 4 8000001000")
    assert wrong.name == "page-reached"


def cleared(at: int, bits: int) -> Change:
    """Let an entry be as if the access had not set some of its bits."""

    def change(machine: Machine, result: Result) -> Result:
        hpa = (machine.memory.backing << 12) + at
        machine.memory.write(hpa, 4, machine.memory.read(hpa, 4) & ~bits)
        return result

    return change


def test_a_write_leaves_a_and_d() -> None:
    leaf, accessed, dirty = TABLE + (GVA >> 12 & 1023) * 4, 0x20, 0x40
    write = f"wr s 4 {GVA:x} 5"
    b = builder().value(4, leaf, OLD | 7)
    assert judged(b, write)[0] is Verdict.ALLOWED
    for missing in (accessed, dirty):
        b = builder().value(4, leaf, OLD | 7)
        assert judged(b, write, changes={0: cleared(leaf, missing)})[0] is Verdict.WRONG
    b = builder().value(4, leaf, OLD | 7)
    assert judged(b, READ, changes={0: cleared(leaf, dirty)})[0] is Verdict.ALLOWED


def test_a_remembered_entry_need_not_be_dirty_in_memory() -> None:
    leaf = TABLE + (GVA >> 12 & 1023) * 4
    write, clean = f"wr s 4 {GVA:x} 5", f"wr s 4 {WINDOW + (leaf & 0xFFF):x} {OLD | 0x27:x}"
    changes = {2: cleared(leaf, 0x40)}
    assert judged(builder(), write, clean, write, changes=changes)[2] is Verdict.ALLOWED
    flushed = {3: cleared(leaf, 0x40)}
    assert judged(builder(), write, clean, INVLPG, write, changes=flushed)[3] is Verdict.WRONG


def test_nothing_is_said_of_what_lies_beyond_a_32_bit_hosts_nested_tables() -> None:
    """A PSE-36 page of a 32-bit guest; nested tables of PAE's form translate 32 bits."""
    large = 0x100E7
    for host, verdict in ({"x86_64": 0, "npt": 1}, Verdict.UNDECIDED), ({"npt": 1}, Verdict.WRONG):
        b = ScenarioBuilder("32", host=host).slot(0, 0, 0x800000).root(0x10000).value(4, 0x10800, large)
        assert judged(b, "rd s 4 80000000", changes={0: to(0)})[0] is verdict


def test_an_entry_that_never_ends_is_wrong() -> None:
    """The fix of B21 is undone: the processor takes each nested table for one of another level."""
    scenario = read_scenario(Path(__file__).parents[1] / "kvm/bugs/B21.mmu")
    for kernel, name in (("6.1", None), ("6.1+B21", "endless")):
        finding = make_bench(scenario, find_kernel(kernel), [Oracle]).run(()).finding
        assert (None if finding is None else finding.name) == name


def test_tables_in_a_read_only_slot_are_not_marked() -> None:
    b = builder().slot(2, 0x3000000, 0x1000, KVM_MEM_READONLY, 0xA00000)
    b.value(4, 0x10410, 0x3000067).value(4, 0xA00000, OLD | 0x27)
    assert judged(b, "wr s 4 41000000 5")[0] is Verdict.ALLOWED


def test_nested_paging_gives_the_guest_what_cpuid_takes() -> None:
    """A 1 GiB page: the processor's own walk looks at no CPUID; KVM's does."""

    def ended_well(machine: Machine, result: Result) -> Result:
        outcome = replace(result.outcome, kind=OutcomeKind.OK, vector=None, error_code=None)
        return to(0)(machine, result.with_(outcome=outcome))

    for host, verdict in ({"npt": 1}, Verdict.ALLOWED), ({}, Verdict.WRONG):
        b = ScenarioBuilder("64", host=host).slot(0, 0, 0x800000).root(0x10000)
        b.alloc(0x20000).value(8, 0x10008, 0x20067).value(8, 0x20000, 0xE7)
        assert judged(b, "cpuid gbpages 0", "rd s 4 8000000000", changes={1: ended_well})[1] is verdict
