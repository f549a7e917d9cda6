"""Modes, their geometry and canonical addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.x86.mode import (
    MODES,
    PAGING_4LEVEL,
    PAGING_5LEVEL,
    PAGING_32,
    PAGING_PAE,
    PagingMode,
    is_canonical,
    paging_mode,
)
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG, X86_CR4_LA57, X86_CR4_PAE


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "name"),
    [
        (0, X86_CR4_PAE | X86_CR4_LA57, 0, "nonpaging"),
        (X86_CR0_PG, 0, 0, "32"),
        (X86_CR0_PG, X86_CR4_LA57, 0, "32"),
        (X86_CR0_PG, X86_CR4_PAE, 0, "pae"),
        (X86_CR0_PG, X86_CR4_PAE | X86_CR4_LA57, 0, "pae"),
        (X86_CR0_PG, X86_CR4_PAE, EFER_LMA, "4level"),
        (X86_CR0_PG, X86_CR4_PAE | X86_CR4_LA57, EFER_LMA, "5level"),
    ],
)
def test_control_registers_select_the_mode(cr0: int, cr4: int, efer: int, name: str) -> None:
    assert paging_mode(cr0, cr4, efer).name == name


@pytest.mark.parametrize(
    ("name", "level", "shift"),
    [("32", 1, 12), ("32", 2, 22), ("pae", 3, 30), ("4level", 2, 21), ("4level", 4, 39), ("5level", 5, 48)],
)
def test_level_shift(name: str, level: int, shift: int) -> None:
    assert MODES[name].level_shift(level) == shift


@given(va=st.integers(0, (1 << 57) - 1))
@pytest.mark.parametrize("mode", [PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL])
def test_indexes_and_offset_make_up_the_address(mode: PagingMode, va: int) -> None:
    va &= (1 << mode.va_bits) - 1
    again = va & 0xFFF
    for level in range(1, mode.root_level + 1):
        again |= mode.index(va, level) << mode.level_shift(level)
    assert again == va
    assert mode.index(va, mode.root_level) < 1 << mode.root_index_bits


@pytest.mark.parametrize(
    ("name", "va", "canonical"),
    [
        ("4level", 0x7FFF_FFFF_FFFF, True),
        ("4level", 0x8000_0000_0000, False),
        ("4level", 0xFFFF_7FFF_FFFF_FFFF, False),
        ("4level", 0xFFFF_8000_0000_0000, True),
        ("4level", 0xFFFF_FFFF_FFFF_FFFF, True),
        ("5level", 0x8000_0000_0000, True),
        ("5level", 0x00FF_FFFF_FFFF_FFFF, True),
        ("5level", 0x0100_0000_0000_0000, False),
        ("5level", 0xFEFF_FFFF_FFFF_FFFF, False),
        ("5level", 0xFF00_0000_0000_0000, True),
        ("pae", 0xFFFF_FFFF, True),
        ("pae", 0x1_0000_0000, False),
        ("nonpaging", 0xFFFF_FFFF, True),
    ],
)
def test_canonical_addresses(name: str, va: int, canonical: bool) -> None:
    assert is_canonical(va, MODES[name]) == canonical


@given(va=st.integers(0, (1 << 64) - 1))
@pytest.mark.parametrize("mode", [PAGING_4LEVEL, PAGING_5LEVEL])
def test_canonical_means_sign_extended(mode: PagingMode, va: int) -> None:
    low = va & (1 << mode.va_bits) - 1
    signed = low - (1 << mode.va_bits) if low >> (mode.va_bits - 1) else low
    assert is_canonical(va, mode) == (signed % (1 << 64) == va)
