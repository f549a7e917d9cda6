"""Rights and reserved bits against the manuals' tables."""

from __future__ import annotations

from itertools import product

import pytest

from mmulab.x86.paging import KVM_WALK, PROCESSOR, Walker, make_paging, pdpte_reserved, permission_bitmask
from mmulab.x86.pferr import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)

BOOLS = (False, True)
CONTROL = {
    "32": (0, 0),
    "pae": (X86_CR4_PAE, 0),
    "4level": (X86_CR4_PAE, EFER_LMA),
    "5level": (X86_CR4_PAE | X86_CR4_LA57, EFER_LMA),
}


def span(high: int, low: int) -> int:
    """Return the bits `high`:`low`, written as the manuals write them."""
    return sum(1 << bit for bit in range(low, high + 1))


def allowed_by_sdm(
    kind: str, user: bool, page: int, *, wp: bool, smep: bool, smap: bool, nx: bool, ac: bool
) -> bool:
    """State SDM 3, 4.6.1 paragraph by paragraph, for an address whose path has rights `page`."""
    user_address, writable, executable = (
        bool(page & mask) for mask in (ACC_USER_MASK, ACC_WRITE_MASK, ACC_EXEC_MASK)
    )
    if kind == "fetch":
        if user:
            return user_address and (executable or not nx)
        if user_address and smep:
            return False
        return executable or not nx
    if user:
        return user_address and (kind == "read" or writable)
    if user_address and smap and not ac:
        return False
    return kind == "read" or writable or not wp


@pytest.mark.parametrize(("wp", "smep", "smap", "nx"), list(product(BOOLS, repeat=4)))
def test_permissions_are_those_of_the_manual(wp: bool, smep: bool, smap: bool, nx: bool) -> None:
    table = permission_bitmask(wp=wp, smep=smep, smap=smap, nx=nx)
    assert len(table) == 16
    for kind, user, page, ac in product(("read", "write", "fetch"), BOOLS, range(8), BOOLS):
        pfec = {"read": 0, "write": 2, "fetch": 16}[kind] | 4 * user | 8 * ac
        allowed = allowed_by_sdm(kind, user, page, wp=wp, smep=smep, smap=smap, nx=nx, ac=ac)
        assert table[pfec >> 1] >> page & 1 == (not allowed), (kind, user, page, ac)


INTEL46 = CpuModel(vendor="intel", maxphyaddr=46)
AMD48 = CpuModel(vendor="amd", maxphyaddr=48)
AMD48_SMALL = CpuModel(vendor="amd", maxphyaddr=48, gbpages=False)
NARROW = CpuModel(vendor="intel", maxphyaddr=36)
NO_PSE36 = CpuModel(vendor="intel", maxphyaddr=36, pse36=False)
WIDE = CpuModel(vendor="intel", maxphyaddr=52)


@pytest.mark.parametrize(
    ("cpu", "name", "level", "bit7", "reserved"),
    [
        # 32-bit paging (SDM 3, tables 4-4 to 4-6); no reserved bits without PSE.
        (INTEL46, "32", 1, 0, 0),
        (INTEL46, "32", 1, 1, 0),
        (INTEL46, "32", 2, 0, 0),
        (INTEL46, "32", 2, 1, 0),
        (INTEL46, "32+pse", 1, 1, 0),
        (INTEL46, "32+pse", 2, 0, 0),
        (INTEL46, "32+pse", 2, 1, span(21, 21)),
        (NARROW, "32+pse", 2, 1, span(21, 17)),
        (NO_PSE36, "32+pse", 2, 1, span(21, 13)),
        # PAE paging (tables 4-9 to 4-11): 62:M reserved, and 63 without NX.
        (INTEL46, "pae", 1, 0, span(63, 46)),
        (INTEL46, "pae", 1, 1, span(63, 46)),
        (INTEL46, "pae", 2, 0, span(63, 46)),
        (INTEL46, "pae", 2, 1, span(63, 46) | span(20, 13)),
        (INTEL46, "pae+nx", 1, 0, span(62, 46)),
        (AMD48, "pae+nx", 2, 1, span(62, 48) | span(20, 13)),
        # 4-level and 5-level paging (tables 4-15 to 4-20): 51:M reserved.
        (INTEL46, "4level+nx", 1, 0, span(51, 46)),
        (INTEL46, "4level+nx", 1, 1, span(51, 46)),
        (INTEL46, "4level", 1, 1, span(51, 46) | span(63, 63)),
        (INTEL46, "4level+nx", 2, 0, span(51, 46)),
        (INTEL46, "4level+nx", 2, 1, span(51, 46) | span(20, 13)),
        (INTEL46, "4level+nx", 3, 0, span(51, 46)),
        (INTEL46, "4level+nx", 3, 1, span(51, 46) | span(29, 13)),
        (INTEL46, "4level+nx", 4, 0, span(51, 46) | span(7, 7)),
        (INTEL46, "4level+nx", 4, 1, span(51, 46) | span(7, 7)),
        (INTEL46, "5level+nx", 5, 1, span(51, 46) | span(7, 7)),
        (INTEL46, "5level", 5, 0, span(51, 46) | span(7, 7) | span(63, 63)),
        (WIDE, "4level+nx", 1, 0, 0),
        # AMD: bit 8 of PML4Es and PML5Es too (APM 2, 5.3.3), not of PDPEs.
        (AMD48, "4level+nx", 4, 0, span(51, 48) | span(8, 7)),
        (AMD48, "5level+nx", 4, 0, span(51, 48) | span(8, 7)),
        (AMD48, "5level+nx", 5, 0, span(51, 48) | span(8, 7)),
        (AMD48, "4level+nx", 3, 0, span(51, 48)),
        # Without 1 GiB pages bit 7 of a PDPTE is reserved.
        (AMD48_SMALL, "4level+nx", 3, 1, span(51, 48) | span(29, 13) | span(7, 7)),
        (AMD48_SMALL, "4level+nx", 3, 0, span(51, 48) | span(7, 7)),
    ],
)
def test_reserved_bits_are_those_of_the_tables(
    cpu: CpuModel, name: str, level: int, bit7: int, reserved: int
) -> None:
    mode, *options = name.split("+")
    cr4, efer = CONTROL[mode]
    cr4 |= X86_CR4_PSE if "pse" in options else 0
    efer |= EFER_NX if "nx" in options else 0
    paging = make_paging(X86_CR0_PG, cr4, efer, cpu)
    assert paging.mode.name == mode
    possible = span(63, 0) if bit7 else ~(1 << 7)
    assert paging.rsvd[bit7][level] & possible == reserved & possible


def test_pdpte_reserved_bits() -> None:
    assert pdpte_reserved(INTEL46) == span(63, 46) | span(8, 5) | span(2, 1)


@pytest.mark.parametrize(
    ("name", "large_levels"),
    [
        ("32", set()),
        ("32+pse", {2}),
        ("pae", {2}),
        ("pae+pse", {2}),
        ("4level", {2, 3}),
        ("5level", {2, 3}),
    ],
)
def test_bit_7_maps_a_large_page(name: str, large_levels: set[int]) -> None:
    mode, *options = name.split("+")
    cr4, efer = CONTROL[mode]
    paging = make_paging(X86_CR0_PG, cr4 | (X86_CR4_PSE if options else 0), efer, INTEL46)
    assert {level for level in range(6) if paging.page_size_mask[level]} == large_levels


@pytest.mark.parametrize(
    ("cpu", "walker", "bits"),
    [
        (INTEL46, PROCESSOR, 8),
        (NARROW, PROCESSOR, 4),
        (NO_PSE36, PROCESSOR, 0),
        (INTEL46, KVM_WALK, 4),
        (NO_PSE36, KVM_WALK, 4),
    ],
)
def test_width_of_pse36(cpu: CpuModel, walker: Walker, bits: int) -> None:
    paging = make_paging(X86_CR0_PG, X86_CR4_PSE, 0, cpu, walker)
    assert paging.pse36_mask == span(12 + bits, 13)
    assert paging.rsvd[1][2] == span(21, 13 + bits)


@pytest.mark.parametrize(
    ("name", "smep", "nx", "walker", "reported"),
    [
        ("32", False, False, PROCESSOR, False),
        ("32", False, True, PROCESSOR, False),
        ("32", False, True, KVM_WALK, True),
        ("32", True, False, PROCESSOR, True),
        ("pae", False, True, PROCESSOR, True),
        ("pae", False, False, PROCESSOR, False),
        ("4level", False, True, KVM_WALK, True),
        ("4level", False, False, KVM_WALK, False),
        ("4level", True, False, KVM_WALK, True),
    ],
)
def test_when_a_fetch_is_reported(name: str, smep: bool, nx: bool, walker: Walker, reported: bool) -> None:
    cr4, efer = CONTROL[name]
    cr4 |= X86_CR4_SMEP if smep else 0
    assert make_paging(X86_CR0_PG, cr4, efer | (EFER_NX if nx else 0), AMD48, walker).fetch_bit == reported


def test_protection_keys_need_long_mode() -> None:
    for name, (cr4, efer) in CONTROL.items():
        paging = make_paging(X86_CR0_PG, cr4 | X86_CR4_PKE, efer, INTEL46)
        assert paging.pke == (name in ("4level", "5level"))
        assert not make_paging(X86_CR0_PG, cr4, efer, INTEL46).pke


def test_control_bits_reach_the_permissions() -> None:
    cr4, efer = CONTROL["4level"]
    for wp, smep, smap, nx in product(BOOLS, repeat=4):
        paging = make_paging(
            X86_CR0_PG | (X86_CR0_WP if wp else 0),
            cr4 | (X86_CR4_SMEP if smep else 0) | (X86_CR4_SMAP if smap else 0),
            efer | (EFER_NX if nx else 0),
            INTEL46,
        )
        assert paging.permissions == permission_bitmask(wp=wp, smep=smep, smap=smap, nx=nx)
        assert paging.wp == wp
