"""How KVM_RUN ends when the instruction does not."""

from __future__ import annotations

import errno

import pytest

from mmulab import events as ev
from mmulab.machine import op as ops
from mmulab.machine.config import MachineConfig
from mmulab.machine.kvm_run import MAX_EXITS
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.scenario.runner import Result
from tests.scenario.texts import ran


def kinds(result: Result) -> list[str]:
    return [type(event).__name__ for event in result.events]


def test_mmio_while_an_event_is_delivered_ends_with_an_internal_error() -> None:
    """Without memory the guest's tables are gone, and the #PF is delivered through them."""
    done = ran("host intel ept=1\nmode 64\nroot 10000\nops\nslotdel 0\nnop\nnop")[1:]
    for result in done:
        assert (result.outcome.kind, result.outcome.suberror) == (OutcomeKind.INTERNAL_ERROR, 3)
        last = result.events[-1]
        assert isinstance(last, ev.kvm_exit)
        assert (last.reason, last.idt_vectoring) == ("ept_misconfig", 0x80000B0E)
    first, second = ([e for e in result.events if isinstance(e, ev.kvm_inj_exception)] for result in done)
    assert [event.reinjected for event in first][:1] == [False]
    assert second[0].reinjected, "the VMM runs the vCPU again, with the event still on its way"


def test_amd_has_no_such_check_and_delivers_for_ever() -> None:
    (_, result) = ran("host amd npt=1\nmode 64\nroot 10000\nops\nslotdel 0\nnop")
    assert (result.outcome.kind, result.outcome.error) == (OutcomeKind.HANG, errno.EINTR)


def test_without_memory_there_is_no_root_and_kvm_run_fails() -> None:
    """The limit of shadow pages grows with the memslots; before the first it is 0."""
    seen: list[ev.Event] = []
    machine = Machine(MachineConfig(slots=()), seen.append)
    machine.execute(ops.SetSregs(cr0=0x11, cr3=0, cr4=0, efer=0))
    outcome = machine.execute(ops.Touch(Mode.SUPERVISOR, 0x1000))
    assert (outcome.kind, outcome.error) == (OutcomeKind.HANG, errno.ENOSPC)
    assert [type(event) for event in seen].count(ev.kvm_mmu_load) == 1


def test_a_table_in_a_read_only_slot_faults_for_ever() -> None:
    """EPT with A/D bits writes each table it reads; KVM unprotects nothing and enters again."""
    slots = "slot0 30000\nslot 1 30000 1000 2 30000\nslot 2 31000 fcf000 0 31000"
    tables = "root 10000\nalloc 20000\nm4 10400 20067 30067\nm4 20000 30067\nm4 30000 100067"
    text = f"host intel ept=1\nmode 32\n{slots}\n{tables}\nops"
    mapped, result = ran(f"{text}\nrd s 40000000\nrd s 40400000")
    assert mapped.outcome.kind is OutcomeKind.OK
    assert (result.outcome.kind, result.outcome.error) == (OutcomeKind.HANG, errno.EINTR)
    assert kinds(result).count("kvm_exit") <= MAX_EXITS + 1


@pytest.mark.parametrize("slot", ["", "slot 1 1000 1000 2 1000\n"], ids=["mmio", "read-only"])
@pytest.mark.parametrize("host", ["amd npt=1", "amd npt=0", "intel ept=1", "intel ept=0"])
def test_what_the_emulator_drops_or_finds_is_not_injected_again(host: str, slot: str) -> None:
    """The IDT and the stack are device memory, or memory that cannot be pushed to.

    The emulator clears the queue (``x86_emulate_instruction``): the #PF that it
    finds is a new one. Where it lets the processor retry instead, there is none.
    An exit that it has no part in leaves the exception to be injected again.
    """
    slots = f"slot0 1000\n{slot}slot 2 2000 ffe000 0 2000"
    (result,) = ran(f"host {host}\nmode 64\nroot 10000\n{slots}\nops\nrd u 40000000")
    delivering = emulated = injections = 0
    for event in result.events:
        if isinstance(event, ev.kvm_exit):
            delivering, emulated = int(event.idt_vectoring is not None), 0
        elif isinstance(event, ev.kvm_emulate_insn):
            emulated = 1
        elif isinstance(event, ev.kvm_inj_exception):
            injections += 1
            assert event.reinjected is bool(delivering and not emulated)
    assert injections
