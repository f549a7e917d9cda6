"""What is recorded, as the VMM reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.recording import read_lines
from mmulab.record.work import Work, features, of_scenario, read_recorded
from mmulab.scenario.text import parse_scenario, read_scenario
from tests.conform.deaths import cut_short, write

SUPPORTED = {"maxphyaddr": 40, "la57": 0, "pku": 1}


def work(text: str) -> Work:
    return of_scenario("name", parse_scenario(f"mmulab-scenario 1\n{text}\nend\n", "file.mmu"))


def test_a_scenario_becomes_lines(root: Path) -> None:
    made = of_scenario("first", read_scenario(root / "tests/scenario/examples/first_fault.mmu"))
    lines = made.job(SUPPORTED).splitlines()
    assert lines[:3] == ["mem 1000000", "nolock 0", "thp 0"]  # memory first, for what is put into it
    assert {"manualdirty 0", "dirtyring 0", "nxdisable 0", "vcpus 1"} <= set(lines)
    assert "sregs 80010031 10000 10 0" in lines
    assert "slot 0 0 1000000 0 0" in lines
    assert {"feature maxphyaddr 80000008 0 0 0 8 28", "feature la57 7 0 2 10 1 0"} <= set(lines)
    assert "helper 1800 8b030000000000000000000000000000" in lines  # the stub of a read
    assert lines[-4:] == ["ops", "0 rd u 4 40000000", "1 wr u 4 40000008 1", "end 2"]


def test_the_guest_has_no_feature_that_the_host_lacks() -> None:
    assert features({"la57": 1, "pku": 0}, SUPPORTED) == {"maxphyaddr": 40, "la57": 0, "pku": 0}


def test_a_recording_keeps_numbers_of_ops_and_what_its_header_says(root: Path) -> None:
    path = root / "data/conformance/6.1.192/nested-nonpt/nested-nonpt-32-l2-np.jsonl.xz"
    made = read_recorded(path)
    assert made.n_ops == 15  # of which nine ran
    assert [number for number, _ in made.ops] == list(range(9))
    assert made.described["l2_mode"] == "np"
    assert "host" not in made.described
    assert made.parameters().of_module("kvm_amd") == ["npt=0"]


def test_as_many_vcpus_as_its_ops_name() -> None:
    assert work("mode np\nops\nnop").scenario.vcpus == 1
    assert work("mode np\nops\n@2 nop").scenario.vcpus == 3


def test_what_the_vmm_does_for_another_vcpu_is_no_op(root: Path) -> None:
    made = read_recorded(root / "data/conformance-more/6.1.192/smp/smp-fuzz-pae-mix-00.jsonl.xz")
    assert made.scenario.vcpus == 2
    assert any(text.startswith("@1 ") for _, text in made.ops)
    assert not any("init" in text or "~" in text for _, text in made.ops)


def test_stubs_that_no_recording_has_come_with_their_op() -> None:
    assert "helper 19e0 660f3882" not in work("mode np\nops\nnop").job(SUPPORTED)
    assert "helper 19e0 660f3882" in work("mode np\nops\ninvpcid 0 0 0").job(SUPPORTED)


def test_memory_that_is_aged_is_not_locked() -> None:
    """Locked pages are never reclaimed, so nobody asks whether they were used."""
    aged, other = work("mode np\nops\nage 1000 1000"), work("mode np\nops\ncollapse 200000 200000")
    assert (aged.nolock, other.nolock) == (True, False)
    assert aged.job(SUPPORTED).splitlines()[1] == "nolock 1"


def test_dirty_rings_have_their_size() -> None:
    lines = work("mode np\ndirtyring 400\nops\n@1 getring").job(SUPPORTED).splitlines()
    assert {"dirtyring 400", "vcpus 2", "0 @1 getring"} <= set(lines)


def test_a_vm_opts_out_of_nx_huge_pages() -> None:
    lines = work("mode np\nnxdisable 1\nops\nnxhuge 1").job(SUPPORTED).splitlines()
    assert {"nxdisable 1", "0 nxhuge 1"} <= set(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode np\nops\nvmxon 1000", "line 4: op vmxon: an AMD host has none such"),
        ("mode np\nhost amd x86_64=0 virt_bits=30\nops", "32-bit kernel"),
    ],
)
def test_what_no_host_can_run_has_a_reason(text: str, said: str) -> None:
    assert said in work(text).obstacle()


def test_a_scenario_that_killed_a_kernel_is_recorded_anew(root: Path, tmp_path: Path) -> None:
    lines = read_lines(root / "data/conformance/6.1.192/sh/basic-64.jsonl.xz")
    made = read_recorded(write(tmp_path / "died.jsonl", cut_short(lines, 5)))
    assert made.n_ops == made.ops[-1][0] + 1
    assert made.job(SUPPORTED).splitlines()[-1] == f"end {made.n_ops}"


def test_an_intel_host_runs_ops_of_vmx() -> None:
    made = work("mode np\nhost intel ept=1\nops\nvmxon 1000")
    assert made.obstacle() == ""
    assert made.parameters().vendor == "intel"
    assert "helper 1930 f30fc733000000000000000000000000" in made.job({"vmx": 1})
