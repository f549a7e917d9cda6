"""Values as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.x86 import kvm_set_cr3
from mmulab.machine.op import Mode
from mmulab.trace.codec import Constants, decode, encode
from mmulab.trace.recording import Info
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
    Mmu(cpu_role=CpuRole(level=3), paging=PAGING, prev_roots=[[1, 2]]),
    Info("a", seed=3, options={"x": 1.5}),
    kvm_set_cr3,
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
        ({"f": "kvm.x86:no_such"}, "mmulab has no kvm.x86:no_such"),
        ({"r": ["kvm.nowhere:Mmu", {}]}, "mmulab has no kvm.nowhere:Mmu"),
        ({"r": ["kvm.roles.word:CpuRole", {"colour": 1}]}, "has other fields"),
        ({"f": "trace.codec:importlib"}, "nothing that a recording may hold"),
        ({"e": ["kvm.x86:kvm_set_cr3", 1]}, "nothing that a recording may hold"),
    ],
)
def test_names_of_another_version_are_refused(item: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode(item, Constants())


def test_objects_by_their_attributes() -> None:
    class_of_engine = type("Kept", (), {"__module__": "mmulab.kvm.svm.nested"})
    thing = class_of_engine()
    thing.gpa, thing.words = 5, (1, 2)
    constants = Constants()
    item = encode(thing, constants)
    assert item["o"][0] == "kvm.svm.nested:Kept"
    handler: Callable[..., object] = decode(encode(kvm_set_cr3, constants), constants)
    assert handler is kvm_set_cr3
    assert ev.kvm_mmu_load() == decode(encode(ev.kvm_mmu_load(), constants), constants)
