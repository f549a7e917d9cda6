"""VMCBs against those that real kernels ran with; VMCSs field by field."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmulab.check.control_block import ept_pointer, vmcb, vmcs
from mmulab.conform.recording import read_recording
from mmulab.kvm.vmx.checks import VM_ENTRY_IA32E_MODE, VM_EXIT_HOST_ADDR_SPACE_SIZE
from mmulab.kvm.vmx.vmcs12 import (
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_VPID,
    SECONDARY_EXEC_UNRESTRICTED_GUEST,
    VMCS12,
)
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import MODES, Value
from mmulab.x86.regs import X86_CR4_VMXE

GPA, L2_ROOT, NPT_ROOT = 0xB000, 0x200000, 0x14000
RIP = 0x578


def page(values: Iterable[Value]) -> dict[int, int]:
    """Return the bytes of the VMCB that are not 0, but for RIP, which each VMRUN sets."""
    found = {}
    for value in values:
        for at, byte in enumerate(value.value.to_bytes(value.size, "little"), value.gpa - GPA):
            if 0 <= at < 4096 and byte and not RIP <= at < RIP + 8:
                found[at] = byte
    return found


@pytest.mark.parametrize(
    ("recording", "mode", "root_gpa", "nested_cr3"),
    [
        ("nested48/nested-64-l2-64", "64", L2_ROOT, NPT_ROOT),
        ("nested57/nested-64-l2-32", "32", L2_ROOT, NPT_ROOT),
        ("nested-nonpt/nested-nonpt-32-l2-np", "np", 0, None),
    ],
)
def test_a_vmcb_is_that_of_the_recordings(
    root: Path, recording: str, mode: str, root_gpa: int, nested_cr3: int | None
) -> None:
    builder = ScenarioBuilder("64")
    vmcb(builder, GPA, MODES[mode]._replace(cr3=root_gpa), nested_cr3)
    wanted = read_recording(root / f"data/conformance/6.1.192/{recording}.jsonl.xz").scenario.header
    assert page(builder.build().header.values) == page(wanted.values)


def fields(eptp: int | None, pdptes: tuple[int, ...] = (), vpid: int = 1) -> dict[str, int]:
    """Return the fields of a VMCS of a 4-level L1 and an L2 in PAE paging, as they lie in memory."""
    builder = ScenarioBuilder("64", vendor="intel")
    vmcs(builder, GPA, MODES["64"], MODES["pae"], eptp, pdptes, vpid)
    held = bytearray(4096)
    for value in builder.build().header.values:
        if GPA <= value.gpa < GPA + 4096:
            at = value.gpa - GPA
            held[at : at + value.size] = value.value.to_bytes(value.size, "little")
    return {
        name: int.from_bytes(held[field.offset : field.offset + field.size], "little")
        for name, field in VMCS12.items()
    }


def test_a_vmcs_has_the_processor_load_l2s_pdptes_and_l1s_registers() -> None:
    pdptes = (0x8000000000001, 0x2001, 0, 0x4001)
    found = fields(ept_pointer(NPT_ROOT, ad=True), pdptes)
    assert tuple(found[f"guest_pdptr{number}"] for number in range(4)) == pdptes
    assert (found["host_cr4"], found["guest_cr4"]) == (
        MODES["64"].cr4,
        MODES["pae"].cr4 | X86_CR4_VMXE,
    )
    assert (found["host_ia32_efer"], found["guest_ia32_efer"]) == (MODES["64"].efer, MODES["pae"].efer)
    assert found["vm_exit_controls"] & VM_EXIT_HOST_ADDR_SPACE_SIZE
    assert not found["vm_entry_controls"] & VM_ENTRY_IA32E_MODE
    assert found["ept_pointer"] == NPT_ROOT | 6 | 3 << 3 | 1 << 6


@pytest.mark.parametrize(
    ("eptp", "vpid", "controls"),
    [
        (None, 0, 0),
        (None, 1, SECONDARY_EXEC_ENABLE_VPID),
        (NPT_ROOT, 0, SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_UNRESTRICTED_GUEST),
    ],
)
def test_a_vmcs_turns_on_what_it_has(eptp: int | None, vpid: int, controls: int) -> None:
    found = fields(eptp, vpid=vpid)
    assert found["secondary_vm_exec_control"] == controls
    assert (found["ept_pointer"], found["virtual_processor_id"]) == (eptp or 0, vpid)


def test_an_ept_pointer_says_levels_and_ad_bits() -> None:
    assert ept_pointer(NPT_ROOT, 5, ad=False) == NPT_ROOT | 6 | 4 << 3
