"""The VMCS in KVM's layout: where fields lie, and how they are read and written."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmulab.kvm.vmx.vmcs12 import (
    CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
    FIELD_OF,
    INVALID_GPA,
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_VPID,
    VMCS12,
    VMCS12_SIZE,
    VmxState,
)


def state() -> VmxState:
    return VmxState(image=bytes(VMCS12_SIZE))


def test_encodings_tell_width_and_kind() -> None:
    """Bits 14:13 are the width: 0 is 16 bits, 1 is 64, 2 is 32, 3 natural; bit 0 is 0 (SDM 3, 25.11.2)."""
    widths = {0: 2, 1: 8, 2: 4, 3: 8}
    for name, field in VMCS12.items():
        if field.encoding >= 0:
            assert field.size == widths[field.encoding >> 13 & 3], name
            assert not field.encoding & 1, name


def test_fields_lie_apart_and_aligned() -> None:
    taken = sorted((field.offset, field.offset + field.size) for field in VMCS12.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert taken[-1][1] <= VMCS12_SIZE
    assert all(field.offset % min(field.size, 4) == 0 for field in VMCS12.values())


def test_each_encoding_names_one_field() -> None:
    assert len(FIELD_OF) == sum(field.encoding >= 0 for field in VMCS12.values())
    assert all(VMCS12[name].encoding == encoding for encoding, name in FIELD_OF.items())


@pytest.mark.parametrize("name", ["virtual_processor_id", "vm_exit_reason", "ept_pointer"])
def test_what_does_not_fit_is_cut_off_and_nothing_else_changes(name: str) -> None:
    vmx = state()
    size = VMCS12[name].size
    vmx.put(name, -1)
    assert vmx.get(name) == (1 << 8 * size) - 1
    assert len(vmx.image) == VMCS12_SIZE
    assert sum(byte != 0 for byte in vmx.image) == size
    vmx.put(name, 1 << 8 * size)
    assert vmx.image == bytes(VMCS12_SIZE)


def test_secondary_controls_count_only_when_activated() -> None:
    vmx = state()
    vmx.put("secondary_vm_exec_control", SECONDARY_EXEC_ENABLE_EPT)
    assert not vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    vmx.put("cpu_based_vm_exec_control", CPU_BASED_ACTIVATE_SECONDARY_CONTROLS)
    assert vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    assert not vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID)


def test_at_first_there_is_no_region() -> None:
    assert VmxState().vmxon_ptr == VmxState().current_vmptr == INVALID_GPA
