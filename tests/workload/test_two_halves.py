"""The guest that needs quadrants: right with them, wrong without."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.find import find_design
from mmulab.workload.two_halves import REGION, Run, TwoHalves, two_halves
from mmulab.x86.regs import X86_CR4_PSE

SEEDS = st.integers(0, 2**32)


def guest(derivation: str, seed: int = 0, design: str = "passthrough") -> TwoHalves:
    kernel = LINUX_6_1.with_(design=find_design(design), derivation=find_derivation(derivation))
    return two_halves(kernel, seed)


def leaf_pages(run: Run) -> list[tuple[int, bool]]:
    """Return (quadrant, created) of every level-1 page that the reads asked for."""
    facts = run.machine.config.kernel.design.facts
    asked = [e for e in run.recording.events if isinstance(e, ev.kvm_mmu_get_page)]
    return [(facts(e.role).quadrant, e.created) for e in asked if facts(e.role).level == 1]


@given(SEEDS)
def test_pages_lie_in_the_two_halves_of_one_region(seed: int) -> None:
    lower, upper = guest("parity", seed).pages
    assert lower // REGION == upper // REGION
    assert lower % REGION < REGION // 2
    assert upper - lower == REGION // 2


def test_guest_has_32_bit_paging_without_pse() -> None:
    run = guest("parity").run()
    (vcpu,) = run.machine.kvm.vcpus
    assert not vcpu.cr4 & X86_CR4_PSE
    assert vcpu.walk_mmu.paging is not None
    assert vcpu.walk_mmu.paging.mode.name == "32"


@given(SEEDS, st.sampled_from(list(DESIGNS)))
def test_parity_is_right(seed: int, design: str) -> None:
    run = guest("parity", seed, design).run()
    assert [access.reached for access in run.accesses] == [access.expected for access in run.accesses]
    assert run.wrong == ()
    assert leaf_pages(run) == [(0, True), (1, True)]


@given(SEEDS)
def test_copied_quadrant_is_wrong_at_the_third_read(seed: int) -> None:
    found = guest("copied", seed)
    lower, upper = found.pages
    run = found.run()
    (wrong,) = run.wrong
    expected, reached = found.pages[lower] << 12, found.pages[upper] << 12
    assert (wrong.number, wrong.gva, wrong.expected, wrong.reached) == (3, lower, expected, reached)
    assert str(wrong) == f"op 3: read of gva {lower:#x}: expected gpa {expected:#x}, reached gpa {reached:#x}"
    (first, created), (second, again) = leaf_pages(run)
    assert first == second
    assert (created, again) == (True, False)
    assert run.recording.events_of(3) == [], "no fault tells of it"
    assert list(run.recording.verdicts) == [3]


def test_seed_decides_everything() -> None:
    assert guest("parity", 7) == guest("parity", 7)
    assert guest("parity", 7).pages != guest("parity", 8).pages
