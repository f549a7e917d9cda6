"""The role word: its bits, its packing, and how the kernel's trace prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_lines
from mmulab.kvm.roles.design import DESIGNS, LAYOUT_6_1
from mmulab.kvm.roles.word import BitField, CpuRole, RoleFacts, RoleLayout

DATA = Path(__file__).parents[3] / "data/conformance/6.1.192"
DESIGN = DESIGNS["passthrough"]
LAYOUTS = st.lists(
    st.tuples(st.sampled_from(("", "a", "b", "c", "d")), st.integers(1, 9)), min_size=1, max_size=6
)


@given(LAYOUTS, st.data())
def test_a_word_unpacks_to_what_was_packed(fields: list[tuple[str, int]], data: st.DataObject) -> None:
    names: dict[str, int] = {name: width for name, width in fields if name}
    kept = [BitField(n, w) for i, (n, w) in enumerate(fields) if not n or n not in dict(fields[:i])]
    layout = RoleLayout(tuple(kept))
    widths = {f.name: f.width for f in kept if f.name}
    assert widths.keys() == names.keys()
    values = {name: data.draw(st.integers(0, (1 << width) - 1)) for name, width in widths.items()}
    word = layout.pack(**values)
    assert layout.unpack(word) == values
    assert layout.used_bits == sum(widths.values()) <= layout.width
    assert word < 1 << layout.width
    for name, value in values.items():
        assert layout.get(word, name) == value
        changed = layout.set(word, name, value ^ 1)
        assert layout.unpack(changed) == values | {name: value ^ 1}
        assert layout.width_of(name) == widths[name]


def test_the_bits_are_those_of_the_kernels_union() -> None:
    """``union kvm_mmu_page_role``, Linux 6.1 ``arch/x86/include/asm/kvm_host.h``."""
    assert {name: hex(mask) for name, mask in LAYOUT_6_1.mask.items()} == {
        "level": "0xf",
        "has_4_byte_gpte": "0x10",
        "quadrant": "0x60",
        "direct": "0x80",
        "access": "0x700",
        "invalid": "0x800",
        "efer_nx": "0x1000",
        "cr0_wp": "0x2000",
        "smep_andnot_wp": "0x4000",
        "smap_andnot_wp": "0x8000",
        "ad_disabled": "0x10000",
        "guest_mode": "0x20000",
        "passthrough": "0x40000",
        "smm": "0xff000000",
    }


def test_a_value_that_does_not_fit_is_refused() -> None:
    layout = RoleLayout((BitField("level", 4), BitField("", 2), BitField("direct", 1)))
    assert layout.pack(level=15, direct=1) == 0x4F
    for bad in ({"level": 16}, {"level": -1}, {"direct": 2}):
        with pytest.raises(ValueError, match="does not fit"):
            layout.pack(**bad)
    with pytest.raises(ValueError, match="no field 'quadrant'"):
        layout.pack(quadrant=1)
    assert layout.get(0x7F, "quadrant") == 0


FACTS = RoleFacts(
    level=1,
    has_4_byte_gpte=True,
    quadrant=1,
    direct=False,
    access=7,
    invalid=False,
    efer_nx=True,
    cr0_wp=True,
    smep_andnot_wp=False,
    smap_andnot_wp=False,
    ad_disabled=False,
    guest_mode=False,
    passthrough=False,
    smm=0,
)


def test_the_trace_prints_a_role_as_the_kernel_does() -> None:
    """``KVM_MMU_PAGE_PRINTK``, Linux 6.1 ``mmutrace.h``."""
    assert FACTS.trace_str() == "l1 4-byte q1 wux nxe ad"
    other = FACTS._replace(
        level=4, has_4_byte_gpte=False, quadrant=0, direct=True, access=1, invalid=True, efer_nx=False
    )
    assert other._replace(ad_disabled=True).trace_str() == "l4 8-byte q0 direct --x invalid !nxe !ad"


def test_the_full_form_names_what_the_trace_leaves_out() -> None:
    assert FACTS.full_str() == "l1 g4 q1 uwx nx wp"
    other = FACTS._replace(smep_andnot_wp=True, cr0_wp=False, smm=1)
    assert other.full_str() == "l1 g4 q1 uwx nx smep_nwp smm1"


RECORDINGS = (
    "sh/perms-32",
    "sh/cr0-wp-pae",
    "intel-sh/smep-smap-64",
    "nested57/nested-57-l2-64",
    "nested-ept/ept-accessed-dirty-noad",
)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_roles_decode_as_the_recorder_decoded_them(name: str) -> None:
    (path,) = DATA.glob(f"{name}.jsonl*")
    records = [json.loads(line) for line in read_lines(path)[1:-1]]
    pages = [event for record in records for event in record["ev"] if "role" in event]
    assert len(pages) >= 20
    for event in pages:
        assert DESIGN.facts(int(event["role"], 16)).full_str() == event["r"]


def test_an_all_zero_cpu_role_is_no_configured_one() -> None:
    """``kvm_mmu_extended_role.valid``: without it the first configuration would be skipped."""
    assert CpuRole().valid == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ((BitField("level", 0),), "field 'level' has a width of 0 bits"),
        ((BitField("", -1),), "field '' has a width of -1 bits"),
        ((BitField("a", 1), BitField("", 1), BitField("a", 2)), "field 'a' is there twice"),
    ],
)
def test_a_layout_has_each_field_once_and_each_has_a_bit(fields: tuple[BitField, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RoleLayout(fields)


def test_a_field_may_have_any_name() -> None:
    layout = RoleLayout((BitField("level", 4), BitField("self", 1)))
    assert layout.pack(**{"self": 1, "level": 2}) == 0x12
