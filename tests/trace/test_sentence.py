"""Every op, outcome and event has a sentence; the ones that people see first are read here."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from mmulab import events as ev
from mmulab.kvm.roles.design import DESIGNS
from mmulab.machine import op as ops
from mmulab.machine.op import Mmio, Mode, Op, Outcome, OutcomeKind
from mmulab.trace.sentence import _EVENTS, event_sentence, op_sentence, outcome_sentence

DESIGN = DESIGNS["passthrough"]
ROLE = DESIGN.layout.pack(level=1, has_4_byte_gpte=1, quadrant=1, access=7)
OPS = [
    kind for kind in vars(ops).values() if isinstance(kind, type) and issubclass(kind, Op) and kind is not Op
]


@pytest.mark.parametrize("kind", OPS, ids=lambda kind: kind.__name__)
def test_every_op_has_a_sentence(kind: type[Op]) -> None:
    hints = typing.get_type_hints(kind)
    values = {"mode": Mode.USER, "key": "la57"}
    arguments = {
        f.name: values.get(f.name, 4 if hints[f.name] is int else False)
        for f in dataclasses.fields(kind)
        if f.name != "vcpu"
    }
    sentence = op_sentence(kind(**arguments))
    assert len(sentence.split()) > 2
    assert "{" not in sentence


@pytest.mark.parametrize("kind", OutcomeKind)
def test_every_end_has_a_sentence(kind: OutcomeKind) -> None:
    assert outcome_sentence(Outcome(kind, vector=6, vmexit={"code": 0x400}))


@pytest.mark.parametrize("kind", ev.EVENT_TYPES.values(), ids=ev.EVENT_TYPES)
def test_every_event_has_a_sentence(kind: typing.Any) -> None:
    values = {"role": ROLE, "level": 1, "reason": "pf", "type": "read", "insn": "90", "ret": 4, "name": "a:b"}
    event = kind(**{name: values.get(name, 1) for name in kind._fields})
    sentence = event_sentence(event, DESIGN)
    assert sentence.endswith(".")
    assert "{" not in sentence


def test_tracepoints_of_the_mmu_have_their_own_sentences() -> None:
    assert set(ev.KVMMMU) <= set(_EVENTS)


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        (
            op_sentence(ops.Write(mode=Mode.USER, size=4, gva=0x1000, value=7)),
            "vCPU 0 writes 0x7 (4 bytes) to 0x1000 in user mode",
        ),
        (
            op_sentence(ops.Touch(mode=Mode.SUPERVISOR, gva=0x1000, fetch=True)),
            "vCPU 0 fetches from 0x1000 as supervisor",
        ),
        (
            event_sentence(ev.kvm_mmu_get_page(0x20, ROLE, 0, 0, False, True), DESIGN),
            "No page of this gfn and role exists: KVM creates the shadow page of gfn 0x20 "
            "(level 1, 4-byte entries, quadrant 1).",
        ),
        (
            event_sentence(ev.kvm_page_fault(0x1800, 0x40000000, 6), DESIGN),
            "KVM handles a page fault at 0x40000000: a write in user mode to a page that is not present.",
        ),
        (
            outcome_sentence(Outcome(OutcomeKind.EXC, vector=14, error_code=7, cr2=0x1000)),
            "the guest gets #PF, error code 0x7 P|W|U, CR2 0x1000",
        ),
        (
            outcome_sentence(Outcome(OutcomeKind.OK, mmio=[Mmio(True, 0x2000, 4, 1)])),
            "the VMM writes 4 bytes of a device at gpa 0x2000",
        ),
        (outcome_sentence(Outcome(OutcomeKind.HOST, dirty=[1, 4])), "done; dirty pages: 0x1, 0x4"),
        (outcome_sentence(Outcome(OutcomeKind.SHUTDOWN)), "the vCPU shuts down (triple fault)"),
    ],
)
def test_sentences(sentence: str, text: str) -> None:
    assert sentence == text
