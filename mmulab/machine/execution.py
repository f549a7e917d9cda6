"""The life of one instruction on a vCPU: entries, accesses, exits, until it is over."""

from __future__ import annotations

from typing import NoReturn

from mmulab import events as ev
from mmulab.kvm.dirty_ring import DirtyRingFullError
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.exits import (
    NestedExit,
    handle_instruction,
    handle_nested_page_fault,
    kvm_handle_page_fault,
    trace_exit,
    trace_page_fault_exit,
)
from mmulab.kvm.inject import DB_VECTOR, GP_VECTOR, UD_VECTOR, kvm_queue_exception
from mmulab.kvm.invpcid import invpcid_is_allowed
from mmulab.kvm.state import Request, Vcpu, vcpu_memslots
from mmulab.kvm.vmx.insn import write_shadow_vmcs
from mmulab.kvm.vmx.real_mode import emulation_required, handle_invalid_guest_state
from mmulab.kvm.x86 import is_long_mode, vcpu_enter_guest
from mmulab.machine.config import MachineConfig
from mmulab.machine.effect import perform
from mmulab.machine.kvm_run import MAX_EXITS, endless, kvm_run, vm_bugged
from mmulab.machine.op import Mmio, Mode, Outcome, OutcomeKind
from mmulab.machine.processor import (
    GuestFault,
    NestedFault,
    Processor,
    ShadowFault,
    access,
    guest_canonical,
    is_undefined,
    linear_address,
    load_cr,
)
from mmulab.machine.stubs import L2_PORT, SMI_PORT, VMEXIT_PORT, VMFAIL_PORT, delivery_accesses, handler_rip
from mmulab.machine.target import fetch_target
from mmulab.machine.vmexit import last_vmexit
from mmulab.x86.insn import TOUCHES_MEMORY, VMX_INSTRUCTIONS, WRITES_MEMORY, Instruction, Mnemonic
from mmulab.x86.pferr import PF_VECTOR, PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_PE

PRIVILEGED = (
    Mnemonic.MOV_CR,
    Mnemonic.WRMSR,
    Mnemonic.INVLPG,
    Mnemonic.INVPCID,
    Mnemonic.RSM,
    Mnemonic.VMRUN,
    Mnemonic.VMMCALL,
    *VMX_INSTRUCTIONS,
)
VM_ENTRIES = (Mnemonic.VMLAUNCH, Mnemonic.VMRESUME)
WITHOUT_FLAGS = (Mnemonic.VMCALL, Mnemonic.VMFUNC)
"""VMX instructions that do not say in the flags how they went."""
CHANGES_WORLD = (Mnemonic.VMRUN, Mnemonic.VMMCALL, Mnemonic.VMCALL, *VM_ENTRIES)
"""What the VMM does not single-step: the guest goes on in the other world."""
VECTORING_VALID = 1 << 31
VECTORING_ERROR = 1 << 11
VECTORING_EXCEPTION = 3 << 8
"""Event being delivered at an exit: EXITINTINFO (APM 2, 15.7.2), IDT-vectoring (SDM 3, 25.9.3)."""


class _Exit(Exception):
    """The instruction is left: the guest must be entered anew."""


class Execution:
    """One instruction, or one bare access, on its way.

    Parameters
    ----------
    config : MachineConfig
    processor : Processor
    vcpu : Vcpu
    mode : Mode
        Privilege, kept in the vCPU for the time of the op.
    """

    def __init__(self, config: MachineConfig, processor: Processor, vcpu: Vcpu, mode: Mode) -> None:
        self.config = config
        self.processor = processor
        self.vcpu = vcpu
        self.mode = mode
        vcpu.cpl = 3 if mode is Mode.USER else 0
        vcpu.ac = mode is Mode.SUPERVISOR_AC
        self.insn = Instruction(Mnemonic.NOP)
        self.cs_l = True
        self.delivering: tuple[int, int | None] | None = None
        self.reinject = vcpu.exception is not None  # its delivery failed, and KVM_RUN with it
        self.native = False
        self.verdict = Verdict.RESUME
        self.in_l2 = vcpu.guest_mode
        self.in_smm = bool(vcpu.smm)
        self.vmexit: dict[str, int] | None = None
        self.smi_stepped, self.rax = True, 0

    def run(self, insn: Instruction, *, cs_l: bool = True) -> Outcome:
        """Execute one instruction to its end and return what came of it."""
        self.insn = insn
        self.cs_l = cs_l
        vcpu = self.vcpu
        if vcpu.requests & Request.VM_DEAD:
            return vm_bugged()
        insn.gva = linear_address(vcpu, insn.gva)
        if insn.mnemonic is Mnemonic.MOV_CR and not cs_l:
            insn.value &= 0xFFFFFFFF  # code of 32 bits moves half of a register
        if insn.rip is not None:
            insn.rip = linear_address(vcpu, insn.rip)
        vcpu.rip = insn.rip or 0
        vcpu.singlestep_rip = None if insn.mnemonic in CHANGES_WORLD else insn.rip
        return kvm_run(self._run)

    def _run(self) -> Outcome:
        vcpu = self.vcpu
        for _ in range(MAX_EXITS):
            if self.native:
                self.native = False
            elif not self._enter(reinject=self.reinject):
                vcpu.requests = 0
                return Outcome(OutcomeKind.SHUTDOWN)
            elif vcpu.smm and not self.in_smm:
                self._start_smi_handler()
            elif vcpu.guest_mode != self.in_l2:  # what was pending for L2 went to L1
                self._change_world()
            self.reinject = False
            try:
                if vcpu.exception is not None:
                    return self._deliver()
                return self._instruction()
            except _Exit:
                pass
            # Where L2's state is not valid, L1 goes on without an exit from L2.
            entry = self.insn.mnemonic is Mnemonic.VMRUN or self.insn.mnemonic in VM_ENTRIES
            if vcpu.guest_mode != self.in_l2 or (entry and vcpu.rip != self.insn.rip):
                self._change_world()
                continue
            if self.verdict is Verdict.FAILED:
                vcpu.exception = None
                return Outcome(OutcomeKind.INTERNAL_ERROR, suberror=1)
            if self.verdict in (Verdict.DONE, Verdict.MMIO):
                return self._emulated()
        return endless()

    def touch(self, gva: int, *, write: bool, fetch: bool) -> Outcome:
        """Make one access without an instruction, and return where it went."""
        vcpu = self.vcpu
        gva = linear_address(vcpu, gva)
        kind = PFERR_WRITE_MASK if write else 0
        kind |= PFERR_FETCH_MASK if fetch else 0
        self.insn = Instruction(Mnemonic.LOAD, gva=gva, size=1)
        if vcpu.requests & Request.VM_DEAD:
            return vm_bugged()
        return kvm_run(lambda: self._touch(gva, kind))

    def _touch(self, gva: int, kind: int) -> Outcome:
        vcpu = self.vcpu
        for _ in range(MAX_EXITS):
            if self.native:
                self.native = False
            elif not self._enter():
                return Outcome(OutcomeKind.SHUTDOWN)
            if vcpu.exception is not None:
                return self._bare_exception()
            try:
                hpa = self._access(gva, kind)
                return Outcome(OutcomeKind.OK, hpa=hpa)
            except _Exit:
                pass
            if self.verdict in (Verdict.DONE, Verdict.MMIO):
                return self._emulated()
        return endless()

    def _enter(self, *, reinject: bool = False) -> bool:
        """Enter the guest, which from then on has run; False if the vCPU shuts down instead."""
        try:
            if not vcpu_enter_guest(self.vcpu, reinject=reinject):
                return False
        except DirtyRingFullError:
            if not reinject:
                self.vcpu.exception = None  # the VMM's KVM_SET_REGS for the next op drops it
            raise
        self.vcpu.last_vmentry_cpu = 0
        return True

    def _change_world(self) -> Instruction:
        """Go on in L2 after an entry, or in L1 after an exit of L2: with the OUT that lies there."""
        vcpu = self.vcpu
        self.in_l2 = vcpu.guest_mode
        self.delivering, self.reinject, self.native = None, False, False
        self.verdict, self.mode, self.cs_l = Verdict.RESUME, Mode.SUPERVISOR, True
        port = L2_PORT if self.in_l2 else VMEXIT_PORT
        self.insn = Instruction(Mnemonic.OUT, vcpu.rip, bytes([0xE6, port]))
        self.vmexit = None if self.in_l2 else last_vmexit(vcpu)
        return self.insn

    def _start_smi_handler(self) -> Instruction:
        """Go on in SMM, in real mode, where the SMI led.

        The VMM single-steps on, but for an SMI in L2: KVM sets TF only at the RIP of the
        step, and ``enter_smm`` has put L1's in its place (``__kvm_set_rflags``).
        """
        vcpu = self.vcpu
        self.smi_stepped = not self.in_l2 and self.insn.mnemonic not in CHANGES_WORLD
        self.rax = vcpu.last_vmcb12_gpa if self.in_l2 else self.insn.value
        self.in_l2, self.delivering, self.native = False, None, False
        self.in_smm, self.mode, self.cs_l = True, Mode.SUPERVISOR, False
        self.insn = Instruction(Mnemonic.NOP, vcpu.rip, b"\x90", base=vcpu.smbase)
        return self.insn

    # Accesses -----------------------------------------------------------------

    def _access(self, va: int, kind: int, *, implicit: bool = False) -> int:
        """Access one byte range within a page; return its host-physical address.

        Raises
        ------
        _Exit
            The access faulted and KVM has dealt with that.
        """
        vcpu = self.vcpu
        pfec = kind
        if vcpu.cpl == 3 and not implicit:
            pfec |= PFERR_USER_MASK
        explicit = not implicit and self.mode is not Mode.IMPLICIT
        try:
            return access(vcpu, self.processor, va, pfec, explicit=explicit)
        except ShadowFault as fault:
            self._shadow_exit(fault)
        except NestedFault as fault:
            self._nested_exit(fault)
        except GuestFault as fault:
            # The processor raises it in the guest; KVM has no part in that.
            kvm_queue_exception(vcpu, PF_VECTOR, fault.error_code, fault.va)
            self.verdict = Verdict.RESUME
            self.native = not vcpu.requests & Request.TRIPLE_FAULT
        raise _Exit

    def _vectoring(self) -> int | None:
        """Return the event whose delivery is under way, as both vendors encode it."""
        if self.delivering is None:
            return None
        vector, error_code = self.delivering
        return VECTORING_VALID | VECTORING_EXCEPTION | vector | (0 if error_code is None else VECTORING_ERROR)

    def _shadow_exit(self, fault: ShadowFault) -> None:
        vcpu = self.vcpu
        trace_page_fault_exit(vcpu, fault.va, fault.error_code, self._vectoring())
        pending = vcpu.exception
        self.verdict = kvm_handle_page_fault(
            vcpu, fault.va, fault.error_code, self.insn, reinjection=self.delivering is not None
        )
        self._keep_pending(pending)

    def _nested_exit(self, fault: NestedFault) -> None:
        pending = self.vcpu.exception
        told = NestedExit(
            gpa=fault.gpa,
            error_code=fault.error_code,
            kind=fault.kind,
            final=fault.final,
            rwx=fault.rwx,
            va=fault.va,
            guest_access=fault.guest_access if self.config.host.ept_advanced_info else None,
        )
        self.verdict = handle_nested_page_fault(self.vcpu, told, self.insn, idt_vectoring=self._vectoring())
        self._keep_pending(pending)

    def _keep_pending(self, pending: tuple[int, int | None, int | None] | None) -> None:
        """Deliver again what was being delivered, unless KVM dropped it or put another in its place.

        The emulator clears the queue (``kvm_clear_exception_queue``). What it finds
        itself is a new exception, and so is the #DF of two.
        """
        if self.vcpu.guest_mode != self.in_l2:
            return
        delivering, self.delivering = self.delivering, None
        self.reinject = delivering is not None and self.vcpu.exception is pending

    def _operand(self, write: bool) -> list[tuple[int, int, int]]:
        """Translate the memory operand; return pieces of (hpa, size, shift)."""
        insn = self.insn
        kind = PFERR_WRITE_MASK if write else 0
        first = min(insn.size, 4096 - (insn.gva & 0xFFF))
        pieces = [(self._access(insn.gva, kind), first, 0)]
        if first < insn.size:
            pieces.append((self._access(insn.gva + first, kind), insn.size - first, 8 * first))
        return pieces

    # The instruction ------------------------------------------------------------

    def _instruction(self) -> Outcome:
        vcpu, insn = self.vcpu, self.insn
        if emulation_required(vcpu):
            self._emulate_real_mode()
        if insn.rip is not None:
            if not guest_canonical(vcpu, insn.rip):
                return self._raise(GP_VECTOR, 0)
            self._decode(self._access(insn.base + insn.rip, PFERR_FETCH_MASK))
            insn = self.insn
            self._skip_lead(insn)
        if insn.mnemonic in PRIVILEGED:
            if vcpu.cpl == 3:
                return self._raise(GP_VECTOR, 0)
            return self._privileged()
        if insn.mnemonic is Mnemonic.OUT:
            return self._out(insn)
        outcome = Outcome(OutcomeKind.OK, rax=insn.value if insn.mnemonic is Mnemonic.STORE else 0)
        if insn.mnemonic in TOUCHES_MEMORY:
            if not guest_canonical(vcpu, insn.gva):
                return self._raise(GP_VECTOR, 0)
            self._data(outcome)
        return self._finish(outcome, stepped=True)

    def _emulate_real_mode(self) -> NoReturn:
        """Leave the instruction to KVM, which fetches it from the guest's memory itself."""
        vcpu, at = self.vcpu, self.insn.base + (self.insn.rip or 0)
        slot = vcpu_memslots(vcpu).lookup(at >> 12)
        if slot is not None:
            self._decode(slot.frame(at >> 12) << 12 | at & 0xFFF)
        self.verdict = handle_invalid_guest_state(vcpu, self.insn)
        raise _Exit

    def _skip_lead(self, insn: Instruction) -> None:
        """Execute the leading instructions that KVM does not intercept."""
        if insn.lead and insn.rip is not None:
            insn.rip += insn.lead
            insn.lead = 0
            self.vcpu.rip = insn.rip

    def _decode(self, hpa: int) -> None:
        """Take the instruction that really lies at a target page."""
        insn = self.insn
        if insn.mnemonic is not Mnemonic.NOP or insn.target is not None or insn.rip is None:
            return
        memory, real = self.vcpu.kvm.memory, self.in_smm and not self.vcpu.cr0 & X86_CR0_PE
        self.insn = fetch_target(memory, insn, hpa, real_mode=real, stepped=self.smi_stepped)

    def _out(self, insn: Instruction) -> Outcome:
        """Tell the VMM where the guest is."""
        rip, port = insn.rip or 0, insn.code[1]
        if self._trace_out(rip, port):
            raise _Exit
        if port == SMI_PORT:
            return Outcome(OutcomeKind.OK, rip=rip, rax=self.rax)
        self.vcpu.rip = rip + len(insn.code)
        if self.in_l2:
            return Outcome(OutcomeKind.L2)
        if port == VMFAIL_PORT:
            vmx = self.vcpu.vmx
            error = vmx.get("vm_instruction_error") if vmx.zf else None
            return Outcome(OutcomeKind.VMFAIL, cf=vmx.cf, zf=vmx.zf, error=error)
        return Outcome(OutcomeKind.VMEXIT, vmexit=self.vmexit)

    def _data(self, outcome: Outcome) -> None:
        """Perform the instruction's memory operand."""
        insn = self.insn
        writes = insn.mnemonic in WRITES_MEMORY
        reads_first = self.config.host.rmw_reads_first and insn.mnemonic is not Mnemonic.STORE
        if writes and reads_first:
            self._operand(False)
        perform(insn, self.vcpu.kvm.memory, self._operand(writes), outcome)

    def _privileged(self) -> Outcome:
        vcpu, insn = self.vcpu, self.insn
        if is_undefined(vcpu, insn):
            return self._raise(UD_VECTOR, None)
        verdict = handle_instruction(vcpu, insn, cs_l=self.cs_l)
        outcome = Outcome(OutcomeKind.OK, rax=insn.value)
        if verdict is None:
            return self._native(outcome)
        if verdict is Verdict.DONE and insn.mnemonic in VM_ENTRIES:
            self._vmfail()
            raise _Exit
        self.verdict = verdict
        if verdict is Verdict.DONE:
            return self._finish(self._flags(outcome), stepped=False)
        raise _Exit

    def _flags(self, outcome: Outcome) -> Outcome:
        if self.insn.mnemonic in VMX_INSTRUCTIONS and self.insn.mnemonic not in WITHOUT_FLAGS:
            outcome.cf, outcome.zf = self.vcpu.vmx.cf, self.vcpu.vmx.zf
        return outcome

    def _vmfail(self) -> None:
        """Go on behind a VM entry that failed, with the OUT that tells the VMM."""
        insn = self.insn
        rip = (insn.rip or 0) + len(insn.code)
        self.vcpu.rip = rip
        self.verdict = Verdict.RESUME
        self.insn = Instruction(Mnemonic.OUT, rip, bytes([0xE6, VMFAIL_PORT]))

    def _native(self, outcome: Outcome) -> Outcome:
        """Let the processor execute a privileged instruction that is not intercepted."""
        insn = self.insn
        if insn.mnemonic is Mnemonic.MOV_CR:
            try:
                if not load_cr(self.vcpu, self.processor, insn.register, insn.value):
                    return self._raise(GP_VECTOR, 0)
            except NestedFault as fault:
                self._nested_exit(fault)
                raise _Exit from fault
        elif insn.mnemonic is Mnemonic.VMWRITE:
            write_shadow_vmcs(self.vcpu, insn)
        elif insn.mnemonic is Mnemonic.INVPCID:
            # Nothing of what it forgets is kept here: the guest's tables are walked at each access.
            hpa = self._operand(False)[0][0]
            pcid, gla = (self.vcpu.kvm.memory.read(hpa + 8 * i, 8) for i in range(2))
            if not invpcid_is_allowed(self.vcpu, insn.value, pcid, gla):
                return self._raise(GP_VECTOR, 0)
        return self._finish(self._flags(outcome), stepped=True)

    def _emulated(self) -> Outcome:
        """Complete an instruction that KVM emulated."""
        emulation, insn = self.vcpu.emulation, self.insn
        outcome = Outcome(OutcomeKind.OK, rax=insn.value, zf=emulation.zf)
        if insn.mnemonic not in (Mnemonic.STORE, Mnemonic.NOP):
            outcome.rax = emulation.result
        if emulation.mmio:
            outcome.mmio = [Mmio(m.write, m.gpa, m.size, m.value) for m in emulation.mmio]
        return self._finish(outcome, stepped=False)

    def _finish(self, outcome: Outcome, *, stepped: bool) -> Outcome:
        """Advance RIP. The VMM single-steps, so an instruction the processor executed ends in a #DB."""
        insn = self.insn
        if insn.rip is not None:
            outcome.rip = insn.rip + len(insn.code) if insn.target is None else insn.target
            self.vcpu.rip = outcome.rip
            if stepped:
                trace_exit(self.vcpu, ev.kvm_exit("db", outcome.rip))
        return outcome

    # Exceptions -----------------------------------------------------------------

    def _raise(self, vector: int, error_code: int | None) -> Outcome:
        """Raise an exception in the processor itself, which KVM does not see."""
        self.vcpu.exception = (vector, error_code, None)
        return self._deliver()

    def _deliver(self) -> Outcome:
        """Deliver the queued exception: its accesses, then the handler's first instruction."""
        vcpu, stubs = self.vcpu, self.config.stubs
        assert vcpu.exception is not None
        vector, error_code, address = vcpu.exception
        if stubs is None:
            return self._bare_exception()
        self.delivering = (vector, error_code)
        if address is not None:
            vcpu.cr2 = address
        accesses = delivery_accesses(stubs, vector, long_mode=is_long_mode(vcpu), from_user=vcpu.cpl == 3)
        for va, write in accesses:
            self._access(va, PFERR_WRITE_MASK if write else 0, implicit=True)
        self.delivering = None
        vcpu.exception = None
        return self._handler(stubs_rip=handler_rip(stubs, vector), vector=vector, error_code=error_code)

    def _handler(self, *, stubs_rip: int, vector: int, error_code: int | None) -> Outcome:
        """Run the handler's OUT, which the VMM takes as the end of the op."""
        vcpu = self.vcpu
        outcome = self._exception_outcome(vector, error_code, vcpu.rip)
        vcpu.cpl, vcpu.ac, vcpu.rip = 0, False, stubs_rip
        self.insn = Instruction(Mnemonic.OUT, stubs_rip, bytes([0xE6, vector]))
        for _ in range(MAX_EXITS):
            try:
                self._access(stubs_rip, PFERR_FETCH_MASK)
            except _Exit:
                if not self._enter():
                    return Outcome(OutcomeKind.SHUTDOWN)
                continue
            self._trace_out(stubs_rip, vector)
            return outcome
        return endless()

    def _trace_out(self, rip: int, port: int) -> bool:
        """Exit on an 8-bit OUT: EXITINFO1 (APM 2, 15.10.2) or qualification (SDM 3, table 28-5)."""
        info = port << 16 | (0x40 if self.config.host.vendor == "intel" else 0x10)
        return trace_exit(self.vcpu, ev.kvm_exit("ioio", rip, qualification=info), info, rip + 2)

    def _bare_exception(self) -> Outcome:
        vcpu = self.vcpu
        assert vcpu.exception is not None
        vector, error_code, address = vcpu.exception
        vcpu.exception = None
        if address is not None:
            vcpu.cr2 = address
        return self._exception_outcome(vector, error_code, None)

    def _exception_outcome(self, vector: int, error_code: int | None, rip: int | None) -> Outcome:
        if self.vmexit is not None and vector == DB_VECTOR:
            return Outcome(OutcomeKind.VMEXIT, vmexit={**self.vmexit, "l1db": 1})
        cr2 = self.vcpu.cr2 if vector == PF_VECTOR else None
        zf = 0 if self.insn.mnemonic is Mnemonic.CMPXCHG8B else None
        return Outcome(OutcomeKind.EXC, rip=rip, vector=vector, error_code=error_code, cr2=cr2, zf=zf)
