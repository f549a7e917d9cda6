"""Exits of both vendors, from the trace's fields."""

from __future__ import annotations

from typing import Any

from mmulab import events as ev
from mmulab.record.exits import EXITS, svm_exit_name, vmx_exit_name

NOTHING: dict[str, Any] = {"guest_rip": 0x1800, "info1": 0, "info2": 0, "intr_info": 0, "error_code": 0}
PAGE_FAULT = 0x80000B0E
INTEL = EXITS["intel"]


def test_exits_have_their_names() -> None:
    codes = (0x04, 0x13, 0x41, 0x400, 0x999)
    assert [svm_exit_name(code) for code in codes] == ["read_cr4", "write_cr3", "db", "npf", "0x999"]
    codes = (18, 48, 0x80000021, 999)
    assert [vmx_exit_name(code, 0) for code in codes] == [
        "vmcall",
        "ept_violation",
        "invalid_state!entry_failed",
        "0x3e7",
    ]
    assert [vmx_exit_name(0, 0x80000300 | vector) for vector in (1, 14, 7)] == ["db", "pf", "exc7"]


def test_a_page_fault_of_vmx_has_its_address_in_the_qualification() -> None:
    raw = {**NOTHING, "exit_reason": 0, "intr_info": PAGE_FAULT, "error_code": 6, "info1": 0x40000000}
    assert INTEL.exit(raw) == ev.kvm_exit("pf", 0x1800, error_code=6, address=0x40000000)


def test_only_some_exits_tell_their_qualification() -> None:
    raw = {**NOTHING, "exit_reason": 48, "info1": 0x181, "info2": PAGE_FAULT}
    assert INTEL.exit(raw) == ev.kvm_exit(
        "ept_violation", 0x1800, qualification=0x181, idt_vectoring=PAGE_FAULT
    )
    assert INTEL.exit({**NOTHING, "exit_reason": 50, "info1": 7}) == ev.kvm_exit("invept", 0x1800)
    assert INTEL.exit({**NOTHING, "exit_reason": 58}) == ev.kvm_exit("invpcid", 0x1800, qualification=0)


def test_an_exit_of_l2_tells_an_interruption_only_if_it_is_valid() -> None:
    raw = {**NOTHING, "exit_reason": 0, "intr_info": 0x80000301, "info1": 0x4000}
    assert INTEL.nested_exit(raw) == ev.kvm_nested_vmexit("db", 0x4000, 0, 0x80000301, 0)
    raw = {"exit_code": 49, "exit_info1": 1, "exit_info2": 2, "exit_int_info": 3, "exit_int_info_err": 4}
    assert INTEL.injected(raw) == ev.kvm_nested_vmexit_inject("ept_misconfig", 1, 2)


def test_what_svm_tells_of_the_same() -> None:
    amd = EXITS["amd"]
    raw = {**NOTHING, "exit_reason": 0x4E, "info1": 6, "info2": 0x40000000}
    assert amd.exit(raw) == ev.kvm_exit("pf", 0x1800, error_code=6, address=0x40000000)
    assert amd.is_hosts(0x60)
    assert not amd.is_hosts(1)
    assert [INTEL.is_hosts(code) for code in (1, 52, 0x60)] == [True, True, False]
