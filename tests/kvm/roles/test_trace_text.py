"""Role words out of what the kernel, the plugin of trace-cmd and the model's own lines print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.kvm.roles.decoders import PLUGIN_KVM
from mmulab.kvm.roles.history import HISTORY, RoleVersion, find_role_version
from mmulab.kvm.roles.trace_text import TracedRole, read_trace

LINE = "qemu-42 [001] 12.5: kvm_mmu_get_page: sp gen 0 gfn 100 {} root 0 sync new"


def read(text: str, kernel: str = "6.1") -> TracedRole | None:
    version = find_role_version(kernel)
    return read_trace(text, version.layout, version.wording)


def told(found: TracedRole, layout_of: str = "6.1") -> int:
    layout = find_role_version(layout_of).layout
    return sum(mask for name, mask in layout.mask.items() if name not in found.hidden)


@given(st.sampled_from([v for v in HISTORY if v.wording]), st.integers(0, (1 << 32) - 1))
def test_what_a_kernel_prints_gives_the_word_but_for_what_it_hides(version: RoleVersion, word: int) -> None:
    text = version.trace_str(word)
    assert text is not None
    found = read_trace(LINE.format(text), version.layout, version.wording)
    assert found is not None
    assert found.by == "the kernel"
    hidden = sum(version.layout.mask[name] for name in found.hidden)
    gaps = ~sum(version.layout.mask.values())
    assert found.word == word & ~hidden & ~gaps
    for name in found.hidden:  # and these are hidden: no other value of theirs changes the text
        assert version.trace_str(word ^ version.layout.mask[name]) == text


def test_6_1_hides_six_fields() -> None:
    found = read(LINE.format("l1 4-byte q0 direct wux nxe ad"))
    assert found == TracedRole(
        0x1791,
        ("cr0_wp", "smep_andnot_wp", "smap_andnot_wp", "guest_mode", "passthrough", "smm"),
        "the kernel",
    )


@given(st.integers(0, (1 << 16) - 1), st.sampled_from([0, 1, 7]))
def test_what_the_plugin_prints_gives_the_bits_that_it_reads(low: int, smm: int) -> None:
    word = low | smm << 24
    found = read(f"kvm_mmu_get_page: new sp gfn 100 {PLUGIN_KVM.said(word)} root 0 sync")
    assert found is not None
    assert found.by == PLUGIN_KVM.name
    assert found.word & told(found) == word & told(found)
    assert {"ad_disabled", "guest_mode", "passthrough"} <= set(found.hidden)
    assert ("smm" in found.hidden) == (smm != 0)  # "smm" says that it is not 0
    assert "cr0_wp" not in found.hidden


def test_the_models_own_brackets_tell_the_rest() -> None:
    found = read(LINE.format("l4 8-byte q0 wux nxe ad [guest_mode passthrough]"))
    assert found is not None
    assert found.hidden == ()
    layout = find_role_version("6.1").layout
    assert found.word == layout.pack(level=4, access=7, efer_nx=1, guest_mode=1, passthrough=1)


def test_a_file_of_the_other_byte_order_has_the_word_itself() -> None:
    found = read("kvm_mmu_get_page: new sp gfn 100 WORD: 00020712 root 0 sync")
    assert found is not None
    assert (found.word, found.hidden) == (0x20712, ())


@pytest.mark.parametrize(
    "text",
    [
        "kvm_exit: reason npf rip 0x18e0",
        "l1 4-byte q4 direct wux nxe ad",
        "l1 2-byte q0 direct wux nxe ad",
        "l1 4-byte q0 direct wux nxe",
        "xl1 4-byte q0 direct wux nxe ad",
        "",
    ],
)
def test_a_line_without_a_role_tells_none(text: str) -> None:
    assert read(text) is None


def test_a_kernel_before_the_tracepoints_prints_none() -> None:
    assert read("l1 4-byte q0 direct wux nxe ad", "2.6.28") is None
