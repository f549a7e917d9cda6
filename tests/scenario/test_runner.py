"""Running scenarios: the sequence of ops, outcomes, events, and what is refused."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.memory.host import HostMemory
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.grammar import FORMS
from mmulab.scenario.helpers import HELPER_S, HELPER_U, STUB_BYTES, STUBS, Stub
from mmulab.scenario.record import record
from mmulab.scenario.runner import HOST_OPS, Runner, run
from mmulab.scenario.scenario import MODES
from mmulab.scenario.text import read_scenario

EXAMPLE = Path(__file__).parent / "examples/first_fault.mmu"
GVA = 0x40000000


def builder(mode: str) -> ScenarioBuilder:
    """A guest with one page mapped at :data:`GVA`."""
    return ScenarioBuilder(mode).root(0x10000).map(GVA, 0x100000)


def texts(b: ScenarioBuilder) -> list[str]:
    """The names of all ops that a scenario's run executes."""
    return [result.text for result in run(b.build())]


def test_the_example_sets_up_a_page_for_reading_and_makes_it_writable() -> None:
    init, read, write, teardown = run(read_scenario(EXAMPLE))
    assert [r.index for r in (init, read, write, teardown)] == [-1, 0, 1, 2]
    assert read.outcome.rax == 0x90909090
    assert write.outcome.rip == HELPER_U + STUBS + STUB_BYTES * Stub.WR4 + 2
    gets = [e for e in read.events if isinstance(e, ev.kvm_mmu_get_page)]
    assert [(e.gfn, e.created) for e in gets] == [(0x10, True)] * 4 + [(3, True), (0x20, True)]
    # The read's spte is not writable, because the guest's D bit would be missed.
    first, second = (
        [e for e in result.events if isinstance(e, ev.kvm_mmu_set_spte) and e.gfn == 0x100]
        for result in (read, write)
    )
    assert [e.spte & 2 for e in (*first, *second)] == [0, 2]
    assert ev.kvm_mmu_set_dirty_bit(0x20000) in write.events
    assert write.stats["pf_fixed"] == 1
    assert [e.gfn for e in teardown.events if isinstance(e, ev.kvm_mmu_prepare_zap_page)][:2] == [0x20, 3]


def test_in_pae_paging_the_guest_changes_its_privilege_itself() -> None:
    b = (
        builder("pae")
        .op(f"rd s {GVA:x}")
        .op(f"rd u {GVA:x}")
        .op(f"wr u {GVA:x} 1")
        .op("nop")
        .op(f"rd s {GVA:x}")
    )
    rd_s, rd_u, wr_u = f"rd s 4 {GVA:x}", f"rd u 4 {GVA:x}", f"wr u 4 {GVA:x} 1"
    assert texts(b) == ["init", rd_s, "~sysexit", rd_u, wr_u, "~sysenter", "nop", rd_s, "teardown"]


def test_after_an_exception_the_handler_has_privilege() -> None:
    b = builder("pae").op("rd u 7000000").op(f"rd s {GVA:x}").op(f"rd u {GVA:x}")
    rd = [f"rd s 4 {GVA:x}", "~sysexit", f"rd u 4 {GVA:x}"]
    assert texts(b) == ["init", "~sysexit", "rd u 4 7000000", *rd, "teardown"]


def test_host_ops_leave_the_privilege_alone() -> None:
    b = builder("pae").op(f"rd u {GVA:x}").op("hw 4 100000 5").op("nrpages 40").op(f"rd u {GVA:x}")
    assert texts(b).count("~sysexit") == 1
    assert "~sysenter" not in texts(b)


def test_registers_of_the_vmm_have_privilege() -> None:
    """Where KVM refuses them the guest keeps its own."""
    cr0, cr3, cr4, efer = MODES["pae"]._replace(cr3=0x10000)
    for bad, helpers in ((0, ["~sysexit", "~sysexit"]), (1 << 63, ["~sysexit", "~sysenter", "~sysexit"])):
        b = builder("pae").op(f"rd u {GVA:x}").op(f"sregs {cr0:x} {cr3:x} {cr4 | bad:x} {efer:x}")
        b.op(f"rd s {GVA:x}").op(f"rd u {GVA:x}")
        assert [text for text in texts(b) if text.startswith("~")] == helpers


def test_what_the_helper_pages_do_not_name_is_zero() -> None:
    b = builder("64").op(f"rd s 8 {HELPER_S + 0xF00:x}").op(f"rd s 8 {HELPER_S + STUBS:x}")
    b.op(f"rd u 8 {HELPER_U + 0x100:x}")
    assert [r.outcome.rax for r in run(b.build())[1:-1]] == [0, 0x038B, 0]


@pytest.mark.parametrize("mode", ["32", "64"])
def test_elsewhere_the_vmm_sets_the_privilege(mode: str) -> None:
    assert not any(text.startswith("~") for text in texts(builder(mode).op(f"rd u {GVA:x}").op("nop")))


def test_a_helper_instruction_is_one_fetch_at_its_stub() -> None:
    results = run(builder("pae").op(f"rd u {GVA:x}").op("nop").build())
    sysexit, sysenter = (r for r in results if r.text.startswith("~"))
    assert isinstance(sysexit.op, ops.Sysexit)
    assert (sysexit.index, sysenter.index) == (0, 1)
    stubs = [HELPER_S + STUBS + STUB_BYTES * Stub.SYSEXIT, HELPER_U + STUBS + STUB_BYTES * Stub.SYSENTER]
    faults = [e.fault_address for e in sysexit.events if isinstance(e, ev.kvm_page_fault)]
    assert faults == stubs[:1]


def test_each_vcpu_begins_alike_and_has_a_privilege_of_its_own() -> None:
    b = builder("pae").op(f"wr u {GVA:x} 7").op(f"@1 rd s {GVA:x}").op(f"@1 rd u {GVA:x}").op(f"rd u {GVA:x}")
    results = run(b.build())
    assert [r.text for r in results] == [
        "init",
        "@1 init",
        "~sysexit",
        f"wr u 4 {GVA:x} 7",
        f"@1 rd s 4 {GVA:x}",
        "@1 ~sysexit",
        f"@1 rd u 4 {GVA:x}",
        f"rd u 4 {GVA:x}",
        "teardown",
    ]
    assert [r.outcome.rax for r in results if r.text.endswith(f"rd u 4 {GVA:x}")] == [7, 7]


def test_steps_for_l2_are_skipped_while_no_vcpu_is_in_it() -> None:
    assert texts(builder("64").op("!nop").op("?nop")) == ["init", "?nop", "teardown"]


def test_the_sink_sees_every_event_as_it_happens() -> None:
    seen: list[ev.Event] = []
    results = run(read_scenario(EXAMPLE), seen.append)
    assert seen == [e for r in results for e in r.events]


def test_pdptfix_clears_a_before_each_op() -> None:
    b = ScenarioBuilder("np").value(8, 0x10018, 0x21).pdptfix(0x10000).op("nop")
    runner = Runner(b.build())
    base = (runner.machine.memory.backing << 12) + 0x10018
    loaded = []
    for _ in runner.results():
        loaded.append(runner.machine.memory.load64(base))
    assert loaded == [0x21, 1, 1]


def test_an_op_not_modelled_is_refused_by_name_and_line(tmp_path: Path) -> None:
    path = tmp_path / "n.mmu"
    path.write_text("mmulab-scenario 1\nmode 32\ncpu lm=0\nops\nnop\n@1 smm on\nend\n")
    with pytest.raises(InputError, match=r"n\.mmu: line 6: the op smm is not modelled for a guest with lm=0"):
        run(read_scenario(path))


def test_code_that_the_machine_does_not_know_is_refused_with_its_line() -> None:
    b = builder("64").value(1, 0x100000, 0xF1).op("nop").op(f"xc s {GVA:x}", line=9)
    with pytest.raises(InputError, match=r"^<built>: line 9: "):
        run(b.build())


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_machine_knows_what_the_runner_lets_through(name: str) -> None:
    """Each op of the language runs, and those of the VMM and the host are listed as such."""
    form = FORMS[name]
    values = dict.fromkeys(form.args, 0) | dict(form.fixed)
    values |= {k: v for k, v in {"mode": Mode.SUPERVISOR, "size": 8, "count": 0x40}.items() if k in values}
    if name == "slot":
        values |= {"id": 1, "gpa": 0x2000000, "size": 0x1000}
    if name == "cpuid":
        values |= {"key": "smep"}
    if name == "sregs":
        values |= {"cr0": 0x31}
    machine = Machine(machine_config(ScenarioBuilder("np", dirty_ring=256).build()))
    op = form.type(**values)
    machine.execute(ops.SetSregs(cr0=0x31, cr3=0, cr4=0, efer=0))
    kind = machine.execute(op).kind
    assert (kind is OutcomeKind.HOST) == isinstance(op, HOST_OPS)


def alive() -> int:
    """Return how many machines' memories there are."""
    return sum(type(thing) is HostMemory for thing in gc.get_objects())


def test_a_machine_that_goes_takes_its_memory_with_it() -> None:
    """No cycle keeps it until the garbage collector comes: hundreds of small runs hold no memory."""
    scenario = read_scenario(EXAMPLE)
    seen: list[ev.Event] = []
    gc.collect()
    gc.disable()
    before = alive()
    try:
        assert list(Runner(scenario).results())
        assert list(Runner(scenario, seen.append).results())
        assert seen
        assert record(scenario).at(3).machine.kvm.vcpus
        assert alive() == before
    finally:
        gc.enable()
