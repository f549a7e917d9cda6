"""A 32-bit (PAE) host: everything it builds has PAE's form, and the guest sees no difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.conform.outcome import encode_outcome
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.kvm.roles.design import DESIGNS
from mmulab.scenario.runner import Result, run
from mmulab.scenario.scenario import Scenario

CONFORMANCE = Path(__file__).parents[2] / "data" / "conformance" / "6.1.192"
FACTS = DESIGNS["passthrough"].facts


def recorded(name: str) -> Scenario:
    return read_recording(CONFORMANCE / f"{name}.jsonl.xz").scenario


def on_32_bit_host(scenario: Scenario) -> Scenario:
    host = {**scenario.header.host, "x86_64": 0, "virt_bits": 48}
    return dataclasses.replace(scenario, header=dataclasses.replace(scenario.header, host=host))


def roles(results: list[Result]) -> list[int]:
    return [e.role for r in results for e in r.events if isinstance(e, ev.kvm_mmu_get_page)]


@pytest.mark.parametrize(
    "name",
    ["nested48/nested-basic-32", "nested48/nested-32-l2-32", "nested48/nested-pae-l2-32", "tdp0/nonpaging"],
)
def test_the_guest_sees_what_it_sees_on_a_64_bit_host(name: str) -> None:
    scenario = recorded(name)
    there, here = run(scenario), run(on_32_bit_host(scenario))
    assert [encode_outcome(r.outcome) for r in there] == [encode_outcome(r.outcome) for r in here]
    assert max(FACTS(role).level for role in roles(there)) >= 4
    assert max(FACTS(role).level for role in roles(here)) == 2


def test_direct_roots_are_four_page_directories() -> None:
    results = run(on_32_bit_host(recorded("nested48/nested-basic-32")))
    first = [e for r in results for e in r.events if isinstance(e, ev.kvm_mmu_get_page)][:4]
    assert [e.gfn for e in first] == [0, 0x40000, 0x80000, 0xC0000]
    assert all(FACTS(e.role).direct for e in first)


def test_a_32_bit_l1s_npt_takes_four_quadrants_and_no_special_root() -> None:
    results = run(on_32_bit_host(recorded("nested48/nested-basic-32")))
    nested = [FACTS(role) for role in roles(results) if FACTS(role).guest_mode]
    assert [f.quadrant for f in nested[:4]] == [0, 1, 2, 3]
    assert {f.level for f in nested} == {1, 2}


def test_a_64_bit_guest_is_refused() -> None:
    with pytest.raises(InputError, match="runs no 64-bit guest"):
        run(on_32_bit_host(recorded("tdp0/dirtylog-64")))
