"""The way into SMM, for a vCPU by itself; what a guest sees of it is in ``tests/machine/test_smm.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.kvm.behaviours import Behaviours
from mmulab.kvm.smm import (
    SAVE_STATE_32,
    SAVE_STATE_64,
    STATE_SAVE_AREA,
    STATE_SAVE_BYTES,
    enter_smm,
    kvm_vcpu_ioctl_smi,
    read_save_state,
)
from mmulab.kvm.state import Request
from mmulab.kvm.x86 import GeneralProtectionError, kvm_set_cr4
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.x86.regs import X86_CR4_VMXE
from tests.kvm.guest import MIB, Guest

AS_1 = 1 << 16


def smm_guest(flags: int = 0, vendor: str = "amd", **config: Any) -> Guest:
    """A guest whose address space 1 shows the same memory."""
    guest = Guest("64", host=HostConfig(vendor=vendor, tdp=vendor == "intel"), **config)
    guest.machine.execute(ops.SetMemslot(AS_1, 0, 8 * MIB, flags, 0))
    return guest


def state_of(guest: Guest) -> dict[str, int]:
    vcpu = guest.vcpu
    return {"cr0": vcpu.cr0, "cr3": vcpu.cr3, "cr4": vcpu.cr4, "efer": vcpu.efer, "rip": vcpu.rip}


@pytest.mark.parametrize("smbase", [0x30000, 0x30F00, 0x301FC])
def test_what_is_saved_is_read_again(smbase: int) -> None:
    """Also where SMBASE, which the guest may choose, puts the area across two pages."""
    guest = smm_guest()
    guest.vcpu.smbase, guest.vcpu.rip, guest.vcpu.ac = smbase, 0x1234, True
    saved = state_of(guest)
    enter_smm(guest.vcpu)
    found = read_save_state(guest.vcpu)
    outside_l2 = {"svm_guest": 0, "vmcb12_gpa": 0}
    assert found == {**saved, **outside_l2, "smbase": smbase, "revision": 0x20064, "rflags": 0x40002}
    area = smbase + STATE_SAVE_AREA
    assert guest.load(area - 0x7E00 + 0x7F58, 8) == saved["cr0"]
    assert guest.load(area + STATE_SAVE_BYTES, 8) == 0


def test_the_layouts_lie_within_the_area_and_no_two_fields_overlap() -> None:
    for layout in (SAVE_STATE_64, SAVE_STATE_32):
        places = sorted(layout.fields.values())
        ends = [at + size for at, size in places]
        assert places[0][0] >= 0x7E00
        assert ends[-1] <= 0x8000
        assert all(end <= start for end, (start, _) in zip(ends[:-1], places[1:], strict=True))


def test_read_only_memory_keeps_nothing() -> None:
    guest = smm_guest(flags=2)
    enter_smm(guest.vcpu)
    assert guest.load(0x30000 + STATE_SAVE_AREA + 0x158, 8) == 0
    assert guest.vcpu.smm == 1


def test_later_kernels_end_the_vm_where_nothing_can_be_kept() -> None:
    guest = smm_guest(flags=2, behaviours=Behaviours(smm_needs_smram=True))
    kvm_vcpu_ioctl_smi(guest.vcpu)
    assert guest.machine.execute(ops.Nop()) == Outcome(OutcomeKind.HANG, error=5)
    assert guest.vcpu.requests & Request.VM_DEAD
    assert guest.vcpu.cr0 == guest.regs[0]  # the way in was not gone to its end
    assert guest.machine.execute(ops.Nop()) == Outcome(OutcomeKind.HANG, error=5)


def test_an_smi_is_a_request_for_the_next_entry() -> None:
    guest = smm_guest()
    kvm_vcpu_ioctl_smi(guest.vcpu)
    assert guest.vcpu.requests & Request.SMI
    assert guest.vcpu.smm == 0
    guest.poke(0x38000, 0x90, 1)
    guest.enter()
    assert guest.vcpu.smm == 1
    assert not guest.vcpu.requests & Request.SMI
    assert not guest.vcpu.smi_pending


def test_where_it_is_refused() -> None:
    intel = smm_guest(vendor="intel")
    intel.vcpu.vmx.vmxon_ptr = 0x5000
    with pytest.raises(InputError, match="an SMI in VMX operation is not modelled"):
        kvm_vcpu_ioctl_smi(intel.vcpu)
    kvm_vcpu_ioctl_smi(Guest("64", host=HostConfig(vendor="intel")).vcpu)  # without EPT as with it


@pytest.mark.parametrize("inside", [False, True])
def test_vmx_is_not_for_smm(inside: bool) -> None:
    """CR4.VMXE cannot be set in it (``vmx_is_valid_cr4``)."""
    guest = smm_guest(vendor="intel")
    guest.vcpu.cpu = replace(guest.vcpu.cpu, vmx=True)
    if inside:
        enter_smm(guest.vcpu)
        with pytest.raises(GeneralProtectionError):
            kvm_set_cr4(guest.vcpu, X86_CR4_VMXE)
    else:
        kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_VMXE)
        assert guest.vcpu.cr4 & X86_CR4_VMXE


def test_svm_is_not_for_smm() -> None:
    """VMRUN is undefined in it (``nested_svm_vmrun``)."""
    guest = smm_guest()
    enter_smm(guest.vcpu)
    guest.machine.execute(ops.SetSregs(0x11, 0, 0, 0))
    outcome = guest.machine.execute(ops.Vmrun(0x5000))
    assert (outcome.vector, outcome.error_code) == (6, None)
    assert not guest.vcpu.guest_mode
