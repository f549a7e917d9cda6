"""The two helper pages: the instructions, descriptors and handlers of every scenario.

Page S (supervisor) holds descriptor tables, exception handlers and one *stub*
a kind of instruction; page U (user) holds the same stubs. An op is one stub
single-stepped, so its accesses are the fetch at the stub and its own operand;
an exception adds supervisor accesses to page S only.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from mmulab.machine import op as ops
from mmulab.machine.op import Op

HELPER_S = 0x1000
"""GPA and GVA of the supervisor page."""
HELPER_U = 0x2000
"""GPA and GVA of the user page."""
GDT = 0x000
IDT32 = 0x100
IDT64 = 0x200
TSS32 = 0x480
TSS64 = 0x500
HANDLERS = 0x600
"""Offset of the handlers, 4 bytes a vector: ``out %al, $vector`` and a jump to itself."""
STUBS = 0x800
"""Offset of the stubs in both pages."""
STUB_BYTES = 16
STACK_TOP = 0xFF0
VECTORS = 32


class Stub(IntEnum):
    """Number of each stub; it lies at ``page + STUBS + 16 * number``."""

    RD4 = 0
    WR4 = 1
    RD8 = 2
    WR8 = 3
    CR3 = 4
    CR0 = 5
    CR4 = 6
    INVLPG = 7
    WRMSR = 8
    CX8 = 9
    NOP = 10
    XCHG = 11
    SYSEXIT = 12
    SYSENTER = 13
    VMRUN = 14
    L2_START = 15
    VMMCALL = 16
    RD1 = 17
    WR1 = 18
    VMXON = 19
    VMPTRLD = 20
    VMCLEAR = 21
    VMLAUNCH = 22
    VMRESUME = 23
    INVEPT = 24
    INVVPID = 25
    VMWRITE = 26
    VMCALL = 27
    HOST_RIP = 28
    VMFUNC = 29
    INVPCID = 30
    RSM = 31


CODE = {
    Stub.RD4: "8b03",  # mov (%rbx), %eax
    Stub.WR4: "8903",  # mov %eax, (%rbx)
    Stub.RD8: "488b03",  # mov (%rbx), %rax
    Stub.WR8: "488903",  # mov %rax, (%rbx)
    Stub.CR3: "0f22d8",  # mov %rax, %cr3
    Stub.CR0: "0f22c0",  # mov %rax, %cr0
    Stub.CR4: "0f22e0",  # mov %rax, %cr4
    Stub.INVLPG: "0f013b",  # invlpg (%rbx)
    Stub.WRMSR: "0f30",
    Stub.CX8: "0fc70e",  # cmpxchg8b (%rsi)
    Stub.NOP: "90",
    Stub.XCHG: "8703",  # xchg %eax, (%rbx)
    Stub.SYSEXIT: "0f35",
    Stub.SYSENTER: "0f34",
    Stub.VMRUN: "0f01d8e6fe",  # vmrun; out %al, $0xfe
    Stub.L2_START: "e6fd",  # out %al, $0xfd
    Stub.VMMCALL: "0f01d9",
    Stub.RD1: "8a03",  # mov (%rbx), %al
    Stub.WR1: "8803",  # mov %al, (%rbx)
    Stub.VMXON: "f30fc733",  # vmxon (%rbx)
    Stub.VMPTRLD: "0fc733",  # vmptrld (%rbx)
    Stub.VMCLEAR: "660fc733",  # vmclear (%rbx)
    Stub.VMLAUNCH: "0f79d80f79ca0f01c2e6fc",  # vmwrite x2; vmlaunch; out %al, $0xfc
    Stub.VMRESUME: "0f79d80f79ca0f01c3e6fc",  # vmwrite x2; vmresume; out %al, $0xfc
    Stub.INVEPT: "660f388003",  # invept (%rbx), %rax
    Stub.INVVPID: "660f388103",  # invvpid (%rbx), %rax
    Stub.VMWRITE: "0f79d8",  # vmwrite %rax, %rbx
    Stub.VMCALL: "0f01c1",
    Stub.HOST_RIP: "e6fe",  # out %al, $0xfe
    Stub.VMFUNC: "0f01d4",
    Stub.INVPCID: "660f388203",  # invpcid (%rbx), %rax
    Stub.RSM: "0faa",
}
"""Machine code of each stub, in hex."""

_LAST_STUB = {"amd": Stub.WR1, "intel": Stub.VMFUNC}
STUBS_OF_OPS: dict[type[Op], Stub] = {ops.Invpcid: Stub.INVPCID, ops.Smm: Stub.RSM}
"""Stubs that no recording's pages have; a scenario with the op has them."""

# Flat segments with A=1, so that loading one writes no descriptor. Selectors 8, 10, 18 and 20 are
# laid out as SYSENTER and SYSEXIT want them (SDM 2B); 40 and 48 are the 64-bit code segments.
_GDT_32 = "0000000000000000 ffff0000009bcf00 ffff00000093cf00 ffff000000fbcf00 ffff000000f3cf00"
_GDT_64 = "ffff0000009baf00 ffff000000fbaf00"
KERNEL_CS32, KERNEL_SS, KERNEL_CS64 = 0x08, 0x10, 0x40
GDT_BYTES = 0x50
_GATE = b"\x00\x8e"  # an interrupt gate of CPL 0
_LINE = 16


def _gate(vector: int, selector: int, size: int) -> bytes:
    """One IDT entry of `size` bytes; the handlers lie below 64 KiB."""
    handler = HELPER_S + HANDLERS + 4 * vector
    return (handler.to_bytes(2, "little") + selector.to_bytes(2, "little") + _GATE).ljust(size, b"\0")


def _stack(offset: int) -> bytes:
    """ESP0 or RSP0 of a task-state segment, behind `offset` bytes, and SS0."""
    return bytes(offset) + (HELPER_S + STACK_TOP).to_bytes(4, "little")


def helper_lines(vendor: str, more: Iterable[Stub] = ()) -> dict[int, bytes]:
    """Return what both helper pages hold, in lines of 16 bytes by address.

    Lines that are not named hold zeros.

    Parameters
    ----------
    vendor : {"amd", "intel"}
        Intel's pages have the stubs of VMX as well.
    more : iterable of Stub
        Further stubs, beside those of the recordings' pages.
    """
    pieces = {
        HELPER_S + GDT: bytes.fromhex(_GDT_32),
        HELPER_S + GDT + KERNEL_CS64: bytes.fromhex(_GDT_64),
        HELPER_S + IDT32: b"".join(_gate(v, KERNEL_CS32, 8) for v in range(VECTORS)),
        HELPER_S + IDT64: b"".join(_gate(v, KERNEL_CS64, 16) for v in range(VECTORS)),
        HELPER_S + TSS32: _stack(4) + KERNEL_SS.to_bytes(4, "little"),
        HELPER_S + TSS64: _stack(4),
        HELPER_S + HANDLERS: b"".join(bytes((0xE6, v, 0xEB, 0xFE)) for v in range(VECTORS)),
    }
    for page in (HELPER_S, HELPER_U):
        for stub in (*(stub for stub in Stub if stub <= _LAST_STUB[vendor]), *more):
            pieces[page + STUBS + STUB_BYTES * stub] = bytes.fromhex(CODE[stub])
    lines = {}
    for address, data in pieces.items():
        for at in range(0, len(data), _LINE):
            lines[address + at] = data[at : at + _LINE].ljust(_LINE, b"\0")
    return dict(sorted(lines.items()))


# The tables through which every root maps the two pages; one 4 KiB table a level.
HELPER_PT, HELPER_PD, HELPER_PDPT, HELPER_PML4 = 0x3000, 0x4000, 0x5000, 0x6000
