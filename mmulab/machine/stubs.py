"""The instructions behind guest ops, and where exceptions lead.

A scenario's op is one instruction at a *stub* of a helper page; a stream's is a
bare access. Positions follow from the layout of the helper pages: stub `k` at
+0x800 + 16*k, the handler of a vector at +0x600 + 4*vector, descriptor tables
and stack in the supervisor page.
"""

from __future__ import annotations

from functools import cache

from mmulab.machine import op as ops
from mmulab.machine.config import Stubs
from mmulab.machine.op import Mode, Op
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.regs import MSR_EFER

_READ = {4: (0, "8b03"), 8: (2, "488b03"), 1: (17, "8a03")}
_WRITE = {4: (1, "8903"), 8: (3, "488903"), 1: (18, "8803")}
_CR = {3: (4, "0f22d8"), 0: (5, "0f22c0"), 4: (6, "0f22e0")}
VMRUN = (14, "0f01d8")
OPERAND_OFFSET = 0x7C0
"""Memory operand of VMX instructions and of INVPCID, in the supervisor page."""
_VM_ENTRY_LEAD = 6
"""VMWRITEs of RIP and RFLAGS in front of VMLAUNCH and VMRESUME."""
L2_PORT, VMEXIT_PORT, VMFAIL_PORT = 0xFD, 0xFE, 0xFC
"""Ports by which the VMM learns that L2 was entered, that L1 is back, and that VMX entry failed."""
SMI_PORT = 0xFB
"""The same, that the handler of an SMI runs which KVM does not single-step."""
HSAVE_PA = 0xC000
"""What the VMM puts into MSR VM_HSAVE_PA."""
L2_STUB = 15
STUB_OFFSET = 0x800
HANDLER_OFFSET = 0x600
IDT32_OFFSET, IDT64_OFFSET = 0x100, 0x200
TSS32_OFFSET, TSS64_OFFSET = 0x480, 0x500
STACK_TOP = 0xFF0


def _at(stubs: Stubs | None, mode: Mode, stub: tuple[int, str]) -> tuple[int | None, bytes]:
    number, code = stub
    if stubs is None:
        return None, _bytes(code)
    page = stubs.user if mode is Mode.USER else stubs.supervisor
    return page + STUB_OFFSET + 16 * number, _bytes(code)


@cache
def _bytes(code: str) -> bytes:
    return bytes.fromhex(code)


def instruction_of(op: Op, stubs: Stubs | None) -> tuple[Mode, Instruction]:
    """Return the privilege and the instruction that a guest op executes.

    Raises
    ------
    TypeError
        Not a guest op that is one instruction.
    """
    s = Mode.SUPERVISOR
    match op:
        case ops.Read(mode=mode, size=size, gva=gva):
            return mode, Instruction(Mnemonic.LOAD, *_at(stubs, mode, _READ.get(size, _READ[4])), gva, size)
        case ops.Write(mode=mode, size=size, gva=gva, value=value):
            stub = _WRITE.get(size, _WRITE[4])
            return mode, Instruction(Mnemonic.STORE, *_at(stubs, mode, stub), gva, size, value)
        case ops.Exchange(mode=mode, size=size, gva=gva, value=value):
            return mode, Instruction(Mnemonic.XCHG, *_at(stubs, mode, (11, "8703")), gva, size, value)
        case ops.CompareExchange(mode=mode, size=size, gva=gva, old=old, new=new):
            where = _at(stubs, mode, (9, "0fc70e"))
            return mode, Instruction(Mnemonic.CMPXCHG8B, *where, gva, size, new, old)
        case ops.Execute(mode=mode, gva=gva):
            return mode, Instruction(Mnemonic.NOP, gva, b"\x90")
        case ops.WriteCr(cr=cr, value=value):
            return s, Instruction(Mnemonic.MOV_CR, *_at(stubs, s, _CR[cr]), value=value, register=cr)
        case ops.WriteEfer(value=value):
            where = _at(stubs, s, (8, "0f30"))
            return s, Instruction(Mnemonic.WRMSR, *where, value=value, register=MSR_EFER)
        case ops.Invlpg(gva=gva):
            return s, Instruction(Mnemonic.INVLPG, *_at(stubs, s, (7, "0f013b")), gva)
        case ops.Invpcid(type=kind):
            operand = (0 if stubs is None else stubs.supervisor) + OPERAND_OFFSET
            where = _at(stubs, s, (30, "660f388203"))
            return s, Instruction(Mnemonic.INVPCID, *where, operand, 16, value=kind)
        case ops.Nop() | ops.Smm(on=True):
            return s, Instruction(Mnemonic.NOP, *_at(stubs, s, (10, "90")))
        case ops.Smm():
            return s, Instruction(Mnemonic.RSM, *_at(stubs, s, (31, "0faa")))
        case ops.Sysexit():
            target, _ = _at(stubs, Mode.USER, (10, "90"))
            return s, Instruction(Mnemonic.NOP, *_at(stubs, s, (12, "0f35")), target=target)
        case ops.Sysenter():
            target, _ = _at(stubs, s, (10, "90"))
            where = _at(stubs, Mode.USER, (13, "0f34"))
            return Mode.USER, Instruction(Mnemonic.NOP, *where, target=target)
        case ops.Vmrun(gpa=gpa):
            return s, Instruction(Mnemonic.VMRUN, *_at(stubs, s, VMRUN), value=gpa)
        case ops.Vmmcall():
            return s, Instruction(Mnemonic.VMMCALL, *_at(stubs, s, (16, "0f01d9")))
    return s, _vmx_instruction(op, stubs)


def _vmx_instruction(op: Op, stubs: Stubs | None) -> Instruction:
    s = Mode.SUPERVISOR
    operand = (0 if stubs is None else stubs.supervisor) + OPERAND_OFFSET
    match op:
        case ops.Vmxon():
            return Instruction(Mnemonic.VMXON, *_at(stubs, s, (19, "f30fc733")), operand)
        case ops.Vmptrld():
            return Instruction(Mnemonic.VMPTRLD, *_at(stubs, s, (20, "0fc733")), operand)
        case ops.Vmclear():
            return Instruction(Mnemonic.VMCLEAR, *_at(stubs, s, (21, "660fc733")), operand)
        case ops.Vmlaunch():
            return vm_entry(stubs, launch=True)
        case ops.Invept(type=kind):
            where = _at(stubs, s, (24, "660f388003"))
            return Instruction(Mnemonic.INVEPT, *where, operand, value=kind, register=kind)
        case ops.Invvpid(type=kind):
            where = _at(stubs, s, (25, "660f388103"))
            return Instruction(Mnemonic.INVVPID, *where, operand, value=kind, register=kind)
        case ops.Vmwrite(field=field, value=value):
            where = _at(stubs, s, (26, "0f79d8"))
            return Instruction(Mnemonic.VMWRITE, *where, value=value, register=field)
        case ops.Vmcall():
            return Instruction(Mnemonic.VMCALL, *_at(stubs, s, (27, "0f01c1")))
        case ops.Vmfunc(function=function, index=index):
            where = _at(stubs, s, (29, "0f01d4"))
            return Instruction(Mnemonic.VMFUNC, *where, value=function, register=index)
    raise TypeError(f"{type(op).__name__} is not an instruction")


def vm_entry(stubs: Stubs | None, *, launch: bool) -> Instruction:
    """Return the VMLAUNCH or VMRESUME that enters L2 at its first stub."""
    mnemonic, stub = (Mnemonic.VMLAUNCH, 22) if launch else (Mnemonic.VMRESUME, 23)
    where = _at(stubs, Mode.SUPERVISOR, (stub, "0f01c2" if launch else "0f01c3"))
    rip = 0 if stubs is None else l2_rip(stubs)
    return Instruction(mnemonic, *where, value=rip, lead=_VM_ENTRY_LEAD)


HAS_OPERAND = frozenset((ops.Vmxon, ops.Vmptrld, ops.Vmclear, ops.Invept, ops.Invvpid, ops.Invpcid))
"""Ops of which :func:`operand_words` has something to say."""


def operand_words(op: Op) -> tuple[int, ...]:
    """Return the 8-byte words of a memory operand that the VMM puts in place, () if there is none."""
    match op:
        case ops.Vmxon(gpa=gpa) | ops.Vmptrld(gpa=gpa) | ops.Vmclear(gpa=gpa):
            return (gpa,)
        case ops.Invept(eptp=eptp, reserved=reserved):
            return eptp, reserved
        case ops.Invvpid(vpid=vpid, gva=gva):
            return vpid, gva
        case ops.Invpcid(pcid=pcid, gva=gva):
            return pcid, gva
    return ()


def delivery_accesses(
    stubs: Stubs, vector: int, *, long_mode: bool, from_user: bool
) -> list[tuple[int, bool]]:
    """Return the implicit accesses of an exception's delivery as (address, write), in order.

    The gate, from CPL 3 the stack pointer in the TSS, the code segment's
    descriptor, the pushes on the stack (SDM 3, 6.12 and 6.14).
    """
    page = stubs.supervisor
    gate = page + (IDT64_OFFSET + 16 * vector if long_mode else IDT32_OFFSET + 8 * vector)
    accesses = [(gate, False), (page + 0x40 if long_mode else page + 0x8, False)]
    if from_user:
        accesses.append((page + (TSS64_OFFSET if long_mode else TSS32_OFFSET) + 4, False))
    accesses.append((page + STACK_TOP - (8 if long_mode else 4), True))
    return accesses


def l2_rip(stubs: Stubs) -> int:
    """Return where L2 begins: an OUT that tells the VMM."""
    return stubs.supervisor + STUB_OFFSET + 16 * L2_STUB


def handler_rip(stubs: Stubs, vector: int) -> int:
    """Return where the handler of a vector begins."""
    return stubs.supervisor + HANDLER_OFFSET + 4 * vector
