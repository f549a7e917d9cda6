"""The scenario language's ops: text to record and back, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.machine import op as ops
from mmulab.machine.config import MAX_VCPUS
from mmulab.machine.op import Mode
from mmulab.scenario.grammar import (
    FORMS,
    GrammarError,
    Step,
    format_op,
    format_step,
    op_name,
    parse_step,
    usage,
)

LIMITS = {
    "size": st.sampled_from([1, 4, 8]),
    "mode": st.sampled_from([Mode.SUPERVISOR, Mode.USER, Mode.SUPERVISOR_AC]),
    "on": st.booleans(),
    "key": st.sampled_from(["smep", "la57", "maxphyaddr"]),
    "gpa": st.integers(0, (1 << 52) - 1),
    "gva": st.integers(0, (1 << 64) - 1),
    "access": st.sampled_from([0, 1, 3]),
    "enabled": st.booleans(),
    "flags": st.integers(0, 3),
    "id": st.integers(0, 0xFFFF),
    "pcid": st.integers(0, 0xFFF),
    "vpid": st.integers(0, 0xFFFF),
}
SMALL = st.integers(0, 3)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Any op of the language on any vCPU."""
    name = draw(st.sampled_from(sorted(FORMS)))
    form = FORMS[name]
    values: dict[str, Any] = {field: draw(LIMITS.get(field, SMALL)) for field in form.args}
    if name == "slot" or (name in ("xg", "cx")):
        values["size"] = 8 if name != "slot" else 0x1000
    op = form.type(vcpu=draw(st.integers(0, MAX_VCPUS - 1)), **values, **form.fixed)
    return Step(op, draw(st.sampled_from(["", "!", "?"])), 0)


@given(steps())
def test_writing_and_reading_an_op_gives_it_back(step: Step) -> None:
    assert parse_step(format_step(step)) == step


@given(steps())
def test_reading_and_writing_the_text_gives_it_back(step: Step) -> None:
    text = format_step(step)
    assert format_step(parse_step(text)) == text


@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("rd u 40000000", ops.Read(mode=Mode.USER, size=4, gva=0x40000000)),
        ("rd s 8 40000000", ops.Read(mode=Mode.SUPERVISOR, size=8, gva=0x40000000)),
        ("wr a 10 ff", ops.Write(mode=Mode.SUPERVISOR_AC, size=4, gva=0x10, value=0xFF)),
        # VAL is the register: it may be wider than what is stored.
        ("wr u 4 10 8000000000000001", ops.Write(mode=Mode.USER, size=4, gva=0x10, value=(1 << 63) + 1)),
        ("cx s 20 1 2", ops.CompareExchange(mode=Mode.SUPERVISOR, size=8, gva=0x20, old=1, new=2)),
        ("xg u 20 7", ops.Exchange(mode=Mode.USER, size=4, gva=0x20, value=7)),
        ("cr0c 31", ops.WriteCr(cr=0, value=0x31, compat=True)),
        ("cr3 8000000000010001", ops.WriteCr(cr=3, value=0x8000000000010001)),
        ("@1 invlpg FFFFF000", ops.Invlpg(vcpu=1, gva=0xFFFFF000)),
        ("nxhuge 1", ops.SetNxHugePages(enabled=True)),
        ("invpcid 2 fff 0", ops.Invpcid(type=2, pcid=0xFFF, gva=0)),
        ("invpcid 4 1000 0", ops.Invpcid(type=4, pcid=0x1000, gva=0)),
        ("cpuid smep 0", ops.SetCpuid(key="smep", value=0)),
        ("smm on", ops.Smm(on=True)),
        ("invept 1 1401e 0", ops.Invept(type=1, eptp=0x1401E)),
        ("vmlaunch", ops.Vmlaunch()),
    ],
)
def test_ops_by_example(text: str, op: ops.Op) -> None:
    assert parse_step(text).op == op


def test_conditions_and_vcpu_come_before_the_op() -> None:
    assert parse_step("@2 ?vmrun b000", 7) == Step(ops.Vmrun(vcpu=2, gpa=0xB000), "?", 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("read s 4 0", "unknown op 'read', expected one of rd wr"),
        ("rd", "rd has 0 arguments, expected rd MODE [SIZE] GVA"),
        ("rd s 4 0 0", "rd has 4 arguments"),
        ("rd k 4 0", "MODE is 'k', expected one of s u a"),
        ("rd s 2 0", "SIZE is '2', expected one of 1 4 8"),
        ("cx s 4 0 0 0", "SIZE is '4', expected one of 8"),
        ("rd s 4 0x10", "GVA is '0x10', expected a hexadecimal number without prefix"),
        ("rd s 4 -1", "GVA is '-1', expected a hexadecimal number"),
        ("rd s 4 10000000000000000", "expected at most ffffffffffffffff"),
        ("hw 1 0 100", "VAL is 100, expected one of 1 bytes"),
        ("hw 4 10000000000000 0", "GPA is 10000000000000, expected at most fffffffffffff"),
        ("slot 0 0 1000 4 0", "FLAGS is 4, expected at most 3"),
        ("slot 20000 0 1000 0 0", "ID is 20000, expected at most 1ffff"),
        ("invpcid 4 10000000000000000 0", "PCID is 10000000000000000, expected at most ffffffffffffffff"),
        ("smm yes", "STATE is 'yes', expected one of on off"),
        ("nxhuge never", "NX_HUGE_PAGES is 'never', expected one of 0 1"),
        ("cpuid 1 0", "KEY is '1', expected the name of a CPUID feature"),
        ("@100 nop", "vCPU after @ is 100, expected at most ff"),
        ("@x nop", "vCPU after @ is 'x', expected a hexadecimal number"),
        ("@1", "expected an op"),
    ],
)
def test_what_is_refused_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_step(text)
    assert expected in str(caught.value)


def test_every_op_of_the_language_has_a_name_of_its_own() -> None:
    for name, form in FORMS.items():
        values = {field.name: 0 for field in dataclasses.fields(form.type) if field.name in form.args}
        assert op_name(form.type(**{**values, **form.fixed})) == name
        assert usage(name).split()[0] == name


def test_ops_of_streams_and_of_the_runner_are_not_in_the_language() -> None:
    with pytest.raises(GrammarError, match="no op Sysexit"):
        format_op(ops.Sysexit())
    with pytest.raises(GrammarError, match="no op WriteCr"):
        format_op(ops.WriteCr(cr=2, value=0))
