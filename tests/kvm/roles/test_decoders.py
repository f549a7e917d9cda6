"""What trace tools make of a role word: rightly of some kernels, wrongly of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_lines
from mmulab.kvm.roles.decoders import (
    DECODERS,
    PLUGIN_KVM,
    PLUGIN_KVM_2010,
    Misreading,
    misreadings,
    reads_rightly,
)
from mmulab.kvm.roles.history import BACKPORTS, HISTORY, RoleVersion, find_role_version

DATA = Path(__file__).parents[3] / "data/conformance/6.1.192"
TRACED = [version for version in (*HISTORY, *(b.version for b in BACKPORTS.values())) if version.wording]
WORDS = st.integers(0, 2**32 - 1)


def test_which_layouts_each_plugin_reads_rightly() -> None:
    right = {tool.name: [v.since for v in TRACED if reads_rightly(tool, v.layout)] for tool in DECODERS}
    assert right == {
        PLUGIN_KVM_2010.name: ["2.6.32", "2.6.32.16", "2.6.33.7", "2.6.34.14"],
        PLUGIN_KVM.name: ["4.2", "4.13", "4.18", "5.1", "5.14"],
    }


@given(st.sampled_from([v for v in TRACED if reads_rightly(PLUGIN_KVM, v.layout)]), WORDS)
def test_a_layout_read_rightly_is_so_in_every_word(version: RoleVersion, word: int) -> None:
    assert misreadings(PLUGIN_KVM, version.layout, word & sum(version.layout.mask.values())) == []


@given(st.sampled_from(["5.15.222", "5.17", "6.1.192", "6.14", "7.1", "7.3"]), WORDS)
def test_since_5_17_the_size_of_gptes_is_always_told_wrongly(kernel: str, word: int) -> None:
    layout = find_role_version(kernel).layout
    assert "has_4_byte_gpte" in [misread.field for misread in misreadings(PLUGIN_KVM, layout, word)]


def test_a_recorded_page_of_a_32_bit_l1_is_called_pae() -> None:
    """A page directory of a 32-bit L1's NPT; the recorder said ``l2 g4 q0 uwx guest_mode``."""
    lines = read_lines(DATA / "nested48/nested-32-l2-32.jsonl.xz")
    made = [event for line in lines[1:-1] for event in json.loads(line)["ev"] if event["e"] == "get_page"]
    (word,) = {int(event["role"], 16) for event in made if event["r"] == "l2 g4 q0 uwx guest_mode"}
    layout = find_role_version("6.1.192").layout
    assert word == 0x20712
    assert PLUGIN_KVM.said(word) == "2 q0 wux pae !nxe !wp"
    assert misreadings(PLUGIN_KVM, layout, word) == [Misreading("has_4_byte_gpte", 0, 1)]
    before = find_role_version("5.16").layout
    same = before.pack(level=2, gpte_is_8_bytes=0, access=7, guest_mode=1)
    assert PLUGIN_KVM.said(same) == "2 q0 wux !pae !nxe !wp"
    assert misreadings(PLUGIN_KVM, before, same) == []


def test_since_7_2_an_executable_page_is_called_invalid() -> None:
    layout = find_role_version("7.2").layout
    word = layout.pack(level=4, direct=1, access=15, efer_nx=1, cr0_wp=1)
    assert PLUGIN_KVM.said(word) == "4 q0 direct wux invalid !pae !nxe wp smep"
    wrong = {misread.field: (misread.said, misread.true) for misread in misreadings(PLUGIN_KVM, layout, word)}
    assert wrong == {
        "has_4_byte_gpte": (1, 0),
        "invalid": (1, 0),
        "efer_nx": (0, 1),
        "smep_andnot_wp": (1, 0),
    }


def test_the_old_plugin_took_the_level_for_the_guests() -> None:
    layout = find_role_version("2.6.35").layout
    word = layout.pack(level=3, cr4_pae=1, access=7, nxe=1, cr0_wp=1)
    assert PLUGIN_KVM_2010.said(word).startswith("1/3 q0")
    wrong = {misread.field: misread for misread in misreadings(PLUGIN_KVM_2010, layout, word)}
    assert wrong["level"] == Misreading("level", 1, 3)
    assert "cr4_pge" not in wrong
    set_for_2010 = misreadings(PLUGIN_KVM_2010, layout, PLUGIN_KVM_2010.layout.mask["cr4_pge"])
    assert Misreading("cr4_pge", 1, None) in set_for_2010


def test_a_decoders_union_is_32_bits_wide() -> None:
    assert [tool.layout.width for tool in DECODERS] == [32, 32]


@pytest.mark.parametrize("tool", DECODERS, ids=lambda tool: tool.name)
def test_a_decoder_prints_its_own_fields(tool: object) -> None:
    assert isinstance(tool, type(PLUGIN_KVM))
    assert all(part.field in tool.layout.shift for part in tool.wording)
