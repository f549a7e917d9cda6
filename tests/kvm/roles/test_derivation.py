"""Where the quadrant of a child page comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.events import Event
from mmulab.kvm.context import base_facts
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import (
    DERIVATIONS,
    Derivation,
    copied,
    find_derivation,
    get_page,
    parity,
    scratch,
)
from mmulab.kvm.roles.word import CpuRole
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner

CONFORMANCE = Path(__file__).parents[3] / "data" / "conformance" / "6.1.192"

TWO_LEVEL = base_facts(CpuRole(level=2, has_4_byte_gpte=1, valid=1))


@given(st.integers(0, (1 << 32) - 1))
def test_parity_of_the_index_is_the_bit_of_the_address(addr: int) -> None:
    """The identity by which the series could do without a faulting address."""
    index = addr >> 21 & 511
    for quadrant in range(4):
        parent = TWO_LEVEL._replace(quadrant=quadrant)
        found = {rule.quadrant(parent, index, addr) for rule in (parity, scratch, get_page)}
        assert found == {addr >> 21 & 1}


@given(st.integers(0, (1 << 32) - 1))
def test_a_directory_takes_two_bits_of_the_address(addr: int) -> None:
    assert scratch.quadrant(TWO_LEVEL._replace(level=3), addr >> 30, addr) == addr >> 30


def test_the_copied_quadrant_is_the_parents() -> None:
    parent = TWO_LEVEL._replace(quadrant=3)
    assert [copied.quadrant(parent, index, index << 21) for index in (6, 7)] == [3, 3]


def test_no_address_no_quadrant() -> None:
    """Splitting has no address; what takes the quadrant from it must skip 4-byte tables then."""
    for rule in DERIVATIONS.values():
        same = rule.quadrant(TWO_LEVEL, 7, None) == rule.quadrant(TWO_LEVEL, 7, 7 << 21)
        assert rule.splits_4_byte == same


def test_8_byte_entries_have_quadrant_0() -> None:
    parent = base_facts(CpuRole(level=4, valid=1))
    for rule in DERIVATIONS.values():
        assert rule.quadrant(parent, 7, 7 << 30) == 0


@pytest.mark.parametrize("path", ["sh/quadrants-32", "sh/basic-64", "nested57/nested-32-l2-32"])
@pytest.mark.parametrize("rule", [scratch, get_page], ids=lambda rule: rule.name)
def test_the_older_rules_give_the_same_events(path: str, rule: Derivation) -> None:
    scenario = read_recording(CONFORMANCE / f"{path}.jsonl.xz").scenario
    config = machine_config(scenario)

    def events(derivation: Derivation) -> list[Event]:
        runner = Runner(scenario, config=replace(config, kernel=LINUX_6_1.with_(derivation=derivation)))
        return [event for result in runner.results() for event in result.events]

    assert events(rule) == events(parity)


def test_unknown() -> None:
    with pytest.raises(InputError, match=r"'next': unknown; .*parity, copied, scratch, get_page"):
        find_derivation("next")
