"""Values as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.kvm.mmu import Mmu, RootInfo
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.svm.nested import SvmNested
from mmulab.kvm.x86 import kvm_set_cr3
from mmulab.machine.op import Mode
from mmulab.trace.codec import Constants, decode, encode
from mmulab.trace.known import OBJECTS, name_of
from mmulab.x86.paging import make_paging
from mmulab.x86.regs import CpuModel

PAGING = make_paging(0x80010001, 0x20, 0xD00, CpuModel())
VALUES = [
    None,
    True,
    1 << 511,
    "text",
    [1, [2, None]],
    (1, (2, None), [3]),
    {1: (2,), "a": {3: None}},
    b"\x00\xff",
    bytearray(b"\x01\x00"),
    Mode.IMPLICIT,
    CpuRole(level=4, cr0_wp=1),
    PAGING,
    Mmu(cpu_role=CpuRole(level=3), paging=PAGING, prev_roots=[RootInfo(1, 2)]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_round_trip(value: object) -> None:
    constants = Constants()
    item = json.loads(json.dumps(encode(value, constants)))
    again = Constants(json.loads(json.dumps(constants.encoded)))
    found = decode(item, again)
    assert found == value
    assert repr(found) == repr(value)


def test_what_cannot_change_is_kept_once() -> None:
    constants = Constants()
    first = encode(Mmu(paging=PAGING), constants)
    count = len(constants.encoded)
    assert encode(Mmu(paging=PAGING), constants) == first
    assert len(constants.encoded) == count
    assert decode(first, constants).paging is decode(first, constants).paging


def test_true_is_not_one() -> None:
    constants = Constants()
    items = [encode(CpuRole(direct=value), constants) for value in (1, True)]
    assert [decode(item, constants).direct for item in items] == [1, True]
    assert items[0] != items[1]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, lambda: 0, len], ids=["object", "set", "lambda", "builtin"]
)
def test_what_no_file_can_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a recording cannot hold"):
        encode(value, Constants())


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"r": ["kvm.nowhere:Mmu", {}]}, "kvm.nowhere:Mmu is nothing that a recording may hold"),
        ({"r": ["kvm.roles.word:CpuRole", {"colour": 1}]}, "has other fields"),
        ({"e": ["kvm.x86:kvm_set_cr3", 1]}, "nothing that a recording may hold"),
        ({"o": ["kvm.state:Kvm", {}]}, "nothing that a recording may hold"),
        ({"r": [["x"], {}]}, "nothing that a recording may hold"),
    ],
)
def test_names_of_another_version_are_refused(item: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode(item, Constants())


def test_objects_by_their_attributes() -> None:
    nested = SvmNested.__new__(SvmNested)
    hints = OBJECTS[name_of(SvmNested)][1]
    values = {"intercepts": (1, 2), "npt": True, "l1": {"cr3": 5}}
    for name in hints:
        setattr(nested, name, values.get(name, 7))
    constants = Constants()
    found = decode(json.loads(json.dumps(encode(nested, constants))), constants)
    assert {name: getattr(found, name) for name in hints} == {name: values.get(name, 7) for name in hints}


def test_no_function_comes_out_of_a_file() -> None:
    with pytest.raises(TypeError, match="a recording cannot hold"):
        encode(kvm_set_cr3, Constants())
    with pytest.raises(KeyError):
        decode({"f": "kvm.roles.design:find_design"}, Constants())


FIELDS = {"write": True, "gpa": 1, "size": 4, "value": 5}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpa", "1"),
        ("gpa", None),
        ("gpa", 1 << 64),
        ("gpa", 1.0),
        ("gpa", [1]),
        ("write", 2),
        ("size", {"d": []}),
        ("size", {"e": ["machine.op:Mode", "u"]}),
    ],
)
def test_a_field_that_its_annotation_does_not_allow(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{field} of machine.op:Mmio is "):
        decode({"r": ["machine.op:Mmio", {**FIELDS, field: value}]}, Constants())


@pytest.mark.parametrize("number", [-1, 0, "0", True, None])
def test_a_constant_that_is_not_there(number: Any) -> None:
    with pytest.raises(IndexError):
        decode({"c": number}, Constants())
