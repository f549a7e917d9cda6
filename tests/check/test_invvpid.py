"""INVVPID of one address: L2 must have forgotten that one, in each PCID, and no other."""

from __future__ import annotations

import pytest

from mmulab.check.finding import Finding
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.oracle import Oracle
from mmulab.check.remembered import Forgotten
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.state import Kvm
from mmulab.kvm.vmx import insn
from mmulab.scenario.grammar import parse_step

ADDRESS, OTHER = 0x40001000, 0x40000000
VPID = ("vpid", 1)


def found(flushed: int) -> Finding | None:
    """Return what is wrong where L1 takes a page from L2 and flushes an address."""
    lines = ("vmrun a000", f"rd s 4 {ADDRESS:x}", "vmcall", "wr s 8 18008 0", f"invvpid 0 1 {flushed:x}")
    bench = make_bench(plan(GUESTS["nested-vmx-shadow"]).scenario, LINUX_6_1, (Oracle,))
    return bench.run([parse_step(line) for line in (*lines, "vmrun a000", f"rd s 4 {ADDRESS:x}")]).finding


def test_what_was_at_the_address_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(ADDRESS) is None

    def nothing(kvm: Kvm, mmu: object) -> None:
        pass

    monkeypatch.setattr(insn, "kvm_mmu_free_guest_mode_roots", nothing)
    assert found(ADDRESS) is not None
    assert found(OTHER) is None


def test_an_address_is_forgotten_in_each_pcid_and_as_a_global_one() -> None:
    forgotten = Forgotten()
    forgotten.page(VPID, -1, ADDRESS, 7)
    for pcid in (0, 1, 5):
        assert forgotten.leaf_since(VPID, pcid, ADDRESS | 0x123, 12, is_global=False) == 7
        assert forgotten.leaf_since(VPID, pcid, OTHER, 12, is_global=False) == 0
    assert forgotten.leaf_since(VPID, 0, ADDRESS, 12, is_global=True) == 7
    assert forgotten.leaf_since("L1", 0, ADDRESS, 12, is_global=False) == 0
