"""L1's VMCS for L2, in the layout that KVM gives it, and what KVM keeps of VMX for a vCPU.

A VMCS region's contents are its processor's own affair (SDM 3, 25.2); KVM's are
the image of a structure, which it reads at VMPTRLD, works on in a cache, and
writes back when the VMCS is no longer the current one.

Source: Linux 6.1 ``arch/x86/kvm/vmx/vmcs12.h`` (offsets), SDM 3, appendix B (encodings).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

VMCS12_REVISION = 0x11E57ED0
VMCS12_SIZE = 0x1000
INVALID_GPA = -1

CPU_BASED_ACTIVATE_SECONDARY_CONTROLS = 1 << 31
SECONDARY_EXEC_ENABLE_EPT = 1 << 1
SECONDARY_EXEC_ENABLE_VPID = 1 << 5
SECONDARY_EXEC_UNRESTRICTED_GUEST = 1 << 7
SECONDARY_EXEC_ENABLE_INVPCID = 1 << 12
SECONDARY_EXEC_ENABLE_VMFUNC = 1 << 13
VMFUNC_FUNCTIONS = 64
SECONDARY_EXEC_ENABLE_PML = 1 << 17


class Field(NamedTuple):
    """A field of the structure: offset and size in bytes, and its VMCS encoding.

    `shadowed`: L1 writes it without an exit, through VMCS shadowing; -1 is the
    encoding of what only VMCLEAR and VM entry touch.
    """

    offset: int
    size: int
    encoding: int
    shadowed: bool = False


VMCS12 = {
    "revision_id": Field(0x000, 4, -1),
    "launch_state": Field(0x008, 4, -1),
    "ept_pointer": Field(0x078, 8, 0x201A),
    "guest_physical_address": Field(0x0A8, 8, 0x2400),
    "vmcs_link_pointer": Field(0x0B0, 8, 0x2800),
    "guest_ia32_debugctl": Field(0x0B8, 8, 0x2802),
    "guest_ia32_efer": Field(0x0C8, 8, 0x2806),
    "guest_pdptr0": Field(0x0D8, 8, 0x280A),
    "guest_pdptr1": Field(0x0E0, 8, 0x280C),
    "guest_pdptr2": Field(0x0E8, 8, 0x280E),
    "guest_pdptr3": Field(0x0F0, 8, 0x2810),
    "host_ia32_efer": Field(0x108, 8, 0x2C02),
    "vm_function_control": Field(0x128, 8, 0x2018),
    "eptp_list_address": Field(0x130, 8, 0x2024),
    "pml_address": Field(0x138, 8, 0x200E),
    "cr0_guest_host_mask": Field(0x158, 8, 0x6000, True),
    "cr4_guest_host_mask": Field(0x160, 8, 0x6002),
    "exit_qualification": Field(0x198, 8, 0x6400),
    "guest_linear_address": Field(0x1A0, 8, 0x640A),
    "guest_cr0": Field(0x1A8, 8, 0x6800, True),
    "guest_cr3": Field(0x1B0, 8, 0x6802, True),
    "guest_cr4": Field(0x1B8, 8, 0x6804, True),
    "guest_dr7": Field(0x210, 8, 0x681A),
    "guest_rip": Field(0x220, 8, 0x681E, True),
    "host_cr0": Field(0x248, 8, 0x6C00),
    "host_cr3": Field(0x250, 8, 0x6C02),
    "host_cr4": Field(0x258, 8, 0x6C04),
    "host_fs_base": Field(0x260, 8, 0x6C06, True),
    "host_gs_base": Field(0x268, 8, 0x6C08, True),
    "host_tr_base": Field(0x270, 8, 0x6C0A),
    "host_gdtr_base": Field(0x278, 8, 0x6C0C),
    "host_idtr_base": Field(0x280, 8, 0x6C0E),
    "host_ia32_sysenter_esp": Field(0x288, 8, 0x6C10),
    "host_ia32_sysenter_eip": Field(0x290, 8, 0x6C12),
    "host_rip": Field(0x2A0, 8, 0x6C16),
    "pin_based_vm_exec_control": Field(0x2E8, 4, 0x4000, True),
    "cpu_based_vm_exec_control": Field(0x2EC, 4, 0x4002, True),
    "exception_bitmap": Field(0x2F0, 4, 0x4004, True),
    "page_fault_error_code_mask": Field(0x2F4, 4, 0x4006),
    "page_fault_error_code_match": Field(0x2F8, 4, 0x4008),
    "cr3_target_count": Field(0x2FC, 4, 0x400A),
    "vm_exit_controls": Field(0x300, 4, 0x400C),
    "vm_exit_msr_store_count": Field(0x304, 4, 0x400E),
    "vm_exit_msr_load_count": Field(0x308, 4, 0x4010),
    "vm_entry_controls": Field(0x30C, 4, 0x4012),
    "vm_entry_msr_load_count": Field(0x310, 4, 0x4014),
    "vm_entry_intr_info_field": Field(0x314, 4, 0x4016, True),
    "secondary_vm_exec_control": Field(0x324, 4, 0x401E),
    "vm_instruction_error": Field(0x328, 4, 0x4400),
    "vm_exit_reason": Field(0x32C, 4, 0x4402),
    "vm_exit_intr_info": Field(0x330, 4, 0x4404),
    "vm_exit_intr_error_code": Field(0x334, 4, 0x4406),
    "idt_vectoring_info_field": Field(0x338, 4, 0x4408),
    "idt_vectoring_error_code": Field(0x33C, 4, 0x440A),
    "guest_ss_ar_bytes": Field(0x378, 4, 0x4818),
    "guest_activity_state": Field(0x394, 4, 0x4826),
    "virtual_processor_id": Field(0x3C0, 2, 0x0000),
    "host_es_selector": Field(0x3D6, 2, 0x0C00),
    "host_cs_selector": Field(0x3D8, 2, 0x0C02),
    "host_ss_selector": Field(0x3DA, 2, 0x0C04),
    "host_ds_selector": Field(0x3DC, 2, 0x0C06),
    "host_fs_selector": Field(0x3DE, 2, 0x0C08, True),
    "host_gs_selector": Field(0x3E0, 2, 0x0C0A, True),
    "host_tr_selector": Field(0x3E2, 2, 0x0C0C),
    "guest_pml_index": Field(0x3E4, 2, 0x0812),
}
"""The fields that concern paging, entry and exit, by KVM's names."""
FIELD_OF = {field.encoding: name for name, field in VMCS12.items() if field.encoding >= 0}
"""Field names by encoding."""


@dataclass(slots=True)
class VmxState:
    """What KVM keeps of VMX for a vCPU, whether L1 or L2 runs (``struct nested_vmx``).

    Attributes
    ----------
    vmxon_ptr, current_vmptr : int
        L1's VMXON region and current VMCS; -1 if there is none.
    image : bytes
        The current VMCS, as KVM caches it.
    vmcs02_loaded : bool
        The VMCS with which L2 really runs has been on this processor.
    last_vpid : int
        L2's VPID at the last entry with one.
    nested_run_pending : bool
        L1 has entered L2, which has not run yet.
    pml_full : bool
        The walk at hand found no room in L1's page-modification log.
    gla : int
        Guest-linear address in the VMCS with which L2 really runs.
    cf, zf : int
        Flags of the last VMX instruction: VMfailInvalid, VMfailValid.
    """

    vmxon_ptr: int = INVALID_GPA
    current_vmptr: int = INVALID_GPA
    image: bytes = b""
    vmcs02_loaded: bool = False
    last_vpid: int = 0
    nested_run_pending: bool = False
    pml_full: bool = False
    gla: int = 0
    cf: int = 0
    zf: int = 0

    def get(self, name: str) -> int:
        """Return a field of the current VMCS."""
        offset, size, *_ = VMCS12[name]
        return int.from_bytes(self.image[offset : offset + size], "little")

    def put(self, name: str, value: int) -> None:
        """Set a field of the current VMCS; what does not fit is cut off."""
        offset, size, *_ = VMCS12[name]
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.image = self.image[:offset] + data + self.image[offset + size :]

    def has_secondary(self, control: int) -> bool:
        """Whether L1 turned a secondary processor-based control on (``nested_cpu_has2``)."""
        if not self.get("cpu_based_vm_exec_control") & CPU_BASED_ACTIVATE_SECONDARY_CONTROLS:
            return False
        return bool(self.get("secondary_vm_exec_control") & control)
