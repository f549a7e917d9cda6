"""After any op on any guest, nothing that must hold of the MMU's state is violated."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.machine.kvm_run import is_endless
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op
from tests.kvm.guest import MODES
from tests.machine.random_guest import layout_of, op_lists, random_machine

BROKEN_BY_MMIO_SPTES = Invariant.MMIO | Invariant.WRITE_PROTECTION
"""What Linux 6.1 itself violates where device accesses leave MMIO entries in the tables.

A sync makes such an entry current again although its gfn may have a slot by
now, and a page mapped over one that has W is not write-protected; both are
shown in ``tests/kvm/test_mmio.py``.
"""


def livelocked(machine: Machine) -> bool:
    """Whether NPT may be the reason of an endless fault: it sets A in tables that lie in a read-only slot.

    KVM takes that for a write to a table that it shadows, unprotects nothing and
    enters the guest again (``PFERR_NESTED_GUEST_PAGE`` in ``kvm_mmu_page_fault``).
    """
    host = machine.config.host
    return host.tdp and host.vendor == "amd" and any(s.readonly for s in machine.kvm.slots[0].slots)


@pytest.mark.parametrize("tdp", [False, True], ids=["shadow", "tdp"])
@pytest.mark.parametrize("name", MODES)
def test_invariants_hold_after_every_op(name: str, tdp: bool) -> None:
    layout = layout_of(name)

    @settings(max_examples=40 if tdp else 80, phases=[Phase.generate])
    @given(st.integers(0, 1 << 16), op_lists(layout))
    def check(seed: int, listed: list[Op]) -> None:
        machine = random_machine(seed, layout, tdp=tdp)
        allowed = BROKEN_BY_MMIO_SPTES if machine.config.host.mmio_caching else Invariant.VALID
        for op in listed:
            if is_endless(machine.execute(op)):
                assert livelocked(machine)
                return
            assert not status(machine.kvm) & ~allowed, violations(machine.kvm)

    check()
