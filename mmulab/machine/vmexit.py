"""What L1 was told of an exit of its guest: fields of its VMCB or VMCS."""

from __future__ import annotations

from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import read_vmcb

VMEXIT_FIELDS = {
    "code": "exit_code",
    "info1": "exit_info_1",
    "info2": "exit_info_2",
    "intinfo": "exit_int_info",
}
"""What a recording tells of an exit to L1, and the VMCB's fields."""
VMX_EXIT_FIELDS = {
    "reason": "vm_exit_reason",
    "qual": "exit_qualification",
    "gpa": "guest_physical_address",
    "gla": "guest_linear_address",
    "intr": "vm_exit_intr_info",
    "intrerr": "vm_exit_intr_error_code",
    "idtv": "idt_vectoring_info_field",
    "rip": "guest_rip",
}
"""The same of VMX, and the VMCS's fields."""


def last_vmexit(vcpu: Vcpu) -> dict[str, int]:
    """Return what L1 was told of the last exit of its guest, under the names of a recording."""
    if vcpu.kvm.config.vendor == "intel":
        return {key: vcpu.vmx.get(field) for key, field in VMX_EXIT_FIELDS.items()}
    return {key: read_vmcb(vcpu, vcpu.last_vmcb12_gpa, field) for key, field in VMEXIT_FIELDS.items()}
