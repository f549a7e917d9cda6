"""VMX instructions of L1, which KVM executes; each exits.

Source: Linux 6.1 ``arch/x86/kvm/vmx/nested.c`` (``handle_vmxon``, ``handle_vmptrld``,
``nested_vmx_run``, ``handle_vmwrite``, ``handle_invept``, ``handle_invvpid``,
``handle_vmfunc``); SDM 3, chapter 31.
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab.errors import InputError
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.guest_walk import kvm_read_guest, kvm_write_guest
from mmulab.kvm.inject import GP_VECTOR, UD_VECTOR, kvm_queue_exception
from mmulab.kvm.mmu import KVM_MMU_ROOT_CURRENT, root_previous
from mmulab.kvm.operand import NoOperandError, read_operand
from mmulab.kvm.roots import kvm_mmu_free_guest_mode_roots, kvm_mmu_free_roots, kvm_mmu_roots_all
from mmulab.kvm.sregs import nested_cr4_valid, nested_host_cr0_valid
from mmulab.kvm.state import Request, Vcpu, vcpu_memslots
from mmulab.kvm.vmx.checks import (
    check_controls,
    check_host_state,
    consistency_check,
    nested_vmx_check_eptp,
    page_address_valid,
)
from mmulab.kvm.vmx.nested import (
    nested_ept_new_eptp,
    nested_ept_root_matches,
    nested_vmx_enter_non_root_mode,
    nested_vmx_vmexit,
)
from mmulab.kvm.vmx.vmcs12 import (
    FIELD_OF,
    INVALID_GPA,
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_VMFUNC,
    SECONDARY_EXEC_ENABLE_VPID,
    VMCS12,
    VMCS12_REVISION,
    VMCS12_SIZE,
    VMFUNC_FUNCTIONS,
)
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.mode import is_canonical, paging_mode
from mmulab.x86.regs import X86_CR4_VMXE

VMXERR_VMCLEAR_INVALID_ADDRESS = 2
VMXERR_VMCLEAR_VMXON_POINTER = 3
VMXERR_VMLAUNCH_NONCLEAR_VMCS = 4
VMXERR_VMRESUME_NONLAUNCHED_VMCS = 5
VMXERR_VMPTRLD_INVALID_ADDRESS = 9
VMXERR_VMPTRLD_VMXON_POINTER = 10
VMXERR_VMPTRLD_INCORRECT_VMCS_REVISION_ID = 11
VMXERR_VMXON_IN_VMX_ROOT_OPERATION = 15
VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID = 28
VMXERR_ENTRY_INVALID_CONTROL_FIELD = 7
VMXERR_ENTRY_INVALID_HOST_STATE_FIELD = 8
"""VM-instruction errors (SDM 3, 31.4)."""
EXTENT_CONTEXT, EXTENT_GLOBAL = 1, 2
"""Types of INVEPT."""
VPID_INDIVIDUAL_ADDR, VPID_ALL_CONTEXT, VPID_TYPES = 0, 2, 4
"""Types of INVVPID: one address, all contexts, and how many there are."""
VMFUNC_EPTP_SWITCHING = 0
VMFUNC_EPTP_ENTRIES = 512
_AR_BYTES = 0x1F0FF


def handle_vmx_instruction(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Execute a VMX instruction that L1 does not get; its flags are in :attr:`Vcpu.vmx`.

    Raises
    ------
    InputError
        What it asks for is not modelled.
    """
    try:
        return _handle(vcpu, insn)
    except NoOperandError as none:
        return none.verdict


def _handle(vcpu: Vcpu, insn: Instruction) -> Verdict:
    if not vcpu.kvm.config.nested and insn.mnemonic is not Mnemonic.VMCALL:
        kvm_queue_exception(vcpu, UD_VECTOR)  # handle_vmx_instruction of vmx.c
        return Verdict.RESUME
    if insn.mnemonic is Mnemonic.VMXON:
        return _vmxon(vcpu, insn)
    if insn.mnemonic is Mnemonic.VMFUNC:
        return _vmfunc(vcpu, insn)
    if insn.mnemonic is Mnemonic.VMCALL:
        raise InputError("VMCALL outside L2 is a hypercall to KVM, which is not modelled")
    if vcpu.vmx.vmxon_ptr == INVALID_GPA:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    return _HANDLERS[insn.mnemonic](vcpu, insn)


def vmwrite_exits(vcpu: Vcpu, insn: Instruction) -> bool:
    """Whether a VMWRITE of L1 exits: with VMCS shadowing on, not that of a shadowed field.

    The index of the page-modification log is shadowed only on a processor that
    has one (``init_vmcs_shadow_fields``).
    """
    vmx = vcpu.vmx
    if vmx.current_vmptr == INVALID_GPA or vcpu.guest_mode:
        return True
    name = _field(insn.register)
    return not (VMCS12[name].shadowed or (name == "guest_pml_index" and vcpu.kvm.config.pml))


def write_shadow_vmcs(vcpu: Vcpu, insn: Instruction) -> None:
    """Let the processor write a shadowed field; KVM copies it at the next entry."""
    vcpu.vmx.put(_field(insn.register), insn.value)
    _succeed(vcpu)


def _field(encoding: int) -> str:
    name = FIELD_OF.get(encoding)
    if name is None:
        raise InputError(f"VMCS field {encoding:#x} is not modelled")
    return name


def _flags(vcpu: Vcpu, cf: int, zf: int) -> Verdict:
    vcpu.vmx.cf, vcpu.vmx.zf = cf, zf
    return Verdict.DONE


def _succeed(vcpu: Vcpu) -> Verdict:
    return _flags(vcpu, 0, 0)


def _fail(vcpu: Vcpu, error: int) -> Verdict:
    """Fail with a VM-instruction error if there is a VMCS to hold it (``nested_vmx_fail``)."""
    if vcpu.vmx.current_vmptr == INVALID_GPA:
        return _flags(vcpu, 1, 0)
    vcpu.vmx.put("vm_instruction_error", error)
    return _flags(vcpu, 0, 1)


def _vmxon(vcpu: Vcpu, insn: Instruction) -> Verdict:
    vmx = vcpu.vmx
    if not vcpu.cr4 & X86_CR4_VMXE:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    if vcpu.cpl:
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    if vmx.vmxon_ptr != INVALID_GPA:
        return _fail(vcpu, VMXERR_VMXON_IN_VMX_ROOT_OPERATION)
    if not nested_host_cr0_valid(vcpu.cr0) or not nested_cr4_valid(vcpu, vcpu.cr4):
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return Verdict.RESUME
    (region,) = read_operand(vcpu, insn.gva, 1)
    if not page_address_valid(vcpu, region) or kvm_read_guest(vcpu, region, 4) != VMCS12_REVISION:
        return _flags(vcpu, 1, 0)
    vmx.vmxon_ptr = region
    return _succeed(vcpu)


def _vmptrld(vcpu: Vcpu, insn: Instruction) -> Verdict:
    vmx = vcpu.vmx
    (gpa,) = read_operand(vcpu, insn.gva, 1)
    if not page_address_valid(vcpu, gpa):
        return _fail(vcpu, VMXERR_VMPTRLD_INVALID_ADDRESS)
    if gpa == vmx.vmxon_ptr:
        return _fail(vcpu, VMXERR_VMPTRLD_VMXON_POINTER)
    if gpa == vmx.current_vmptr:
        return _succeed(vcpu)
    if kvm_read_guest(vcpu, gpa, 4) != VMCS12_REVISION:
        return _fail(vcpu, VMXERR_VMPTRLD_INCORRECT_VMCS_REVISION_ID)
    _release_vmcs12(vcpu)
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    assert slot is not None
    vmx.image = vcpu.kvm.memory.frames[slot.frame(gpa >> 12)].tobytes()
    vmx.current_vmptr = gpa
    return _succeed(vcpu)


def _release_vmcs12(vcpu: Vcpu) -> None:
    """Write the current VMCS back and let go of it, and of all roots of L1's EPTs."""
    vmx = vcpu.vmx
    if vmx.current_vmptr == INVALID_GPA:
        return
    for at in range(0, VMCS12_SIZE, 8):
        word = int.from_bytes(vmx.image[at : at + 8], "little")
        kvm_write_guest(vcpu, vmx.current_vmptr + at, 8, word)
    kvm_mmu_free_roots(vcpu.kvm, vcpu.guest_mmu, kvm_mmu_roots_all(vcpu.kvm))
    vmx.current_vmptr = INVALID_GPA


def _vmclear(vcpu: Vcpu, insn: Instruction) -> Verdict:
    vmx = vcpu.vmx
    (gpa,) = read_operand(vcpu, insn.gva, 1)
    if not page_address_valid(vcpu, gpa):
        return _fail(vcpu, VMXERR_VMCLEAR_INVALID_ADDRESS)
    if gpa == vmx.vmxon_ptr:
        return _fail(vcpu, VMXERR_VMCLEAR_VMXON_POINTER)
    if gpa == vmx.current_vmptr:
        _release_vmcs12(vcpu)
    kvm_write_guest(vcpu, gpa + VMCS12["launch_state"].offset, 4, 0)
    return _succeed(vcpu)


def _vmentry(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Enter L2 (``nested_vmx_run``); L1 has put L2's RIP, the operand, into the shadow VMCS."""
    vmx = vcpu.vmx
    launch = insn.mnemonic is Mnemonic.VMLAUNCH
    if consistency_check(vcpu, vmx.current_vmptr == INVALID_GPA):
        return _flags(vcpu, 1, 0)
    vmx.put("guest_rip", insn.value)
    if consistency_check(vcpu, vmx.get("launch_state") == launch):
        error = VMXERR_VMLAUNCH_NONCLEAR_VMCS if launch else VMXERR_VMRESUME_NONLAUNCHED_VMCS
        return _fail(vcpu, error)
    if not check_controls(vcpu):
        return _fail(vcpu, VMXERR_ENTRY_INVALID_CONTROL_FIELD)
    if not check_host_state(vcpu):
        return _fail(vcpu, VMXERR_ENTRY_INVALID_HOST_STATE_FIELD)
    nested_vmx_enter_non_root_mode(vcpu)
    return Verdict.RESUME


def _vmwrite(vcpu: Vcpu, insn: Instruction) -> Verdict:
    if vcpu.vmx.current_vmptr == INVALID_GPA:
        return _flags(vcpu, 1, 0)
    name = _field(insn.register)
    value = insn.value & _AR_BYTES if name.endswith("_ar_bytes") else insn.value
    vcpu.vmx.put(name, value)
    return _succeed(vcpu)


def _invept(vcpu: Vcpu, insn: Instruction) -> Verdict:
    if not vcpu.kvm.config.tdp:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    if insn.register not in (EXTENT_CONTEXT, EXTENT_GLOBAL):
        return _fail(vcpu, VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID)
    eptp, _ = read_operand(vcpu, insn.gva, 2)
    mmu, roots = vcpu.guest_mmu, kvm_mmu_roots_all(vcpu.kvm)
    if insn.register == EXTENT_CONTEXT:
        if not nested_vmx_check_eptp(vcpu, eptp):
            return _fail(vcpu, VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID)
        roots = KVM_MMU_ROOT_CURRENT if nested_ept_root_matches(mmu.root_hpa, mmu.root_pgd, eptp) else 0
        for i, (pgd, hpa) in enumerate(mmu.prev_roots):
            roots |= root_previous(i) if nested_ept_root_matches(hpa, pgd, eptp) else 0
    if roots:
        kvm_mmu_free_roots(vcpu.kvm, mmu, roots)
    return _succeed(vcpu)


def _invvpid(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Without EPT all of L2's roots go, because KVM does not know their VPIDs."""
    if insn.register >= VPID_TYPES:
        return _fail(vcpu, VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID)
    vpid, gla = read_operand(vcpu, insn.gva, 2)
    bad = bool(vpid >> 16) or (not vpid and insn.register != VPID_ALL_CONTEXT)
    mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer)
    bad |= insn.register == VPID_INDIVIDUAL_ADDR and not is_canonical(gla, mode)
    if bad:
        return _fail(vcpu, VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID)
    if not vcpu.kvm.config.tdp:
        kvm_mmu_free_guest_mode_roots(vcpu.kvm, vcpu.root_mmu)
    return _succeed(vcpu)


def _vmfunc(vcpu: Vcpu, insn: Instruction) -> Verdict:
    """Serve L2's VMFUNC; what L1 has not prepared goes to L1 as an exit."""
    if not vcpu.guest_mode:
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    known = insn.value < VMFUNC_FUNCTIONS and vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VMFUNC)
    if warn_on(vcpu.kvm, "nested.c:handle_vmfunc:function", not known):
        kvm_queue_exception(vcpu, UD_VECTOR)
        return Verdict.RESUME
    allowed = vcpu.vmx.get("vm_function_control") >> insn.value & 1
    if insn.value == VMFUNC_EPTP_SWITCHING and allowed and _switch_eptp(vcpu, insn.register):
        return Verdict.DONE
    nested_vmx_vmexit(vcpu, "vmfunc", 0)
    return Verdict.RESUME


def _switch_eptp(vcpu: Vcpu, index: int) -> bool:
    """Turn L2 to another EPT of L1's list (``nested_vmx_eptp_switching``); False if there is none."""
    vmx = vcpu.vmx
    ept = vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    if warn_on(vcpu.kvm, "nested.c:nested_vmx_eptp_switching:ept", not ept) or index >= VMFUNC_EPTP_ENTRIES:
        return False
    eptp = kvm_read_guest(vcpu, vmx.get("eptp_list_address") + 8 * index, 8)
    if eptp is None:
        return False
    if eptp == vmx.get("ept_pointer"):
        return True
    if not nested_vmx_check_eptp(vcpu, eptp):
        return False
    vmx.put("ept_pointer", eptp)
    nested_ept_new_eptp(vcpu, eptp)
    if not vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID):
        vcpu.requests |= Request.TLB_FLUSH_GUEST
    return True


_HANDLERS: dict[Mnemonic, Callable[[Vcpu, Instruction], Verdict]] = {
    Mnemonic.VMPTRLD: _vmptrld,
    Mnemonic.VMCLEAR: _vmclear,
    Mnemonic.VMLAUNCH: _vmentry,
    Mnemonic.VMRESUME: _vmentry,
    Mnemonic.VMWRITE: _vmwrite,
    Mnemonic.INVEPT: _invept,
    Mnemonic.INVVPID: _invvpid,
}
