"""Shadow EPT: every R/W/X of two levels by every access, against the manual's text.

SDM 3, 29.3.3: an entry with W and not R is misconfigured; one without R, W and X
ends the translation; what is allowed is what all entries used allow. Table 28-7:
bits 2:0 of the exit qualification are the access, bits 5:3 what the entries
allow together, bits 7 and 8 that the address comes of a linear one, translated.
SDM 3, 29.3.5: with A/D bits on, an access sets A in each entry, a write D in the leaf.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.grammar import Step, parse_step
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario, Value

NESTED_EPT = Path(__file__).parents[2] / "data" / "conformance" / "6.1.192" / "nested-ept"
DIRECTORY, FIRST_TABLE = 0x23000, 0x24000
"""Of the recording: the EPT page directory of 40000000, and its first table."""
WRITE_BACK = 6 << 3
A, D = 1 << 8, 1 << 9
EPT_VIOLATION, EPT_MISCONFIG = 48, 49
ACCESSES = {1: "!rd s 4 {:x}", 2: "!wr s 4 {:x} 55", 4: "!xc s {:x}"}
"""The right that an access needs, and the op."""


def gpa(upper: int, leaf: int) -> int:
    return 0x40000000 + (upper << 21) + (leaf << 12)


def entry_at(upper: int, leaf: int) -> int:
    return FIRST_TABLE + (upper << 12) + 8 * leaf


def scenario(ad: str) -> Scenario:
    """All 64 pairs in one EPT: directory entry `upper`, table entry `leaf`, named by their rights."""
    base = read_recording(NESTED_EPT / f"ept-perms-l2-{ad}.jsonl.xz").scenario
    pairs = [
        Value(8, entry_at(upper, leaf), 0x100000 + (upper << 15 | leaf << 12) | WRITE_BACK | leaf)
        for upper, leaf in product(range(8), repeat=2)
    ]
    values = tuple(v for v in base.header.values if not FIRST_TABLE <= v.gpa < FIRST_TABLE + 0x8000)
    header = dataclasses.replace(base.header, values=(*values, *pairs))
    steps = [parse_step(text) for text in ("nop", "vmxon c000")]
    for upper, leaf, need in product(range(8), range(8), ACCESSES):
        steps += _access(upper, leaf, need)
    return dataclasses.replace(base, header=header, steps=tuple(steps))


def _access(upper: int, leaf: int, need: int) -> list[Step]:
    offset = 0x800 if need == 4 else 8
    return [parse_step("?vmrun b000"), parse_step(ACCESSES[need].format(gpa(upper, leaf) + offset))]


def manual(upper: int, leaf: int, need: int) -> tuple[int, int] | None:
    """Return the exit's reason and, of a violation, its qualification; None if access is granted."""
    for rights in (upper, leaf):
        if not rights:
            break
        if rights & 2 and not rights & 1:
            return EPT_MISCONFIG, 0
    allowed = upper & leaf
    if need & allowed:
        return None
    return EPT_VIOLATION, 0x180 | need | allowed << 3


@pytest.mark.parametrize("ad", ["ad", "noad"])
def test_every_pair_of_rights_by_every_access(ad: str) -> None:
    runner = Runner(scenario(ad))
    memory = runner.machine.memory
    accesses = iter(product(range(8), range(8), ACCESSES))
    seen = 0
    for result in runner.results():
        if not result.text.startswith(("!rd", "!wr", "!xc")):
            continue
        upper, leaf, need = next(accesses)
        told = f"directory {upper:03b} leaf {leaf:03b} access {need:03b}"
        assert _exit(result.outcome) == manual(upper, leaf, need), told
        seen += 1
        entry = memory.load64((memory.backing << 12) + entry_at(upper, leaf))
        if _granted(upper, leaf, need) and ad == "ad":
            assert entry & A, told
            assert entry & D or need != 2, told
        if ad == "noad" or not any(_granted(upper, leaf, n) for n in ACCESSES):
            assert not entry & (A | D), told
    assert seen == 8 * 8 * 3


def _granted(upper: int, leaf: int, need: int) -> bool:
    return manual(upper, leaf, need) is None


def _exit(outcome: Outcome) -> tuple[int, int] | None:
    if outcome.kind is OutcomeKind.OK:
        return None
    assert outcome.kind is OutcomeKind.VMEXIT
    assert outcome.vmexit is not None
    reason = outcome.vmexit["reason"]
    # KVM finds misconfigurations by its own walk and leaves the violation's qualification there.
    return reason, outcome.vmexit["qual"] if reason == EPT_VIOLATION else 0
