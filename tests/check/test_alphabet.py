"""Phrases: what they are made of, and that chance has one source."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from mmulab.check.alphabet import Alphabet
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.machine import op as ops
from mmulab.scenario.grammar import Step, format_step, parse_step


def steps_of(name: str, seed: int = 0, phrases: int = 400) -> list[Step]:
    alphabet = Alphabet(plan(GUESTS[name]), Random(seed))
    return [step for _ in range(phrases) for step in alphabet.phrase()]


@pytest.mark.parametrize("name", GUESTS)
def test_every_step_is_a_line_of_the_language(name: str) -> None:
    for step in steps_of(name):
        assert parse_step(format_step(step)) == step


def test_the_seed_decides() -> None:
    assert steps_of("shadow-64", 1) == steps_of("shadow-64", 1)
    assert steps_of("shadow-64", 1) != steps_of("shadow-64", 2)


def test_every_kind_of_host_op_is_drawn() -> None:
    kinds = Counter(type(step.op) for name in ("shadow-64", "npt-collapse") for step in steps_of(name))
    wanted = {
        ops.HostWrite,
        ops.SetMemslot,
        ops.DeleteMemslot,
        ops.GetDirtyLog,
        ops.InvalidateHva,
        ops.Age,
        ops.Protect,
        ops.SwapOut,
        ops.Collapse,
        ops.SetNrMmuPages,
        ops.RecoverNxHugePages,
    }
    assert wanted <= set(kinds)


def test_the_host_is_asked_nothing_of_a_guest_that_has_it_not() -> None:
    kinds = {type(step.op) for step in steps_of("shadow-64")}
    assert not kinds & {ops.Vmrun, ops.Vmmcall, ops.Invept, ops.Smm, ops.Invpcid}
    assert {type(step.op) for step in steps_of("intel-shadow-64")} >= {ops.Invpcid, ops.Invlpg}
    assert {type(step.op) for step in steps_of("shadow-64-smm")} >= {ops.Smm}


def test_both_vcpus_run() -> None:
    assert {step.op.vcpu for step in steps_of("shadow-64-smp")} == {0, 1}


def test_a_guest_of_a_guest_is_entered_changed_and_flushed() -> None:
    drawn = steps_of("nested-ept-64")
    assert {type(step.op) for step in drawn} >= {ops.Vmrun, ops.Vmcall, ops.Vmwrite, ops.Invept, ops.Invvpid}
    assert {step.when for step in drawn if isinstance(step.op, ops.Read)} == {"!", "?"}


def test_an_entry_that_was_written_is_looked_at_next() -> None:
    made = plan(GUESTS["shadow-64"])
    below = {entry.gpa: set(entry.addresses) for entry in made.areas[0].entries}
    met = looked = 0
    alphabet = Alphabet(made, Random(0))
    for _ in range(300):
        steps = alphabet.change()
        at = next(
            i
            for i, step in enumerate(steps)
            if getattr(step.op, "gva", step.op) in below or (isinstance(step.op, ops.HostWrite))
        )
        written = steps[at].op
        entry = written.gpa if isinstance(written, ops.HostWrite) else written.gva  # type: ignore[attr-defined]
        later = {getattr(step.op, "gva", 0) & ~0xFFF for step in steps[at + 1 :]}
        met += 1
        looked += bool(later & below[entry])
    assert looked > 0.7 * met


def test_a_guest_with_a_ring_or_manual_protection_uses_what_it_has() -> None:
    ring = Counter(type(step.op) for step in steps_of("npt-ring"))
    assert ring[ops.GetDirtyRing] == ring[ops.ResetDirtyRings] > 0
    assert ring[ops.GetDirtyLog] == ring[ops.ClearDirtyLog] == 0
    manual = Counter(type(step.op) for step in steps_of("npt-clear"))
    assert manual[ops.ClearDirtyLog] == manual[ops.GetDirtyLog] > 0
    assert manual[ops.GetDirtyRing] == 0
