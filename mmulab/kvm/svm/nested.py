"""Nested SVM: L1 runs a guest of its own with VMRUN, and gets its #VMEXITs.

L1's VMCB (vmcb12) is read from guest memory at VMRUN and written back at #VMEXIT.
If it turns nested paging on, KVM shadows L1's nested tables in ``guest_mmu`` and
walks L2's own with ``nested_mmu``; if not, L2's tables are treated as L1's are.

An SMI leaves L2 as a #VMEXIT does, and RSM comes back to it; meanwhile L1's registers
lie in the host save area.

Source: Linux 6.1 ``arch/x86/kvm/svm/nested.c``, ``svm.c`` (``svm_enter_smm``,
``svm_leave_smm``), ``arch/x86/include/asm/svm.h``; APM 2, 15.5, 15.6 and appendix B.
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.context import kvm_init_shadow_npt_mmu, mmu_is_nested
from mmulab.kvm.dirty import kvm_vcpu_mark_page_dirty
from mmulab.kvm.guest_walk import kvm_read_guest, kvm_write_guest
from mmulab.kvm.hw_cr4 import WHILE_PAGING, set_cr4
from mmulab.kvm.inject import DB_VECTOR, GP_VECTOR, kvm_queue_exception
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.roots import kvm_mmu_new_pgd
from mmulab.kvm.sregs import invalid_cr4, kvm_valid_efer
from mmulab.kvm.state import NestedGuest, Request, Vcpu, vcpu_memslots
from mmulab.kvm.svm.efer import efer_of_l2, refuse_lma_alone
from mmulab.kvm.trace import trace
from mmulab.kvm.x86 import nested_load_cr3
from mmulab.x86.pferr import PF_VECTOR
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SVME,
    X86_CR0_CD,
    X86_CR0_NW,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_MCE,
    X86_CR4_PAE,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_TF,
)

SVM_NESTED_CTL_NP_ENABLE = 1 << 0
SVM_EXIT_EXCP_BASE = 0x40
SVM_EXIT_ERR = (1 << 64) - 1
SVM_EXIT_SW = 0xF0000000
"""Exit code that is KVM's own: L2 is left for SMM."""
SVM_EXITS = {
    "write_cr0": 0x10,
    "write_cr3": 0x13,
    "write_cr4": 0x14,
    "db": SVM_EXIT_EXCP_BASE + DB_VECTOR,
    "pf": SVM_EXIT_EXCP_BASE + PF_VECTOR,
    "smi": 0x62,
    "cr0_sel_write": 0x65,
    "invlpg": 0x79,
    "ioio": 0x7B,
    "rsm": 0x73,
    "msr": 0x7C,
    "shutdown": 0x7F,
    "vmrun": 0x80,
    "vmmcall": 0x81,
    "invpcid": 0xA2,
    "npf": 0x400,
}
"""Exit codes by the name that ``kvm_exit`` prints. A code below 0xc0 is also its intercept's bit."""
_REASONS = {code: reason for reason, code in SVM_EXITS.items()}

VMCB = {
    "iopm_base_pa": (0x40, 8),
    "msrpm_base_pa": (0x48, 8),
    "asid": (0x58, 4),
    "exit_code": (0x70, 8),
    "exit_info_1": (0x78, 8),
    "exit_info_2": (0x80, 8),
    "exit_int_info": (0x88, 4),
    "nested_ctl": (0x90, 8),
    "event_inj": (0xA8, 4),
    "nested_cr3": (0xB0, 8),
    "cs_attrib": (0x412, 2),
    "cpl": (0x4CB, 1),
    "efer": (0x4D0, 8),
    "cr4": (0x548, 8),
    "cr3": (0x550, 8),
    "cr0": (0x558, 8),
    "dr7": (0x560, 8),
    "dr6": (0x568, 8),
    "rflags": (0x570, 8),
    "rip": (0x578, 8),
    "cr2": (0x640, 8),
}
"""Offset and size of the fields of a VMCB that concern paging, and its exit fields."""
BITMAPS = {"iopm_base_pa": 3 << 12, "msrpm_base_pa": 2 << 12}
"""Bytes of the permission maps of I/O ports and MSRs."""
SVM_SELECTOR_L_MASK = 1 << 9
SVM_SELECTOR_DB_MASK = 1 << 10
SVM_EVTINJ_VALID = 1 << 31
INTERCEPT_WORDS = 6
INTERCEPT_EXCEPTION = 2
"""Word of the intercepts that holds those of exceptions, by vector."""
_INTERCEPTS_NOT_MODELLED = ("write_cr0", "cr0_sel_write", "ioio", "msr")
_INTERCEPTS_NOT_MODELLED_WITH_NPT = ("write_cr3", "invlpg", "invpcid")
_HSAVED = ("efer", "cr4", "cr3", "cr0", "rflags", "rip")
"""What the host save area, whose layout is the VMCB's, has of L1 (``svm_copy_vmrun_state``)."""
_SAVED = ("efer", "cr0", "cr3", "cr4", "cr2", "rip")


class SvmNested(NestedGuest):
    """State of nested SVM on a vCPU (``struct svm_nested_state``).

    Attributes
    ----------
    vmcb12_gpa : int
    intercepts : tuple of int
        The words of vmcb12's intercepts.
    exit_code, exit_info_1, exit_info_2 : int
        The last exit of L2, as vmcb02 has it.
    l1 : dict of str to int
        L1's registers, kept in vmcb01 meanwhile.
    """

    def __init__(self, gpa: int, control: dict[str, int], intercepts: tuple[int, ...]) -> None:
        self.vmcb12_gpa = gpa
        self.intercepts = intercepts
        self.nested_pgd = control["nested_cr3"]
        self.npt = bool(control["nested_ctl"] & SVM_NESTED_CTL_NP_ENABLE)
        self.exit_code = self.exit_info_1 = self.exit_info_2 = 0
        self.l1: dict[str, int] = {}
        self.run_pending = True

    def intercepted(self, exit_code: int) -> bool:
        """Whether L1 asked for this exit (``vmcb12_is_intercept``)."""
        word, bit = divmod(exit_code, 32)
        return word < INTERCEPT_WORDS and bool(self.intercepts[word] >> bit & 1)

    def exit_handled(self, vcpu: Vcpu, exit: ev.kvm_nested_vmexit) -> bool:
        """Give an exit to L1 if L1 asked for it (``nested_svm_exit_handled``).

        A nested page fault is always L0's first, and so is a #PF while L0 shadows.
        """
        self.exit_code, self.exit_info_1, self.exit_info_2 = SVM_EXITS[exit.reason], *exit[1:3]
        if exit.reason in ("npf", "pf") or not self.intercepted(self.exit_code):
            return False
        nested_svm_vmexit(vcpu)
        return True

    def exception_handled(self, vcpu: Vcpu) -> bool:
        """Give the queued exception to L1 if L1 asked for it (``nested_svm_inject_exception_vmexit``)."""
        assert vcpu.exception is not None
        vector, error_code, address = vcpu.exception
        if not self.intercepted(SVM_EXIT_EXCP_BASE + vector):
            return False
        self.exit_code = SVM_EXIT_EXCP_BASE + vector
        self.exit_info_1 = error_code or 0
        self.exit_info_2 = (vcpu.cr2 if address is None else address) if vector == PF_VECTOR else 0
        if vector not in (PF_VECTOR, DB_VECTOR):
            warn_on(vcpu.kvm, "nested.c:nested_svm_inject_exception_vmexit:payload", address is not None)
        vcpu.exception = None
        nested_svm_vmexit(vcpu)
        return True

    def triple_fault(self, vcpu: Vcpu) -> bool:
        """Give a triple fault to L1 if L1 asked for it (``nested_svm_triple_fault``)."""
        if not self.intercepted(SVM_EXITS["shutdown"]):
            return False
        vcpu.requests &= ~Request.TRIPLE_FAULT
        nested_svm_simple_vmexit(vcpu, SVM_EXITS["shutdown"])
        return True

    def smi_handled(self, vcpu: Vcpu) -> bool:
        """Give an SMI to L1 if L1 asked for it (``svm_check_nested_events``); it stays pending."""
        if not self.intercepted(SVM_EXITS["smi"]):
            return False
        self._refuse_smi_without_vmcb12(vcpu)
        self.idt_vectoring = 0
        nested_svm_simple_vmexit(vcpu, SVM_EXITS["smi"])
        return True

    def enter_smm(self, vcpu: Vcpu) -> dict[str, int]:
        """Leave L2 for SMM, with L1's registers in the host save area (``svm_enter_smm``).

        A #DB that the VMM's single step has queued is lost: the entry at hand is
        cancelled, which clears the queue (``svm_cancel_injection``). But L1's EFLAGS
        keep TF, and the first #VMEXIT after RSM queues a #DB again.
        """
        self._refuse_smi_without_vmcb12(vcpu)
        self.idt_vectoring = 0
        nested_svm_simple_vmexit(vcpu, SVM_EXIT_SW)
        single_stepped, vcpu.exception = vcpu.exception is not None, None
        if kvm_vcpu_map(vcpu, vcpu.hsave_msr):
            for field, value in _vmcb01_save(vcpu, single_stepped=single_stepped).items():
                _write_vmcb(vcpu, vcpu.hsave_msr, field, value)
        return {"svm_guest": 1, "vmcb12_gpa": self.vmcb12_gpa}

    def _refuse_smi_without_vmcb12(self, vcpu: Vcpu) -> None:
        """Refuse an SMI that cannot leave L2 (InputError), which KVM answers with #GPs, or with SMM in L2."""
        if not kvm_vcpu_map(vcpu, self.vmcb12_gpa):
            raise InputError("an SMI comes in L2 while L1's VMCB cannot be mapped, which is not modelled")

    def inject_page_fault(self, vcpu: Vcpu, fault: X86Exception) -> None:
        """Tell L1 of a fault of its nested tables."""
        _inject_npf_exit(vcpu, fault)

    def pdptr(self, vcpu: Vcpu, index: int) -> int:
        """Read a PDPTE of L1's nested tables (``nested_svm_get_tdp_pdptr``)."""
        return kvm_read_guest(vcpu, (self.nested_pgd & ~0x1F) + 8 * index, 8) or 0


def kvm_vcpu_map(vcpu: Vcpu, gpa: int) -> bool:
    """Whether KVM can map the page at `gpa`, to write it."""
    slot = vcpu_memslots(vcpu).lookup(gpa >> 12)
    return slot is not None and not slot.readonly


def read_vmcb(vcpu: Vcpu, gpa: int, field: str) -> int:
    """Read a field of the VMCB at `gpa`."""
    offset, size = VMCB[field]
    value = kvm_read_guest(vcpu, gpa + offset, size)
    assert value is not None
    return value


def _write_vmcb(vcpu: Vcpu, gpa: int, field: str, value: int) -> None:
    offset, size = VMCB[field]
    kvm_write_guest(vcpu, gpa + offset, size, value & ((1 << 8 * size) - 1))


def _refuse(vcpu: Vcpu, nested: SvmNested, fields: dict[str, int]) -> None:
    """Refuse intercepts and an injection of L1 that the model would not obey, and an L2 in real mode.

    KVM runs L2 with L1's intercepts beside its own (``recalc_intercepts``). Here
    an instruction or exception exits only if KVM itself intercepts it, so what
    it leaves to the processor cannot be given to L1; of I/O and MSRs the
    permission maps are not known.

    Raises
    ------
    InputError
    """
    if fields["event_inj"] & SVM_EVTINJ_VALID:
        raise InputError(f"the VMCB injects an event ({fields['event_inj']:#x}), which is not modelled")
    if not fields["cr0"] & X86_CR0_PE:
        raise InputError("the VMCB has CR0.PE=0: an L2 in real mode is not modelled")
    refuse_lma_alone(fields["efer"])
    npt = vcpu.kvm.config.tdp
    for reason in _INTERCEPTS_NOT_MODELLED + (_INTERCEPTS_NOT_MODELLED_WITH_NPT if npt else ()):
        if nested.intercepted(SVM_EXITS[reason]):
            raise InputError(f"the VMCB intercepts {reason} ({SVM_EXITS[reason]:#x}), which is not modelled")
    exceptions = nested.intercepts[INTERCEPT_EXCEPTION] & ~(0 if npt else 1 << PF_VECTOR)
    if exceptions:
        known = "none is" if npt else f"only {1 << PF_VECTOR:#x} is"
        raise InputError(f"the VMCB intercepts exceptions {exceptions:#x}; {known} modelled")


def is_vmcb12(vcpu: Vcpu, gpa: int) -> bool:
    """Whether KVM takes a VMCB from `gpa`; else VMRUN is a #GP, and is not skipped."""
    return not gpa & 0xFFF and kvm_vcpu_map(vcpu, gpa)


def nested_svm_vmrun(vcpu: Vcpu, gpa: int) -> None:
    """Enter L2 with the VMCB at `gpa`, which KVM takes; the vCPU's RIP is already behind L1's VMRUN.

    Raises
    ------
    InputError
        The VMCB intercepts what is not modelled.
    """
    vcpu.last_vmcb12_gpa = gpa
    nested, control = _read_vmcb12(vcpu, gpa)
    if not _check_vmcb(vcpu, nested, control):
        vcpu.gif = False
        _write_vmcb(vcpu, gpa, "exit_code", SVM_EXIT_ERR)
        for field in ("exit_info_1", "exit_info_2"):
            _write_vmcb(vcpu, gpa, field, 0)
        return
    _refuse(vcpu, nested, control)
    nested.l1 = {field: getattr(vcpu, field) for field in _HSAVED if field != "rflags"}
    nested.l1["rflags"] = X86_EFLAGS_FIXED
    if not _enter_svm_guest_mode(vcpu, nested, control):
        nested.run_pending = False
        nested_svm_simple_vmexit(vcpu, SVM_EXIT_ERR)
    kvm_vcpu_mark_page_dirty(vcpu, gpa >> 12)


def _read_vmcb12(vcpu: Vcpu, gpa: int) -> tuple[SvmNested, dict[str, int]]:
    fields = {field: read_vmcb(vcpu, gpa, field) for field in VMCB}
    words = tuple(kvm_read_guest(vcpu, gpa + 4 * i, 4) or 0 for i in range(INTERCEPT_WORDS))
    return SvmNested(gpa, fields, words), fields


def _check_vmcb(vcpu: Vcpu, nested: SvmNested, fields: dict[str, int]) -> bool:
    """Check what VMRUN checks."""
    return _check_save(vcpu, fields) and _check_controls(vcpu, nested, fields)


def _check_controls(vcpu: Vcpu, nested: SvmNested, control: dict[str, int]) -> bool:
    """Check the control area (``__nested_vmcb_check_controls``)."""
    beyond = vcpu.cpu.maxphyaddr
    if not nested.intercepted(SVM_EXITS["vmrun"]) or not control["asid"]:
        return False
    if nested.npt and (not vcpu.kvm.config.tdp or nested.nested_pgd >> beyond):
        return False
    return not any((control[name] & ~0xFFF) + size - 1 >> beyond for name, size in BITMAPS.items())


def _check_save(vcpu: Vcpu, save: dict[str, int]) -> bool:
    """Check L2's registers (``__nested_vmcb_check_save``)."""
    cr0, cr4, efer = save["cr0"], save["cr4"], save["efer"]
    if not efer & EFER_SVME or cr0 >> 32 or (cr0 & X86_CR0_NW and not cr0 & X86_CR0_CD):
        return False
    if save["dr6"] >> 32 or save["dr7"] >> 32:
        return False
    if efer & EFER_LME and cr0 & X86_CR0_PG:
        if not cr4 & X86_CR4_PAE or not cr0 & X86_CR0_PE or save["cr3"] >> vcpu.cpu.maxphyaddr:
            return False
        if save["cs_attrib"] & SVM_SELECTOR_L_MASK and save["cs_attrib"] & SVM_SELECTOR_DB_MASK:
            return False
    config = vcpu.kvm.config
    return not invalid_cr4(config, vcpu.cpu, cr4) and kvm_valid_efer(config, vcpu.cpu, efer)


def _transition_tlb_flush(vcpu: Vcpu) -> None:
    """Sync and flush at each change between L1 and L2: KVM does not follow ASIDs."""
    vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT


def _enter_svm_guest_mode(
    vcpu: Vcpu, nested: SvmNested, save: dict[str, int], *, from_vmrun: bool = True
) -> bool:
    """Enter L2 for VMRUN or RSM; False if its CR3 is not legal."""
    pgd = nested.nested_pgd if nested.npt else save["cr3"]
    trace(vcpu.kvm, ev.kvm_nested_vmenter, nested.vmcb12_gpa, save["rip"], nested.npt, pgd)
    _transition_tlb_flush(vcpu)
    vcpu.guest_mode = True
    warn_on(vcpu.kvm, "nested.c:enter_svm_guest_mode:vmcb02", vcpu.nested is not None)
    vcpu.nested = nested
    if nested.npt:
        warn_on(vcpu.kvm, "nested.c:nested_svm_init_mmu_context:nested", mmu_is_nested(vcpu))
        vcpu.mmu = vcpu.guest_mmu
        kvm_init_shadow_npt_mmu(vcpu, nested.l1["cr4"], nested.l1["efer"])
        kvm_mmu_new_pgd(vcpu, nested.nested_pgd)
        vcpu.walk_mmu = vcpu.nested_mmu
    vcpu.efer = efer_of_l2(save["efer"], before=vcpu.cr0, cr0=save["cr0"])
    vcpu.cr0, vcpu.cr2 = save["cr0"], save["cr2"]
    set_cr4(vcpu, save["cr4"])
    vcpu.rip, vcpu.cpl, vcpu.ac = save["rip"], save["cpl"], False
    if not nested_load_cr3(vcpu, save["cr3"], nested_tdp=nested.npt, reload_pdptrs=from_vmrun):
        return False
    vcpu.gif = True
    return True


def svm_leave_smm(vcpu: Vcpu, state: dict[str, int]) -> bool:
    """Enter L2 again if the SMI came while it ran; False if that cannot be.

    L1's registers and the VMCB come from memory, where SMM or another vCPU may have changed them.

    Parameters
    ----------
    state : dict of str to int
        The state-save area.

    Raises
    ------
    InputError
        The VMCB intercepts what is not modelled.
    """
    if vcpu.kvm.config.vendor != "amd" or not state.get("svm_guest", 0):
        return True
    gpa, hsave = state["vmcb12_gpa"] & ~0xFFF, vcpu.hsave_msr
    mapped = all(kvm_vcpu_map(vcpu, page) for page in (gpa, hsave))
    if not vcpu.cpu.svm or not state["efer"] & EFER_SVME or not mapped:
        return False
    nested, save = _read_vmcb12(vcpu, gpa)
    nested.l1 = {field: read_vmcb(vcpu, hsave, field) for field in _HSAVED}
    _refuse(vcpu, nested, save)
    entered = _enter_svm_guest_mode(vcpu, nested, save, from_vmrun=False)
    for page in (hsave, gpa):
        kvm_vcpu_mark_page_dirty(vcpu, page >> 12)
    return entered


def _inject_npf_exit(vcpu: Vcpu, fault: X86Exception) -> None:
    """Tell L1 of a fault of its nested tables (``nested_svm_inject_npf_exit``).

    Where the processor did not report it, but the emulator met it, the high
    half of the error code says a final address, whatever it was.
    """
    nested = vcpu.nested
    assert isinstance(nested, SvmNested)
    if nested.exit_code != SVM_EXITS["npf"]:
        nested.exit_code = SVM_EXITS["npf"]
        nested.exit_info_1 = 1 << 32
        nested.exit_info_2 = fault.address
    nested.exit_info_1 = nested.exit_info_1 & ~0xFFFFFFFF | fault.error_code
    nested_svm_vmexit(vcpu)


def _vmcb01_save(vcpu: Vcpu, *, single_stepped: bool) -> dict[str, int]:
    """Return L1's registers as vmcb01 has them behind a #VMEXIT: those that the processor is to run with.

    So L1 comes back from L2 with the host's MCE in CR4 after an SMI, and without nested
    paging with all that shadow paging needs (``svm_set_efer``, ``svm_set_cr0``, ``svm_set_cr4``).
    """
    cr0, cr4, efer = vcpu.cr0, vcpu.cr4 | X86_CR4_MCE, vcpu.efer | EFER_SVME
    if not vcpu.kvm.config.tdp:
        cr4 |= X86_CR4_PAE
        cr4 &= ~(0 if cr0 & X86_CR0_PG else WHILE_PAGING)
        cr0 |= X86_CR0_PG | X86_CR0_WP
        efer = (efer if efer & EFER_LMA else efer & ~EFER_LME) | EFER_NX
    return {
        "efer": efer,
        "cr4": cr4,
        "cr3": vcpu.cr3,
        "cr0": cr0 & ~(X86_CR0_CD | X86_CR0_NW),
        "rflags": X86_EFLAGS_FIXED | (X86_EFLAGS_TF if single_stepped else 0),
        "rip": vcpu.rip,
    }


def _restore_l1(vcpu: Vcpu, l1: dict[str, int]) -> None:
    """Give the vCPU L1's registers again.

    CR0 comes before CR4. Without nested paging a change of CR0.PG makes KVM
    write L2's CR4, with PAE and the host's MCE, and without SMEP, SMAP and PKE
    if L1 does not page, to the VMCB in hand, which is L1's already
    (``svm_set_cr0``, ``svm_set_cr4``): L1 comes back with that. A 32-bit L1
    then has PAE on over 32-bit tables and shuts down.
    """
    cr4, config = l1["cr4"], vcpu.kvm.config
    spoiled = not config.tdp and bool((vcpu.cr0 ^ l1["cr0"]) & X86_CR0_PG)
    if spoiled and not config.kernel.behaviours.svm_vmexit_restores_cr4:
        cr4 = vcpu.cr4 & ~(0 if l1["cr0"] & X86_CR0_PG else WHILE_PAGING) | X86_CR4_PAE | X86_CR4_MCE
    vcpu.efer, vcpu.cr0, vcpu.rip = l1["efer"], l1["cr0"] | X86_CR0_PE, l1["rip"]
    set_cr4(vcpu, cr4)
    vcpu.cpl, vcpu.ac = 0, False


def svm_leave_nested(vcpu: Vcpu) -> None:
    """Take L2 from a vCPU that is destroyed; no root is looked for (``svm_vcpu_free``)."""
    if vcpu.guest_mode:
        vcpu.guest_mode, vcpu.nested = False, None
        vcpu.mmu = vcpu.walk_mmu = vcpu.root_mmu


def nested_svm_simple_vmexit(vcpu: Vcpu, exit_code: int) -> None:
    """Leave L2 with an exit that tells nothing but its code."""
    assert isinstance(vcpu.nested, SvmNested)
    vcpu.nested.exit_code, vcpu.nested.exit_info_1, vcpu.nested.exit_info_2 = exit_code, 0, 0
    nested_svm_vmexit(vcpu)


def nested_svm_vmexit(vcpu: Vcpu) -> None:
    """Leave L2: write vmcb12, restore L1's registers and MMU. No SMI is taken until L1 enters L2 again.

    Where L1's VMCB cannot be mapped any more, L2 goes on, with a #GP.
    """
    nested = vcpu.nested
    assert isinstance(nested, SvmNested)
    gpa = nested.vmcb12_gpa
    if not kvm_vcpu_map(vcpu, gpa):
        kvm_queue_exception(vcpu, GP_VECTOR, 0)
        return
    warn_on(vcpu.kvm, "nested.c:nested_svm_vmexit:run_pending", nested.run_pending)
    for field in _SAVED:
        _write_vmcb(vcpu, gpa, field, getattr(vcpu, field))
    _write_vmcb(vcpu, gpa, "cpl", vcpu.cpl)
    for field in ("exit_code", "exit_info_1", "exit_info_2"):
        _write_vmcb(vcpu, gpa, field, getattr(nested, field))
    _write_vmcb(vcpu, gpa, "exit_int_info", nested.idt_vectoring)
    vcpu.guest_mode = vcpu.gif = False
    vcpu.nested = None
    single_stepped = vcpu.singlestep_rip is not None and vcpu.rip == vcpu.singlestep_rip
    single_stepped |= bool(nested.l1["rflags"] & X86_EFLAGS_TF)
    _restore_l1(vcpu, nested.l1)
    # The tracepoint's exit code is the VMCB's lower half: SVM_EXIT_ERR is 0xffffffff in it.
    code = nested.exit_code & 0xFFFFFFFF
    info = nested.exit_info_1, nested.exit_info_2, nested.idt_vectoring or None
    trace(vcpu.kvm, ev.kvm_nested_vmexit_inject, _REASONS.get(code, hex(code)), *info)
    _transition_tlb_flush(vcpu)
    vcpu.mmu = vcpu.walk_mmu = vcpu.root_mmu
    if not nested_load_cr3(vcpu, nested.l1["cr3"], nested_tdp=False):
        vcpu.requests |= Request.TRIPLE_FAULT
    vcpu.exception = None
    if single_stepped:
        # EFLAGS.TF of the VMM's single step ends up in L1's: KVM compares L2's RIP (kvm_set_rflags).
        kvm_queue_exception(vcpu, DB_VECTOR)
