"""Role designs: what each can say of a page, and what it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.outcome import encode_outcome
from mmulab.conform.recording import read_recording
from mmulab.events import Event
from mmulab.kvm.context import base_facts
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import copied, parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.machine.machine import Machine
from mmulab.scenario import runner
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.scenario import Scenario

CONFORMANCE = Path(__file__).parents[3] / "data" / "conformance" / "6.1.192"
CORRECT = ("glevel", "passthrough_levels", "target_level", "passthrough", "cpu_mode", "cpu_mode_passthrough")


@st.composite
def contexts(draw: st.DrawFn) -> tuple[RoleFacts, CpuRole]:
    """Root roles where every root is a shadow page, with the guest's CPU behind them."""
    level = draw(st.sampled_from((2, 3, 4, 5)))
    flags = {
        name: draw(st.integers(0, 1))
        for name in ("efer_nx", "cr0_wp", "smep_andnot_wp", "smap_andnot_wp", "ad_disabled", "guest_mode")
    }
    cpu = CpuRole(level=level, has_4_byte_gpte=int(level == 2), valid=1, smm=draw(st.integers(0, 1)), **flags)
    root = draw(st.integers(max(level, 3), 5))
    facts = base_facts(cpu)._replace(level=root, passthrough=root > top_table_level(cpu))
    return facts, cpu


@pytest.mark.parametrize("name", CORRECT)
@given(context=contexts())
def test_a_word_says_what_was_put_into_it(name: str, context: tuple[RoleFacts, CpuRole]) -> None:
    facts, cpu = context
    design = DESIGNS[name]
    assert design.facts(design.pack(facts, cpu)) == facts


@pytest.mark.parametrize("name", ["glevels", "cr4_pae"])
@given(context=contexts())
def test_the_old_words_keep_efer_nx_in_nxe(name: str, context: tuple[RoleFacts, CpuRole]) -> None:
    """Its name before 5.14 (167f8a5cae99)."""
    facts, cpu = context
    design = DESIGNS[name]
    word = design.pack(facts, cpu)
    assert design.layout.get(word, "nxe") == design.facts(word).efer_nx == facts.efer_nx


@pytest.mark.parametrize("name", CORRECT)
@given(context=contexts(), direct=st.booleans(), access=st.integers(0, 7))
def test_children_are_those_of_the_kernel(
    name: str, context: tuple[RoleFacts, CpuRole], direct: bool, access: int
) -> None:
    """``kvm_mmu_child_role``, Linux 6.1: one level down, never a portal."""
    facts, cpu = context
    facts = facts._replace(level=min(facts.level, top_table_level(cpu) + 1))
    design = DESIGNS[name]
    child = design.facts(design.child(design.pack(facts, cpu), direct=direct, access=access, quadrant=0))
    wanted = facts._replace(
        level=facts.level - 1, direct=direct, access=access, quadrant=0, passthrough=False, invalid=False
    )
    assert child == wanted


@pytest.mark.parametrize("name", CORRECT)
@given(context=contexts(), access=st.integers(0, 7))
def test_a_word_derived_is_the_word_made_afresh(
    name: str, context: tuple[RoleFacts, CpuRole], access: int
) -> None:
    """What a page is must not depend on whether its role came from the parent's or from the context."""
    facts, cpu = context
    design = DESIGNS[name]
    facts = facts._replace(level=min(facts.level, top_table_level(cpu) + 1))
    word = design.pack(facts, cpu)
    while facts.level > 1:
        facts = facts._replace(level=facts.level - 1, access=access, passthrough=False)
        word = design.child(word, direct=False, access=access, quadrant=0)
        assert word == design.pack(facts, cpu)


def test_the_word_before_the_fix_cannot_tell_a_portal_from_a_root() -> None:
    """Lai Jiangshan's case: a level-5 page over a 4-level root, and the root of a 5-level L1."""
    four, five = CpuRole(level=4, guest_mode=1, valid=1), CpuRole(level=5, guest_mode=1, valid=1)
    portal = base_facts(four)._replace(level=5, passthrough=True)
    root = base_facts(five)
    apart = {name: d.pack(portal, four) != d.pack(root, five) for name, d in DESIGNS.items()}
    assert [name for name, told in apart.items() if not told] == ["pre_fix", "cr4_pae"]
    assert all(apart[name] for name in CORRECT)


def test_only_the_modes_in_the_key_separate_pae_from_64_bit_pages() -> None:
    """The sharing that the mail gives up: a table used by PAE and by 64-bit paging."""
    pae, long_mode = CpuRole(level=3, valid=1), CpuRole(level=4, valid=1)
    level1 = {
        name: [d.pack(base_facts(cpu)._replace(level=1), cpu) for cpu in (pae, long_mode)]
        for name, d in DESIGNS.items()
    }
    apart = [name for name, (a, b) in level1.items() if a != b]
    assert apart == ["cpu_mode", "cpu_mode_passthrough", "glevels"]


def _without_roles(events: list[Event]) -> list[tuple[object, ...]]:
    kept = []
    for event in events:
        fields = event._asdict()
        fields.pop("role", None)
        kept.append((type(event).__name__, *fields.items()))
    return kept


def _run(scenario: Scenario, design: RoleDesign, monkeypatch: pytest.MonkeyPatch) -> list[runner.Result]:
    def with_design(config_of: Scenario) -> object:
        return machine_config(config_of, LINUX_6_1.with_(design=design))

    monkeypatch.setattr(runner, "machine_config", with_design)
    return runner.run(scenario)


@pytest.mark.parametrize("path", ["sh/basic-pae", "nested57/nested-roots-64", "nested57/nested-32-l2-32"])
@pytest.mark.parametrize("name", [n for n in CORRECT if n != "passthrough"])
def test_correct_designs_give_the_merged_ones_events(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = read_recording(CONFORMANCE / f"{path}.jsonl.xz").scenario
    merged = _run(scenario, DESIGNS["passthrough"], monkeypatch)
    other = _run(scenario, DESIGNS[name], monkeypatch)
    for theirs, ours in zip(merged, other, strict=True):
        assert _without_roles(theirs.events) == _without_roles(ours.events)
        assert encode_outcome(theirs.outcome) == encode_outcome(ours.outcome)


def test_quadrants_of_both_halves_of_a_4_byte_table() -> None:
    parent = base_facts(CpuRole(level=2, has_4_byte_gpte=1, valid=1))._replace(quadrant=3)
    assert [parity.quadrant(parent, index, None) for index in (6, 7)] == [0, 1]
    assert [copied.quadrant(parent, index, None) for index in (6, 7)] == [3, 3]


def test_a_machine_takes_its_design() -> None:
    scenario = read_recording(CONFORMANCE / "sh" / "basic-pae.jsonl.xz").scenario
    machine = Machine(machine_config(scenario, LINUX_6_1.with_(design=DESIGNS["glevel"])))
    assert machine.kvm.config.kernel.design is DESIGNS["glevel"]
