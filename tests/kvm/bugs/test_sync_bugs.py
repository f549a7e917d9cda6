"""Each bug of a stale entry: with it and without, the same sequence ends otherwise."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm import x86
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.state import Request, Vcpu
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.vmx import nested
from tests.kvm.bugs.witness import Witness

LAST_OP = [
    ("B24", "ok 101000", "ok 100000"),
    ("B25", "ok 101000", "ok 100000"),
    ("B27", "exc vec=e err=9 rip=1800 cr2=8000000000", "ok 100000"),
]


@pytest.mark.parametrize(("bug", "right", "wrong"), LAST_OP, ids=[row[0] for row in LAST_OP])
def test_the_last_op_of_the_witness_goes_wrong(bug: str, right: str, wrong: str) -> None:
    assert Witness(bug, "6.1").outcome() == right
    assert Witness(bug, f"6.1+{bug}").outcome() == wrong


def test_b28_makes_a_table_that_another_vcpu_may_write() -> None:
    """Between the sync that drops the spte and the end nothing makes vCPU 1 forget."""
    asked = {}
    for kernel in ("6.1", "6.1+B28"):
        witness = Witness("B28", kernel)
        assert witness.outcome() == "ok 402000"
        tables = [sp for sp in witness.machine.kvm.pages.values() if sp.gfn == 0x400 and not sp.unsync]
        assert [sp.level for sp in tables] == [1]
        events = [event for step in witness.steps[5:] for event in step.events]
        flushed = any(isinstance(event, ev.kvm_flush_remote_tlbs) for event in events)
        asked[kernel] = flushed, bool(witness.machine.kvm.vcpus[1].requests & Request.TLB_FLUSH)
    assert asked == {"6.1": (True, True), "6.1+B28": (False, False)}


def test_b26_serves_l2s_flush_in_l1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag is the hardware's, and which one is flushed depends on who runs then."""
    sides: list[str] = []
    serve = x86.kvm_service_local_tlb_flush_requests

    def noted(vcpu: Vcpu) -> None:
        if vcpu.requests & Request.TLB_FLUSH_GUEST:
            sides.append("L2" if vcpu.guest_mode else "L1")
        serve(vcpu)

    for module in (x86, nested):
        monkeypatch.setattr(module, "kvm_service_local_tlb_flush_requests", noted)
    right = Witness("B26", "6.1")
    assert right.outcome().startswith("vmexit reason=80000021")
    assert sides == ["L2", "L2"]
    sides.clear()
    assert Witness("B26", "6.1+B26").outcome() == right.outcome()
    assert sides == ["L2", "L1"]


def test_b29_never_syncs_a_page_of_global_entries() -> None:
    """Only the sync policy of 2008 knows global pages; that of 6.1 does not see the switch."""
    for bug, reached in (("", "ok 101000"), ("+B29", "ok 100000")):
        kernel = find_kernel(f"6.1{bug}")
        assert Witness("B29", kernel.with_(sync=find_sync("oos_2008"))).outcome() == reached
        assert Witness("B29", kernel).outcome() == "ok 101000"
