"""After any op on any guest, nothing that must hold of the MMU's state is violated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.check.invariants import violations
from mmulab.machine.op import Op
from tests.kvm.guest import MODES
from tests.machine.random_guest import layout_of, op_lists, random_machine


@pytest.mark.parametrize("name", MODES)
def test_invariants_hold_after_every_op(name: str) -> None:
    layout = layout_of(name)

    @settings(max_examples=40)
    @given(st.integers(0, 1 << 16), op_lists(layout))
    def check(seed: int, listed: list[Op]) -> None:
        machine = random_machine(seed, layout)
        for op in listed:
            machine.execute(op)
            assert violations(machine.kvm) == []

    check()
