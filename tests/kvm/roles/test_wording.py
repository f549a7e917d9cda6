"""How a role word is printed, and what it says in today's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_lines
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.history import HISTORY, find_role_version, version_of
from mmulab.kvm.roles.wording import ACCESS_STRINGS_7_2, Part, meaning, word_role
from mmulab.x86.pferr import ACC_STRINGS

DATA = Path(__file__).parents[3] / "data/conformance"
DESIGN = DESIGNS["passthrough"]
KERNELS_WORDS = [design for design in DESIGNS.values() if version_of(design.layout)]
RECORDED = (
    "sh/perms-32",
    "intel-sh/smep-smap-64",
    "nested57/nested-57-l2-64",
    "nested-ept/ept-accessed-dirty-noad",
)


@given(st.integers(0, 2**32 - 1))
def test_6_1_words_a_role_as_the_models_facts_do(word: int) -> None:
    assert find_role_version("6.1").trace_str(word) == DESIGN.facts(word).trace_str()


def expected(recorded: str) -> str:
    """Make the trace's text of what the recorder of real kernels said of a role."""
    level, gpte, quadrant, access, *flags = recorded.split()
    rights = "".join(letter if letter in access else "-" for letter in "wux")
    return (
        f"{level} {gpte[1:]}-byte {quadrant}{' direct' if 'direct' in flags else ''} {rights}"
        f"{' invalid' if 'invalid' in flags else ''} {'' if 'nx' in flags else '!'}nxe"
        f" {'!' if 'ad_disabled' in flags else ''}ad"
    )


@given(st.sampled_from(KERNELS_WORDS), st.integers(0, 2**32 - 1))
def test_a_design_takes_a_kernels_word_for_what_it_means(design: RoleDesign, word: int) -> None:
    facts, said = design.facts(word), meaning(design.layout, word)
    if facts.direct:
        said.pop("has_4_byte_gpte")  # a direct page has no gptes
    known = facts._asdict() | {"access": ACC_STRINGS[facts.access]}
    told = said.keys() & known.keys()
    assert {"level", "quadrant", "direct", "access", "invalid", "efer_nx"} <= told
    assert {name: known[name] for name in told} == {name: said[name] for name in told}


@pytest.mark.parametrize("kernel", ["6.1.192", "6.12.117"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_words_are_worded_as_the_recorder_decoded_them(name: str, kernel: str) -> None:
    (path,) = (DATA / kernel).glob(f"{name}.jsonl*")
    records = [json.loads(line) for line in read_lines(path)[1:-1]]
    pages = {(int(e["role"], 16), e["r"]) for record in records for e in record["ev"] if "role" in e}
    assert len(pages) >= 5
    for word, recorded in pages:
        assert find_role_version(kernel).trace_str(word) == expected(recorded)


@pytest.mark.parametrize(
    ("kernel", "fields", "text"),
    [
        ("2.6.32", {"level": 1, "glevels": 3, "access": 7, "nxe": 1}, "1/3 q0 wux !pge nxe"),
        ("2.6.35", {"level": 2, "cr4_pae": 1, "quadrant": 1, "access": 2}, "2 pae q1 w-- !nxe"),
        ("4.12", {"level": 2, "direct": 1, "access": 7, "nxe": 1}, "2 q0 direct wux nxe"),
        ("5.0", {"level": 4, "cr4_pae": 1, "access": 7, "ad_disabled": 1}, "l4 pae q0 wux !nxe !ad"),
        (
            "5.10",
            {"level": 4, "direct": 1, "access": 5, "invalid": 1},
            "l4 4-byte q0 direct -ux invalid !nxe ad",
        ),
        ("5.16", {"level": 1, "gpte_is_8_bytes": 1, "efer_nx": 1}, "l1 8-byte q0 --- nxe ad"),
        ("7.2", {"level": 1, "access": 0b1101, "efer_nx": 1}, "l1 8-byte q0 r-ux nxe ad"),
    ],
)
def test_each_kernels_wording(kernel: str, fields: dict[str, int], text: str) -> None:
    """``KVM_MMU_PAGE_PRINTK`` of each version's ``mmutrace.h``."""
    version = find_role_version(kernel)
    assert version.trace_str(version.layout.pack(**fields)) == text


def test_a_kernel_without_the_tracepoints_prints_nothing() -> None:
    assert find_role_version("2.6.31").trace_str(0) is None
    assert find_role_version("2.6.32").trace_str(0) == "0/0 q0 --- !pge !nxe"


def test_every_wording_names_fields_of_its_layout() -> None:
    for version in HISTORY:
        for part in version.wording or ():
            assert part.field in version.layout.shift, (version.since, part)


def test_the_last_text_stands_for_all_values_above() -> None:
    layout = find_role_version("6.1").layout
    wording = (Part("smm", ("", " smm")),)
    assert [word_role(wording, layout, layout.pack(smm=n)) for n in (0, 1, 255)] == ["", " smm", " smm"]


def test_access_of_7_2_has_read_as_bit_0_and_execute_as_bit_3() -> None:
    assert ACCESS_STRINGS_7_2[:3] == ("----", "r---", "-w--")
    assert ACCESS_STRINGS_7_2[8] == "---x"
    assert ACCESS_STRINGS_7_2[15] == "rwux"


@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        ("2.6.28", {"level": 2, "glevels": 2, "quadrant": 1, "access": 7}),
        ("3.0", {"level": 2, "cr4_pae": 0, "quadrant": 1, "access": 7}),
        ("5.4", {"level": 2, "gpte_is_8_bytes": 0, "quadrant": 1, "access": 7}),
        ("6.1", {"level": 2, "has_4_byte_gpte": 1, "quadrant": 1, "access": 7}),
        ("7.3", {"level": 2, "has_4_byte_gpte": 1, "quadrant": 1, "access": 15}),
    ],
)
def test_one_page_means_the_same_to_every_kernel(kernel: str, fields: dict[str, int]) -> None:
    layout = find_role_version(kernel).layout
    said = meaning(layout, layout.pack(**fields))
    told = {"level": 2, "has_4_byte_gpte": 1, "quadrant": 1, "direct": 0, "access": "wux", "invalid": 0}
    assert {name: said[name] for name in told} == told
    assert not any(value for name, value in said.items() if name not in told)


@pytest.mark.parametrize(("wp", "smep"), [(0, 1), (1, 0)])
def test_cr4_smep_matters_without_wp_only(wp: int, smep: int) -> None:
    layout = find_role_version("7.2").layout
    assert meaning(layout, layout.pack(cr4_smep=1, cr0_wp=wp))["smep_andnot_wp"] == smep
    assert meaning(layout, 0)["smep_andnot_wp"] == 0
