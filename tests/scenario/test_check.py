"""Headers that contradict themselves, or that KVM would not take, are one line each."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import run
from mmulab.scenario.text import parse_scenario

EINVAL = 22


def text(mode: str, header: str, ops: str = "nop") -> str:
    root = "" if mode == "np" else "root 10000\n"
    return f"mmulab-scenario 1\nmode {mode}\n{header}\n{root}mem 1000000\nops\n{ops}\nend\n"


@pytest.mark.parametrize(
    ("mode", "header", "says"),
    [
        ("np", "host amd ept=1", "host amd has ept=1"),
        ("np", "host intel npt=1", "host intel has npt=1"),
        ("np", "host amd eptad=0", "host amd has eptad=0"),
        ("np", "host intel pml=1", "the host has pml=1 and ept=0"),
        ("np", "host intel ept=1 pml=1 eptad=0", "the host has pml=1 and eptad=0"),
        ("np", "host intel unrestricted_guest=1", "unrestricted_guest needs ept=1"),
        ("np", "cpu vmx=1", "cpu has vmx=1 on host amd"),
        ("64", "cpu lm=0", "the guest begins with EFER.LME or LMA (mode 64), but cpu has lm=0"),
        ("pae", "cpu nx=0", "the guest begins with EFER.NX (mode pae), but cpu has nx=0"),
        ("pae", "cpu pae=0", "the guest begins with CR4.PAE (mode pae), but cpu has pae=0"),
        ("57", "cpu la57=0", "the guest begins with CR4.LA57 (mode 57), but cpu has la57=0"),
        ("32", "cpu pse=0", "the guest begins with CR4.PSE"),
        ("64", "sregs 80010031 10000 20 1d00", "the guest begins with EFER.SVME (mode 64)"),
        ("64", "sregs 10031 10000 20 d00", "EFER.LMA is set without both CR0.PG and EFER.LME"),
        ("64", "sregs 80010031 10000 0 d00", "EFER.LME and CR0.PG are set without CR4.PAE"),
        ("64", "sregs 80010031 10000 20 900", "EFER.LME and CR0.PG are set without EFER.LMA"),
        ("64", "sregs 180010031 10000 20 d00", "CR0 has bits above 31"),
        ("64", "sregs a0010031 10000 20 d00", "CR0.NW is set without CD"),
        ("32", "sregs 80010030 10000 10 0", "CR0.PG is set without PE"),
        ("64", "sregs 80010031 10000010000 20 d00", "CR3 has bits beyond the 40"),
        ("64", "sregs 80010031 10000 400020 d00", "CR4.PKE is set, but the guest's CPUID has pku=0"),
        ("64", "sregs 80010031 10000 800020 d00", "CR4 has bits 800000, which KVM does not have"),
        ("64", "sregs 80010031 10000 80000020 d00", "CR4 has bits 80000000, which KVM does not have"),
        ("64", "sregs 80010031 10000 20 10000d00", "EFER has bits 10000000, on which VM entry fails"),
        ("np", "slot 7ffc 0 1000 0 0", "KVM_SET_USER_MEMORY_REGION refuses slot 7ffc"),
        ("np", "dirtyring 180", "KVM refuses a dirty ring of 180 entries, expected a power of two from 100"),
        ("np", "dirtyring 20000", "KVM refuses a dirty ring of 20000 entries"),
        ("np", "slot 1 fffffffffff000 1000 0 0", "its last page lies above gfn ffffffffff"),
    ],
)
def test_a_header_that_cannot_be_is_one_line(mode: str, header: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        run(parse_scenario(text(mode, header), "a.mmu"))
    message = str(caught.value)
    assert message.startswith("a.mmu: line 3: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ("host intel\ncpu svm=1", "line 4: cpu has svm=1 on host intel"),
        ("host amd nested=0\ncpu svm=1\nsregs 80010031 10000 20 1d00", "line 3: the guest begins"),
        ("host intel nested=0\ncpu vmx=1\nsregs 80010031 10000 2020 d00", "line 5: KVM_SET_SREGS refuses"),
        ("cpu pku=1\nsregs 80010031 10000 400020 d00", "line 4: KVM_SET_SREGS refuses"),
        ("host intel ept=1\nslot 1 10000000000 1000 0 0", "line 4: KVM_SET_USER_MEMORY_REGION"),
    ],
)
def test_the_line_named_is_the_one_to_change(headers: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"a\.mmu: {says}"):
        run(parse_scenario(text("64", headers), "a.mmu"))


def test_under_pml_a_dirty_ring_has_a_larger_reserve() -> None:
    text_ = text("np", "host intel ept=1 pml=1\ndirtyring 200", "getring")
    with pytest.raises(InputError, match=r"^a.mmu: line 4: .* a power of two from 400 "):
        run(parse_scenario(text_, "a.mmu"))
    assert run(parse_scenario(text_.replace("pml=1", "pml=0")))[1].outcome.ring == []


def test_without_a_dirty_ring_there_is_nothing_to_take() -> None:
    with pytest.raises(InputError, match="line 6: the VM has no dirty rings"):
        run(parse_scenario(text("np", "vcpus 2", "@1 getring"), "a.mmu"))


def test_shadow_paging_takes_slots_that_two_dimensional_paging_does_not() -> None:
    assert run(parse_scenario(text("np", "slot 1 10000000000 1000 0 0")))


def _sregs(host: str, cpu: str, *registers: str) -> list[Outcome]:
    ops = "\n".join(f"sregs {each}" for each in registers)
    header = f"host {host}" + (f"\ncpu {cpu}" if cpu else "")
    return [r.outcome for r in run(parse_scenario(text("64", header, ops))) if r.text.startswith("sregs")]


def test_registers_that_kvm_refuses_are_einval_and_nothing_changes() -> None:
    """``kvm_is_valid_sregs``; the guest goes on with what it had."""
    bad = ["10031 10000 20 d00", "80010031 10000 0 d00", "180010031 10000 20 d00"]
    bad += ["80010031 100000010000 20 d00", "80010031 10000 100020 d00", "80010031 10000 800020 d00"]
    taken, *refused = _sregs("intel", "smep=0", "80010031 10000 20 d00", *bad)
    assert (taken.kind, taken.result) == (OutcomeKind.HOST, None)
    assert {(each.kind, each.result) for each in refused} == {(OutcomeKind.HOST, -EINVAL)}
    scenario = parse_scenario(text("64", "host intel\ncpu smep=0", "sregs 10031 0 20 d00\nrd s 2800"))
    read = run(scenario)[-2].outcome
    assert (read.kind, read.rax) == (OutcomeKind.OK, 0x038B)  # mov (%rbx), %eax


def test_kvm_takes_efer_that_no_cpuid_has_from_the_vmm() -> None:
    assert [each.result for each in _sregs("amd", "nx=1 svm=0", "80010031 10000 20 1d00")] == [None]


@pytest.mark.parametrize("wrong", [{"npt": 2}, {"phys_bits": 31}, {"virt_bits": 40}, {"cache_bits": 53}])
def test_python_has_the_same_ranges(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ScenarioBuilder("np", host=wrong)
