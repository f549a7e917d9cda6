"""Nested VMX: L1 runs a guest of its own with VMLAUNCH and VMRESUME, and gets its exits.

If L1 turns EPT on, KVM shadows L1's tables in ``guest_mmu`` and walks L2's own
with ``nested_mmu``; if not, L2's tables are treated as L1's are. Roots are kept
over entries and exits and are not synced there: EPT translations stay until
INVEPT, whatever L1 writes to its tables (SDM 3, 29.4.3).

Source: Linux 6.1 ``arch/x86/kvm/vmx/nested.c``; SDM 3, chapters 27 and 28, appendix C.
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.context import kvm_init_shadow_ept_mmu, mmu_is_nested
from mmulab.kvm.guest_walk import kvm_write_guest
from mmulab.kvm.hw_cr4 import set_cr4
from mmulab.kvm.inject import DB_VECTOR, UD_VECTOR
from mmulab.kvm.invlpg import invlpg
from mmulab.kvm.mmu import INVALID_PAGE, X86Exception
from mmulab.kvm.roots import kvm_mmu_free_roots, kvm_mmu_new_pgd, kvm_mmu_roots_all
from mmulab.kvm.state import NestedGuest, Request, Vcpu
from mmulab.kvm.trace import trace
from mmulab.kvm.vmx.checks import (
    ENTRY_FAIL_DEFAULT,
    ENTRY_FAIL_PDPTE,
    VM_ENTRY_IA32E_MODE,
    VM_ENTRY_LOAD_IA32_EFER,
    VM_EXIT_HOST_ADDR_SPACE_SIZE,
    VM_EXIT_LOAD_IA32_EFER,
    VM_EXIT_SAVE_IA32_EFER,
    check_guest_state,
    consistency_check,
    refuse_controls,
)
from mmulab.kvm.vmx.vmcs12 import (
    INVALID_GPA,
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_PML,
    SECONDARY_EXEC_ENABLE_VPID,
    VmxState,
)
from mmulab.kvm.x86 import (
    is_long_mode,
    is_pae_paging,
    kvm_service_local_tlb_flush_requests,
    load_pdptrs,
    nested_load_cr3,
)
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, VMX_EPTP_PWL_5, VMX_EPTP_PWL_MASK
from mmulab.x86.mode import PT_BASE_ADDR_MASK, VMX_EPT_READABLE_MASK
from mmulab.x86.pferr import PF_VECTOR, PFERR_RSVD_MASK
from mmulab.x86.regs import EFER_LMA, EFER_LME

EXIT_REASONS = {
    "triple_fault": 2,
    "invlpg": 14,
    "vmcall": 18,
    "vmclear": 19,
    "vmlaunch": 20,
    "vmptrld": 21,
    "vmresume": 24,
    "vmwrite": 25,
    "vmxon": 27,
    "cr": 28,
    "ioio": 30,
    "wrmsr": 32,
    "ept_violation": 48,
    "ept_misconfig": 49,
    "invept": 50,
    "invvpid": 53,
    "invpcid": 58,
    "vmfunc": 59,
    "pml_full": 62,
}
"""Basic exit reasons by the name that ``kvm_exit`` prints (SDM 3, appendix C)."""
L1_WANTS = frozenset(
    ("triple_fault", "wrmsr", "vmcall", "vmclear", "vmlaunch", "vmptrld", "vmresume", "vmwrite", "vmxon")
) | {"invept", "invvpid"}
"""Exits that go to L1 whatever its controls say; of WRMSR that holds without MSR bitmaps."""
INTR_INFO_VALID = 1 << 31
INTR_INFO_ERROR_CODE = 1 << 11
INTR_TYPE_HARD_EXCEPTION = 3 << 8
DEBUG_SINGLE_STEP = 1 << 14
INTR_INFO_UNBLOCK_NMI = 1 << 12

EXIT_REASON_INVALID_STATE = 33
VMX_EXIT_REASONS_FAILED_VMENTRY = 1 << 31

_PML_ENTRIES = 512
_PDPTRS = ("guest_pdptr0", "guest_pdptr1", "guest_pdptr2", "guest_pdptr3")

_NOT_MODELLED = (
    "cr0_guest_host_mask",
    "cr4_guest_host_mask",
    "exception_bitmap",
    "page_fault_error_code_mask",
    "page_fault_error_code_match",
    "vm_exit_msr_store_count",
    "vm_exit_msr_load_count",
    "vm_entry_msr_load_count",
    "guest_activity_state",
)
"""Fields of which the model knows only the value 0."""


class VmxNested(NestedGuest):
    """What is kept of L2 while it runs; the rest is in :attr:`Vcpu.vmx`."""

    def vmexit_event(self, event: ev.kvm_exit, info1: int, info2: int) -> ev.kvm_nested_vmexit:
        """Describe an exit: qualification, IDT-vectoring and interruption information."""
        qualification, vectoring = event.qualification or 0, event.idt_vectoring or 0
        if event.reason == "db":
            info = INTR_INFO_VALID | INTR_TYPE_HARD_EXCEPTION | DB_VECTOR
            return ev.kvm_nested_vmexit(event.reason, DEBUG_SINGLE_STEP, vectoring, info, 0)
        if event.reason == "ud":
            info = INTR_INFO_VALID | INTR_TYPE_HARD_EXCEPTION | UD_VECTOR
            return ev.kvm_nested_vmexit(event.reason, 0, vectoring, info, 0)
        if event.reason == "pf":
            info = INTR_INFO_VALID | INTR_INFO_ERROR_CODE | INTR_TYPE_HARD_EXCEPTION | PF_VECTOR
            return ev.kvm_nested_vmexit(
                event.reason, event.address or 0, vectoring, info, event.error_code or 0
            )
        return ev.kvm_nested_vmexit(event.reason, qualification, vectoring)

    def exit_handled(self, vcpu: Vcpu, exit: ev.kvm_nested_vmexit) -> bool:
        """Give an exit to L1 if it wants it and L0 does not (``nested_vmx_reflect_vmexit``).

        EPT violations and VMFUNC are L0's first, #PF while it shadows, and #DB
        while the VMM single-steps.
        """
        warn_on(vcpu.kvm, "nested.c:nested_vmx_reflect_vmexit:run_pending", vcpu.vmx.nested_run_pending)
        if exit.reason not in L1_WANTS:
            return False
        nested_vmx_vmexit(vcpu, exit.reason, exit.exit_info1)
        return True

    def exception_handled(self, vcpu: Vcpu) -> bool:
        """L1 gets none of L2's exceptions: :func:`_refuse` lets no exception bitmap pass."""
        return False

    def triple_fault(self, vcpu: Vcpu) -> bool:
        """Tell L1 that its guest is lost (``nested_vmx_triple_fault``)."""
        vcpu.requests &= ~Request.TRIPLE_FAULT
        self.idt_vectoring = 0
        nested_vmx_vmexit(vcpu, "triple_fault", 0)
        return True

    def inject_page_fault(self, vcpu: Vcpu, fault: X86Exception) -> None:
        """Tell L1 of a fault of its EPT."""
        nested_ept_inject_page_fault(vcpu, fault)

    def pdptr(self, vcpu: Vcpu, index: int) -> int:
        """EPT has no PDPTEs.

        Raises
        ------
        AssertionError
        """
        raise AssertionError("EPT has at least four levels")

    def write_log_dirty(self, vcpu: Vcpu, gpa: int) -> bool:
        """Log a page of L2 that gets dirty; False if L1's log is full (``nested_vmx_write_pml_buffer``)."""
        vmx, kvm = vcpu.vmx, vcpu.kvm
        if warn_on(kvm, "nested.c:nested_vmx_write_pml_buffer:guest_mode", not vcpu.guest_mode):
            return True
        if warn_on(kvm, "nested.c:nested_vmx_write_pml_buffer:pml_full", vmx.pml_full):
            return False
        if not vmx.has_secondary(SECONDARY_EXEC_ENABLE_PML):
            return True
        index = vmx.get("guest_pml_index")
        if index >= _PML_ENTRIES:
            vmx.pml_full = True
            return False
        if kvm_write_guest(vcpu, vmx.get("pml_address") + 8 * index, 8, gpa & ~0xFFF):
            vmx.put("guest_pml_index", index - 1)
        return True


def _refuse(vmx: VmxState) -> None:
    """Refuse a VMCS that asks for what the model does not know.

    Raises
    ------
    InputError
    """
    for name in _NOT_MODELLED:
        if vmx.get(name):
            raise InputError(f"VMCS field {name} is {vmx.get(name):#x}; only 0 is modelled")
    refuse_controls(vmx)
    if vmx.get("vm_entry_intr_info_field") & INTR_INFO_VALID:
        raise InputError("the VMCS injects an event at VM entry, which is not modelled")


def _transition_tlb_flush(vcpu: Vcpu, *, entry: bool) -> None:
    """Flush at a change between L1 and L2 what a common tag would keep.

    With EPT the pointers differ, and so do the tags; without it L2 gets a VPID
    of its own from KVM. Source: ``nested_vmx_transition_tlb_flush``.
    """
    vmx = vcpu.vmx
    vpid = vmx.get("virtual_processor_id")
    if not vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID):
        if vcpu.kvm.bugs.B25:  # the root in use alone
            vcpu.requests |= Request.TLB_FLUSH_CURRENT | (0 if vcpu.kvm.config.tdp else Request.MMU_SYNC)
        else:
            vcpu.requests |= Request.TLB_FLUSH_GUEST
    elif entry and vpid != vmx.last_vpid:
        vmx.last_vpid = vpid
        vcpu.requests |= Request.TLB_FLUSH_GUEST


def _serve_flushes(vcpu: Vcpu) -> None:
    """Serve the flushes that were asked for by the side that is left, L1 or L2."""
    left = vcpu.requests & Request.TLB_FLUSH_GUEST if vcpu.kvm.bugs.B26 else 0
    vcpu.requests &= ~left
    kvm_service_local_tlb_flush_requests(vcpu)
    vcpu.requests |= left


def nested_ept_new_eptp(vcpu: Vcpu, eptp: int) -> None:
    """Turn ``guest_mmu`` to another EPT pointer of L1."""
    assert vcpu.nested is not None
    vcpu.nested.nested_pgd = eptp
    kvm_init_shadow_ept_mmu(
        vcpu,
        level=5 if eptp & VMX_EPTP_PWL_MASK == VMX_EPTP_PWL_5 else 4,
        accessed_dirty=bool(eptp & VMX_EPTP_AD_ENABLE_BIT),
        execonly=not vcpu.kvm.fmt.present & VMX_EPT_READABLE_MASK,
    )
    kvm_mmu_new_pgd(vcpu, eptp)


def nested_vmx_enter_non_root_mode(vcpu: Vcpu) -> None:
    """Enter L2 with the current VMCS, whose controls have passed the checks.

    If L2's state does not pass, L1 goes on as after an exit, with its reason.

    Raises
    ------
    InputError
        The VMCS asks for what is not modelled.
    """
    vmx = vcpu.vmx
    ept = vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    eptp, cr3 = vmx.get("ept_pointer"), vmx.get("guest_cr3")
    rip, pgd = vmx.get("guest_rip"), eptp if ept else cr3
    trace(vcpu.kvm, ev.kvm_nested_vmenter, vmx.current_vmptr, rip, ept, pgd)
    _serve_flushes(vcpu)
    if not vmx.vmcs02_loaded:
        vmx.vmcs02_loaded = True
        vcpu.requests |= Request.TLB_FLUSH
    failure = check_guest_state(vcpu)
    if failure is not None:
        _fail_vmentry(vcpu, failure)
        return
    _refuse(vmx)
    if not ept and is_pae_paging(vcpu) and not load_pdptrs(vcpu, vcpu.cr3):
        raise InputError("VM entry finds L1's PDPTEs invalid, which is not modelled")
    failure = _prepare_vmcs02(vcpu, cr3, eptp if ept else None)
    if failure is not None:
        _serve_flushes(vcpu)
        vcpu.guest_mode, vcpu.nested = False, None
        _fail_vmentry(vcpu, failure)
        return
    vcpu.rip = vmx.get("guest_rip")
    vcpu.cpl, vcpu.ac = vmx.get("guest_ss_ar_bytes") >> 5 & 3, False
    vmx.nested_run_pending = True


def _prepare_vmcs02(vcpu: Vcpu, cr3: int, eptp: int | None) -> int | None:
    """Give the vCPU L2's registers and contexts; the failure code if CR3 or the PDPTEs are not legal."""
    vmx = vcpu.vmx
    vcpu.guest_mode = True
    vcpu.nested = VmxNested()
    _transition_tlb_flush(vcpu, entry=True)
    if eptp is not None:
        warn_on(vcpu.kvm, "nested.c:nested_ept_init_mmu_context:nested", mmu_is_nested(vcpu))
        vcpu.mmu = vcpu.guest_mmu
        nested_ept_new_eptp(vcpu, eptp)
        vcpu.walk_mmu = vcpu.nested_mmu
    vcpu.cr0 = vmx.get("guest_cr0")
    set_cr4(vcpu, vmx.get("guest_cr4"))
    vcpu.efer = _guest_efer(vcpu)
    if consistency_check(vcpu, bool(cr3 >> vcpu.cpu.maxphyaddr)):
        return ENTRY_FAIL_DEFAULT
    if consistency_check(vcpu, not nested_load_cr3(vcpu, cr3, nested_tdp=eptp is not None)):
        return ENTRY_FAIL_PDPTE
    if eptp is not None and is_pae_paging(vcpu):
        vcpu.walk_mmu.pdptrs = [vmx.get(name) for name in _PDPTRS]
    return None


def _fail_vmentry(vcpu: Vcpu, failure: int) -> None:
    """Go on in L1 after an entry that failed on L2's state (SDM 3, 27.8): no more is told of it."""
    _load_vmcs12_host_state(vcpu)
    vcpu.vmx.put("exit_qualification", failure)
    vcpu.vmx.put("vm_exit_reason", EXIT_REASON_INVALID_STATE | VMX_EXIT_REASONS_FAILED_VMENTRY)


def _guest_efer(vcpu: Vcpu) -> int:
    """Work out L2's EFER (``nested_vmx_calc_efer``)."""
    entries = vcpu.vmx.get("vm_entry_controls")
    if entries & VM_ENTRY_LOAD_IA32_EFER:
        return vcpu.vmx.get("guest_ia32_efer")
    bits = EFER_LMA | EFER_LME
    return vcpu.efer | bits if entries & VM_ENTRY_IA32E_MODE else vcpu.efer & ~bits


def nested_ept_inject_page_fault(vcpu: Vcpu, fault: X86Exception) -> None:
    """Tell L1 of a fault of its EPT, or that its page-modification log is full.

    Other roots that shadow the same tables forget the address too, because the
    processor tags translations with the table, not with the whole pointer.
    """
    vmx, nested = vcpu.vmx, vcpu.nested
    assert nested is not None
    qualification = vcpu.exit_qualification
    if vmx.pml_full:
        vmx.pml_full = False
        reason = "pml_full"
        qualification &= INTR_INFO_UNBLOCK_NMI
    else:
        misconfig = bool(fault.error_code & PFERR_RSVD_MASK)
        reason = "ept_misconfig" if misconfig else "ept_violation"
        if misconfig and vcpu.kvm.behaviours.misconfig_has_no_qualification:
            qualification = 0
        warn_on(vcpu.kvm, "nested.c:nested_ept_invalidate_addr:nested", not mmu_is_nested(vcpu))
        for pgd, hpa in vcpu.mmu.prev_roots:
            if nested_ept_root_matches(hpa, pgd, nested.nested_pgd):
                invlpg(vcpu, fault.address, hpa)
    nested_vmx_vmexit(vcpu, reason, qualification)
    vmx.put("guest_physical_address", fault.address)


def vmx_leave_nested(vcpu: Vcpu) -> None:
    """Take VMX from a vCPU that is destroyed; L1 is not told of anything."""
    vmx = vcpu.vmx
    if vcpu.guest_mode:
        _leave_l2(vcpu)
        _load_vmcs12_host_state(vcpu)
    if vmx.vmxon_ptr == INVALID_GPA:
        return
    kvm_mmu_free_roots(vcpu.kvm, vcpu.guest_mmu, kvm_mmu_roots_all(vcpu.kvm))
    vmx.vmxon_ptr = vmx.current_vmptr = INVALID_GPA


def nested_ept_root_matches(root_hpa: int, root_eptp: int, eptp: int) -> bool:
    """Whether a kept root shadows the tables that an EPT pointer points to."""
    return root_hpa != INVALID_PAGE and not (root_eptp ^ eptp) & PT_BASE_ADDR_MASK


def nested_vmx_vmexit(vcpu: Vcpu, reason: str, qualification: int) -> None:
    """Leave L2: save its state in the VMCS, and give L1 the state that the VMCS has for it."""
    vmx, nested = vcpu.vmx, vcpu.nested
    assert nested is not None
    warn_on(vcpu.kvm, "nested.c:nested_vmx_vmexit:run_pending", vmx.nested_run_pending)
    _leave_l2(vcpu)
    vmx.put("vm_exit_reason", EXIT_REASONS[reason])
    vmx.put("exit_qualification", qualification)
    vmx.put("launch_state", 1)
    vmx.put("idt_vectoring_info_field", nested.idt_vectoring)
    vmx.put("vm_exit_intr_info", 0)
    trace(vcpu.kvm, ev.kvm_nested_vmexit_inject, reason, qualification, nested.idt_vectoring)
    _load_vmcs12_host_state(vcpu)


def _leave_l2(vcpu: Vcpu) -> None:
    """Save L2's registers. While KVM shadows, L2's CR3 stays the one that L1 wrote."""
    vmx = vcpu.vmx
    _serve_flushes(vcpu)
    ept = vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    vmx.put("guest_cr0", vcpu.cr0)
    vmx.put("guest_cr4", vcpu.cr4)
    vmx.put("guest_rip", vcpu.rip)
    rights = vmx.get("guest_ss_ar_bytes")
    vmx.put("guest_ss_ar_bytes", rights & ~(3 << 5) | vcpu.cpl << 5)
    if vcpu.kvm.config.tdp:
        vmx.put("guest_cr3", vcpu.cr3)
        if ept and is_pae_paging(vcpu):
            for name, pdpte in zip(_PDPTRS, vcpu.walk_mmu.pdptrs, strict=True):
                vmx.put(name, pdpte)
    vmx.put("guest_linear_address", vmx.gla)
    entries = vmx.get("vm_entry_controls") & ~VM_ENTRY_IA32E_MODE
    vmx.put("vm_entry_controls", entries | (VM_ENTRY_IA32E_MODE if is_long_mode(vcpu) else 0))
    if vmx.get("vm_exit_controls") & VM_EXIT_SAVE_IA32_EFER:
        vmx.put("guest_ia32_efer", vcpu.efer)
    vcpu.guest_mode, vcpu.nested, vcpu.exception = False, None, None


def _load_vmcs12_host_state(vcpu: Vcpu) -> None:
    """Give the vCPU the state with which L1 goes on."""
    vmx = vcpu.vmx
    exits = vmx.get("vm_exit_controls")
    if exits & VM_EXIT_LOAD_IA32_EFER:
        vcpu.efer = vmx.get("host_ia32_efer")
    elif exits & VM_EXIT_HOST_ADDR_SPACE_SIZE:
        vcpu.efer |= EFER_LMA | EFER_LME
    else:
        vcpu.efer &= ~(EFER_LMA | EFER_LME)
    vcpu.rip, vcpu.cpl, vcpu.ac = vmx.get("host_rip"), 0, False
    vcpu.cr0 = vmx.get("host_cr0")
    set_cr4(vcpu, vmx.get("host_cr4"))
    vcpu.mmu = vcpu.walk_mmu = vcpu.root_mmu
    if not nested_load_cr3(vcpu, vmx.get("host_cr3"), nested_tdp=False):
        vcpu.requests |= Request.TRIPLE_FAULT
    _transition_tlb_flush(vcpu, entry=False)
