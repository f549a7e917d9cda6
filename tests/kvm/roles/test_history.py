"""The role word of each kernel: its bits, and which kernel has which."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.history import (
    BACKPORTS,
    HISTORY,
    SOURCES_READ,
    RoleVersion,
    find_role_version,
    version_of,
)
from mmulab.kvm.roles.word import RoleLayout

VERSIONS = (*HISTORY, *(found.version for found in BACKPORTS.values()))


def compiled(layout: RoleLayout) -> type[ctypes.Union]:
    """Return the union as a C compiler lays it out, gaps as unnamed fields."""
    fields = [(name or f"gap{i}", ctypes.c_uint32, width) for i, (name, width) in enumerate(layout.fields)]
    bits = type("Bits", (ctypes.LittleEndianStructure,), {"_fields_": fields})
    return type("Role", (ctypes.Union,), {"_fields_": [("word", ctypes.c_uint32), ("bits", bits)]})


@given(st.sampled_from(VERSIONS), st.data())
def test_words_are_those_of_a_c_compiler_and_come_back(version: RoleVersion, data: st.DataObject) -> None:
    layout = version.layout
    values = {n: data.draw(st.integers(0, (1 << layout.width_of(n)) - 1), n) for n in layout.shift}
    word = layout.pack(**values)
    assert layout.unpack(word) == values
    union = compiled(layout)()
    for name, value in values.items():
        setattr(union.bits, name, value)
    assert union.word == word


PLACES = [
    ("2.6.28", "glevels", 0xF),
    ("2.6.28", "level", 0xF0),
    ("2.6.28", "quadrant", 0x300),
    ("2.6.28", "metaphysical", 0x10000),
    ("2.6.28", "access", 0xE0000),
    ("2.6.28", "invalid", 0x100000),
    ("2.6.30", "direct", 0x10000),
    ("2.6.30", "cr4_pge", 0x200000),
    ("2.6.31", "nxe", 0x400000),
    ("2.6.32.16", "cr0_wp", 0x800000),
    ("2.6.35", "level", 0xF),
    ("2.6.35", "cr4_pae", 0x10),
    ("2.6.35", "quadrant", 0x60),
    ("2.6.35", "direct", 0x2000),
    ("2.6.35", "access", 0x1C000),
    ("2.6.35", "cr0_wp", 0x80000),
    ("3.1", "smep_andnot_wp", 0x100000),
    ("3.18.20", "smap_andnot_wp", 0x200000),
    ("4.1", "smap_andnot_wp", 0x200000),
    ("4.2", "direct", 0x80),
    ("4.2", "smap_andnot_wp", 0x8000),
    ("4.2", "smm", 0xFF000000),
    ("4.13", "ad_disabled", 0x10000),
    ("4.18", "guest_mode", 0x20000),
    ("5.1", "gpte_is_8_bytes", 0x10),
    ("5.15.222", "has_4_byte_gpte", 0x10),
    ("5.19", "passthrough", 0x40000),
    ("6.14", "is_mirror", 0x80000),
    ("7.2", "access", 0xF00),
    ("7.2", "invalid", 0x1000),
    ("7.2", "cr0_wp", 0x4000),
    ("7.2", "smap_andnot_wp", 0x8000),
    ("7.2", "cr4_smep", 0x100000),
]


@pytest.mark.parametrize(("kernel", "field", "mask"), PLACES)
def test_places_of_fields(kernel: str, field: str, mask: int) -> None:
    """``arch/x86/include/asm/kvm_host.h`` of each version."""
    assert find_role_version(kernel).layout.mask[field] == mask


GONE = [
    ("2.6.30", "metaphysical"),
    ("2.6.30", "nxe"),
    ("2.6.35", "glevels"),
    ("2.6.35", "cr4_pge"),
    ("4.0", "smap_andnot_wp"),
    ("4.1", "smm"),
    ("4.12", "ad_disabled"),
    ("4.17", "guest_mode"),
    ("5.1", "cr4_pae"),
    ("5.13", "efer_nx"),
    ("5.14", "nxe"),
    ("5.16", "has_4_byte_gpte"),
    ("5.18", "passthrough"),
    ("6.13", "is_mirror"),
    ("7.1", "cr4_smep"),
    ("7.2", "smep_andnot_wp"),
]


@pytest.mark.parametrize(("kernel", "field"), GONE)
def test_fields_that_a_kernel_has_not(kernel: str, field: str) -> None:
    assert field not in find_role_version(kernel).layout.shift


@pytest.mark.parametrize(
    ("design", "kernel"),
    [
        ("pre_fix", "5.17"),
        ("pre_fix", "5.18.12"),
        ("pre_fix", "5.15.222"),
        ("passthrough", "5.19"),
        ("passthrough", "6.1.192"),
        ("passthrough", "6.12.117"),
        ("passthrough", "6.13.7"),
        ("glevels", "2.6.31"),
        ("glevels", "2.6.34"),
        ("cr4_pae", "4.18"),
        ("cr4_pae", "5.0.4"),
    ],
)
def test_a_design_that_is_a_kernels_word_has_its_layout(design: str, kernel: str) -> None:
    assert DESIGNS[design].layout is find_role_version(kernel).layout


@pytest.mark.parametrize("design", DESIGNS.values(), ids=lambda design: design.name)
def test_no_design_declares_a_kernels_word_again(design: RoleDesign) -> None:
    same = [version.layout for version in VERSIONS if version.layout.fields == design.layout.fields]
    assert all(layout is design.layout for layout in same)


def test_a_layout_names_the_newest_version_that_has_it() -> None:
    found = {name: version_of(design.layout) for name, design in DESIGNS.items()}
    assert {name: version.since for name, version in found.items() if version} == {
        "pre_fix": "5.17",
        "passthrough": "5.19",
        "glevels": "2.6.32",
        "cr4_pae": "4.18",
    }
    assert all(version_of(version.layout) for version in HISTORY)
    assert version_of(RoleLayout(HISTORY[-1].layout.fields)) is None


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("6.1", "5.19"),
        ("v6.1.192", "5.19"),
        ("5.17-rc1", "5.17"),
        ("5.16", "5.14"),
        ("2.6.35", "2.6.35"),
        ("2.6.39.4", "2.6.35"),
        ("3.0.101", "2.6.35"),
        ("2.6.32.15", "2.6.32"),
        ("2.6.32.16", "2.6.32.16"),
        ("5.15.221", "5.14"),
        ("5.15.222", "5.15.222"),
        ("5.15.300", "5.15.222"),
        ("5.1-rc2", "4.18"),
        ("7.3.4", "7.2"),
        ("mainline", "7.2"),
    ],
)
def test_a_version_is_found(name: str, since: str) -> None:
    found = find_role_version(name)
    assert found.since == since
    assert found.settled


@pytest.mark.parametrize("name", SOURCES_READ.split())
def test_what_was_read_is_settled(name: str) -> None:
    assert find_role_version(name).settled


@pytest.mark.parametrize(
    ("name", "since", "note"),
    [
        ("2.6.33.5", "2.6.32", "after 2.6.33.3 and before 2.6.33.7"),
        ("5.0.21", "4.18", "gpte_is_8_bytes"),
        ("5.10.263", "5.1", "has_4_byte_gpte"),
        ("4.1-rc8", "4.1", "first -rc"),
        ("5.1-rc3", "5.1", "first -rc"),
    ],
)
def test_what_was_not_read_is_not_settled(name: str, since: str, note: str) -> None:
    found = find_role_version(name)
    assert (found.since, found.settled) == (since, False)
    assert note in found.note


def test_a_series_with_a_backport_says_so() -> None:
    assert find_role_version("5.15").note == "5.15.222 and later have another word"
    assert find_role_version("5.15").settled
    assert find_role_version("6.1").note == ""


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("6.1.x-amd64", "give a version as 6.1"),
        ("six", "give a version as 6.1"),
        ("6.1-rc", "give a version as 6.1"),
        ("2.6.27", "starts with 2.6.28"),
        ("2.4.37", "starts with 2.6.28"),
        ("2.6.40", "there is no Linux 2.6.40"),
        ("3.20", "there is no Linux 3.20"),
        ("5.20", "there is no Linux 5.20"),
        ("7.4", "ask for mainline"),
    ],
)
def test_a_name_that_is_no_known_kernel(name: str, mend: str) -> None:
    with pytest.raises(InputError, match=r"^kernel '") as caught:
        find_role_version(name)
    assert mend in str(caught.value)


def test_the_history_is_in_order_and_every_step_has_its_commit() -> None:
    numbers = [tuple(map(int, version.since.split("."))) for version in HISTORY]
    assert numbers == sorted(set(numbers))
    for version in VERSIONS:
        assert version.commits
        assert version.why
        assert all(len(commit.hash) == 12 and int(commit.hash, 16) for commit in version.commits)
    for before, after in pairwise(HISTORY):
        assert before.layout.fields != after.layout.fields or before.wording != after.wording


def test_a_layout_draws_itself_with_the_highest_bits_at_the_left() -> None:
    html = find_role_version("4.2").layout._repr_html_()
    assert "<caption>role word: 24 bits used of 32</caption>" in html
    assert "<tr><th>31-24</th><th>23-16</th><th>15</th>" in html
    assert "<tr><td>smm</td><td></td><td>smap_andnot_wp</td>" in html
