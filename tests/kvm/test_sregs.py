"""Which bits of CR4 and EFER a guest may set: by its CPUID, and by what KVM has on this host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.kvm.sregs import CR4_FEATURES, CR4_WITHOUT_CPUID, invalid_cr4, kvm_valid_efer
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.runner import run
from mmulab.scenario.text import parse_scenario
from mmulab.x86.regs import CpuModel

GP, UD = 13, 6
EVERYTHING = CpuModel(pku=True, pcid=True, vmx=True, svm=True, fxsr_opt=True)
AMD = HostConfig(tdp=True)
INTEL = HostConfig(vendor="intel", tdp=True)


def outcome(host: str, cpu: str, op: str, *, mode: str = "64", header: str = "") -> Outcome:
    cpu = f"cpu {cpu}\n" if cpu else ""
    text = f"mmulab-scenario 1\nmode {mode}\nhost {host}\n{cpu}{header}root 10000\nops\n{op}\nend\n"
    return [r.outcome for r in run(parse_scenario(text)) if r.text == op][-1]


def refused(host: str, cpu: str, op: str) -> bool:
    result = outcome(host, cpu, op)
    if result.kind is OutcomeKind.OK:
        return False
    assert (result.kind, result.vector, result.error_code) == (OutcomeKind.EXC, GP, 0)
    return True


@pytest.mark.parametrize(("bit", "feature"), CR4_FEATURES.values())
def test_a_bit_of_cr4_takes_its_cpuid_feature(bit: int, feature: str) -> None:
    assert not invalid_cr4(INTEL, EVERYTHING, bit)
    assert feature in invalid_cr4(INTEL, replace(EVERYTHING, **{feature: False}), bit)


def test_other_bits_of_cr4_are_there_or_not() -> None:
    free = sum(CR4_WITHOUT_CPUID.values()) | sum(bit for bit, _ in CR4_FEATURES.values())
    for bit in range(64):
        assert bool(invalid_cr4(INTEL, EVERYTHING, 1 << bit)) is not bool(free >> bit & 1)
    assert not free >> 14 & 1  # SMXE
    assert not free >> 23 & 1  # CET


def test_kvm_keeps_features_to_itself() -> None:
    assert invalid_cr4(AMD, EVERYTHING, 1 << 13)
    assert invalid_cr4(replace(INTEL, nested=False), EVERYTHING, 1 << 13)
    assert invalid_cr4(replace(INTEL, tdp=False), EVERYTHING, 1 << 22)


@pytest.mark.parametrize(
    ("bit", "feature", "amd", "intel"),
    [
        (0, "", True, True),
        (1, "", False, False),
        (8, "lm", True, True),
        (10, "lm", True, True),
        (11, "nx", True, True),
        (12, "svm", True, False),
        (13, "", True, False),
        (14, "fxsr_opt", True, False),
        (15, "", False, False),
        (63, "", False, False),
    ],
)
def test_a_bit_of_efer_is_of_a_vendor_and_takes_its_cpuid_feature(
    bit: int, feature: str, amd: bool, intel: bool
) -> None:
    for host, allowed in ((AMD, amd), (INTEL, intel)):
        assert kvm_valid_efer(host, EVERYTHING, 1 << bit) is allowed
        if feature:
            assert not kvm_valid_efer(host, replace(EVERYTHING, **{feature: False}), 1 << bit)


def test_svm_takes_nested_and_long_mode_a_64_bit_kernel() -> None:
    assert not kvm_valid_efer(replace(AMD, nested=False), EVERYTHING, 1 << 12)
    assert not kvm_valid_efer(replace(AMD, nested=False), EVERYTHING, 1 << 13)
    assert not kvm_valid_efer(replace(AMD, x86_64=False), EVERYTHING, 1 << 8)


@pytest.mark.parametrize(
    ("host", "cpu", "op", "is_refused"),
    [
        ("amd", "", "cr4 800020", True),
        ("intel", "", "cr4 80000020", True),
        ("intel", "", "cr4 2020", True),
        ("intel", "vmx=1", "cr4 2020", False),
        ("intel nested=0", "vmx=1", "cr4 2020", True),
        ("amd", "", "cr4 400020", True),
        ("amd", "pku=1", "cr4 400020", True),
        ("amd npt=1", "pku=1", "cr4 400020", False),
        ("amd", "umip=0", "cr4 820", True),
        ("amd", "xsave=0", "cr4 40020", True),
        ("amd", "", "cr4 40020", False),
        ("amd", "fsgsbase=0", "cr4 10020", True),
        ("amd", "", "efer 1d00", True),
        ("amd", "svm=1", "efer 1d00", False),
        ("amd nested=0", "svm=1", "efer 1d00", True),
        ("intel", "", "efer 1d00", True),
        ("amd", "", "efer 4d00", True),
        ("amd", "fxsr_opt=1", "efer 4d00", False),
        ("intel", "fxsr_opt=1", "efer 4d00", True),
        ("intel", "", "efer 8d00", True),
    ],
)
def test_the_guest_gets_gp_for_what_it_may_not_set(host: str, cpu: str, op: str, is_refused: bool) -> None:
    assert refused(host, cpu, op) is is_refused


@pytest.mark.parametrize("host", ["amd", "amd npt=1", "intel", "intel ept=1"])
def test_cr3_ends_at_maxphyaddr_and_code_of_32_bits_has_but_half_a_register(host: str) -> None:
    """Where MOV to CR3 is not intercepted the processor checks it (SDM 3, 4.5.4)."""
    assert refused(host, "", "cr3 10000010000")
    assert not refused(host, "", "cr3 10000")
    assert outcome(host, "", "cr3 10000010000", mode="32").kind is OutcomeKind.OK
    assert outcome(host, "", "cr0 180010031", mode="32").kind is OutcomeKind.OK
    assert refused(host, "", "cr0 180010031")
