"""Markers of role validity: what they write, and whether a comparison can miss it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.kvm.context import base_facts, kvm_calc_cpu_role
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.validity import VALIDITIES, Validity, find_validity, unchanged
from mmulab.x86.regs import X86_CR0_PG, CpuModel

BITS = st.integers(0, (1 << 32) - 1)
DESIGN = DESIGNS["passthrough"]
CPU = CpuModel(maxphyaddr=40)
ALWAYS_SEEN = ("valid", "cpuid_stale", "zero_word", "invalid_bit")
"""Markers that no calculated CPU role has on it."""


def context(marker: Validity, cr0: int, cr4: int, efer: int) -> Mmu:
    """Return a context as an init function leaves it, without TDP and with at least three levels."""
    role = marker.cpu_role(kvm_calc_cpu_role(cr0, cr4, efer, smm=0, guest_mode=False), CPU)
    facts = base_facts(role)._replace(level=max(role.level, 3))
    return Mmu("paging64", role, DESIGN.pack(facts, role), facts, facts.level, facts.direct)


@given(BITS, BITS, BITS)
def test_a_marked_cpu_role_is_none_that_registers_give(cr0: int, cr4: int, efer: int) -> None:
    """Of ``nested_mmu``, and of ``guest_mmu`` with EPT, the CPU role alone is compared."""
    for name in ALWAYS_SEEN:
        mmu = context(VALIDITIES[name], cr0, cr4, efer)
        role = mmu.cpu_role
        assert unchanged(mmu, role, None)
        VALIDITIES[name].mark(mmu, DESIGN)
        assert not unchanged(mmu, role, None)


@given(BITS, BITS, BITS)
def test_level_0_is_a_mark_unless_paging_is_off(cr0: int, cr4: int, efer: int) -> None:
    """Message-Id YgRGQ1HiB2jSTr5M@google.com; the root role's level is never 0."""
    mmu = context(VALIDITIES["level_zero"], cr0, cr4, efer)
    cpu_role, root_role = mmu.cpu_role, mmu.root_role
    VALIDITIES["level_zero"].mark(mmu, DESIGN)
    assert unchanged(mmu, cpu_role, None) == (not cr0 & X86_CR0_PG)
    assert not unchanged(mmu, cpu_role, root_role)


@pytest.mark.parametrize("name", ["force_role_reset", "maxphyaddr"])
def test_some_write_nothing(name: str) -> None:
    mmu = context(VALIDITIES[name], X86_CR0_PG, 0, 0)
    before = mmu.cpu_role, mmu.root_role
    VALIDITIES[name].mark(mmu, DESIGN)
    assert (mmu.cpu_role, mmu.root_role) == before


@given(st.integers(32, 52), st.integers(32, 52))
def test_maxphyaddr_in_the_role_tells_widths_apart_and_nothing_else(one: int, other: int) -> None:
    marker, role = VALIDITIES["maxphyaddr"], kvm_calc_cpu_role(X86_CR0_PG, 0, 0, smm=0, guest_mode=False)
    first = marker.cpu_role(role, CpuModel(maxphyaddr=one))
    assert (first == marker.cpu_role(role, CpuModel(maxphyaddr=other))) == (one == other)
    assert first == marker.cpu_role(role, CpuModel(maxphyaddr=one, gbpages=False, nx=False))


def test_linux_6_1_clears_the_root_word_and_the_valid_bit() -> None:
    marker = find_validity("valid")
    assert marker is next(iter(VALIDITIES.values()))
    mmu = context(marker, X86_CR0_PG, 0x20, 0x500)
    role = mmu.cpu_role
    marker.mark(mmu, DESIGN)
    assert (mmu.root_role, mmu.cpu_role) == (0, role._replace(valid=0))
    assert (mmu.root_level, mmu.direct) == (0, False)


def test_linux_6_10_leaves_the_rest_of_the_root_word() -> None:
    mmu = context(VALIDITIES["invalid_bit"], 0, 0, 0)
    word = mmu.root_role
    VALIDITIES["invalid_bit"].mark(mmu, DESIGN)
    assert mmu.root_role == word | DESIGN.layout.mask["invalid"]
    assert (mmu.root_level, mmu.direct) == (3, True)
    assert mmu.root_facts is not None
    assert mmu.root_facts.invalid


def test_a_context_that_was_never_configured_keeps_no_shape() -> None:
    mmu = Mmu()
    VALIDITIES["invalid_bit"].mark(mmu, DESIGN)
    assert mmu.root_facts is None
    assert mmu.root_role == DESIGN.layout.mask["invalid"]


@pytest.mark.parametrize("name", ["level_zero", "invalid_bit"])
@pytest.mark.parametrize("design", list(DESIGNS.values()), ids=list(DESIGNS))
def test_a_field_is_written_where_the_design_has_it(name: str, design: object) -> None:
    field = {"level_zero": "level", "invalid_bit": "invalid"}[name]
    mmu = Mmu(root_role=(1 << 16) - 1)
    VALIDITIES[name].mark(mmu, design)  # type: ignore[arg-type]
    assert design.layout.get(mmu.root_role, field) == int(field == "invalid")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "place",
    ["cpu_role.ext.level", "cpu_role.base.valid", "cpu_role.valid", "cpu_role.ext.word", "mmu_role.x"],
)
def test_a_place_that_the_cpu_role_has_not_is_refused(place: str) -> None:
    marker = Validity("own", "", "", ((place, 1),))
    with pytest.raises(InputError, match=f"a marker cannot write 1 to '{place}'"):
        marker.mark(Mmu(), DESIGN)


def test_a_field_that_the_design_has_not_is_refused() -> None:
    marker = Validity("own", "", "", (("root_role.glevel", 0),))
    with pytest.raises(InputError, match="role design passthrough has no field 'glevel'"):
        marker.mark(Mmu(), DESIGN)


def test_an_unknown_marker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="role validity 'none': unknown; the markers are valid, level_z"):
        find_validity("none")


def test_what_only_the_comparison_needs_is_zero_in_an_empty_role() -> None:
    assert (CpuRole().valid, CpuRole().cpuid_stale, CpuRole().maxphyaddr) == (0, 0, 0)
