"""An independent processor: the ``unicorn`` package (the translator of QEMU 5) behind one call.

The emulated processor shares its first frames of memory with the caller;
behind them nothing is backed, so an access whose translation succeeds stops
with the physical address that it reached, to the byte. The error code of a
page fault has no register that can be read, but a saved context holds it: its
place is found at the start by faults whose codes are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import unicorn
from unicorn import x86_const as x86

from mmulab.x86.mode import PAGING_4LEVEL, PAGING_PAE
from mmulab.x86.pferr import PF_VECTOR, PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_ET,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_EFLAGS_AC,
)
from tests.x86.tables import (
    CODE_SUPERVISOR,
    CODE_USER,
    DATA,
    FRAMES,
    STUB_FLAGS,
    Access,
    Registers,
    World,
    stub_va,
)

MSR_EFER = 0xC0000080
READ, WRITE, IRET, WRPKRU = 32, 40, 48, 56
"""Offsets of the instructions in a code page (the emulator also looks at the byte before them)."""
NEXT = 3
"""Offset behind an instruction at which the emulator stops; no instruction is longer."""
CODE = {
    READ: b"\x8a\x03\x90",  # mov al, [bx]
    WRITE: b"\x88\x03\x90",  # mov [bx], al
    WRPKRU: b"\x0f\x01\xef",
}
GDT = (0, 0, 0xCF93000000FFFF, 0xCFFB000000FFFF, 0xCFF3000000FFFF)
"""Flat segments; 2 is data of privilege 0, 3 is code and 4 data of privilege 3."""
GDT_LONG = (0, 0, 0xCF93000000FFFF, 0xAFFB000000FFFF, 0xCFF3000000FFFF)
STACK = 0x800
"""Offset in the data page of the frame that IRET takes."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How an access ended: at `pa`, or with exception `vector`.

    `cr2` and `error` are None unless the exception is a page fault.
    """

    pa: int | None = None
    vector: int | None = None
    error: int | None = None
    cr2: int | None = None


class Processor:
    """One emulated processor, for the modes with (`long`) or without EFER.LMA."""

    def __init__(self, long: bool) -> None:
        self.long = long
        self.frames = np.zeros((FRAMES, 512), np.uint64)
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if long else unicorn.UC_MODE_32)
        self._uc = uc
        uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)  # has SMAP, PKU and LA57
        uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
        uc.mem_map_ptr(0, self.frames.nbytes, unicorn.UC_PROT_ALL, self.frames.ctypes.data)
        self._vector: int | None = None
        self._pa: int | None = None
        uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupted)
        uc.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._left_memory)
        self._pristine = {0: uc.context_save()}
        self._current: dict[int, object] = {}
        self._cr3 = 0
        self._code_base = {0: 0, 3: 0}
        self._pristine[3] = self._context_of_user()
        self._error_offset = self._find_error_code()

    def _interrupted(self, uc: object, vector: int, _data: object) -> None:
        self._vector = vector
        self._uc.emu_stop()

    def _left_memory(self, uc: object, kind: int, address: int, size: int, value: int, _data: object) -> bool:
        self._pa = address
        return False

    def _write_stubs(self) -> None:
        data = self.frames.view(np.uint8)
        for page in (CODE_SUPERVISOR, CODE_USER):
            data[page] = 0xF4
            for offset, code in CODE.items():
                data[page, offset : offset + len(code)] = list(code)
        iret = b"\x48\xcf" if self.long else b"\xcf"
        data[CODE_SUPERVISOR, IRET : IRET + len(iret)] = list(iret)
        self.frames[DATA, : len(GDT)] = GDT_LONG if self.long else GDT

    def _context_of_user(self) -> object:
        """Return the state in which IRET to privilege 3 leaves the processor."""
        uc = self._uc
        world = _plain_world(self.long)
        self.load(world, privileges=(0,))
        uc.context_restore(self._current[0])
        gdt, user = stub_va(world.mode, 2), stub_va(world.mode, 1)
        frame = (user + READ, 3 << 3 | 3, 2, gdt + 0xFF0, 4 << 3 | 3)
        width = np.uint64 if self.long else np.uint32
        self.frames[DATA].view(width)[STACK // np.dtype(width).itemsize :][:5] = frame
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, gdt, 8 * len(GDT) - 1, 0))
        if not self.long:
            uc.reg_write(x86.UC_X86_REG_SS, 2 << 3)
        uc.reg_write(x86.UC_X86_REG_RSP if self.long else x86.UC_X86_REG_ESP, gdt + STACK)
        uc.emu_start(stub_va(world.mode, 0) + IRET, user + READ)
        assert uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3
        return uc.context_save()

    def load(self, world: World, privileges: tuple[int, ...] = (0, 3)) -> None:
        """Copy the tables of `world` into memory and make its registers current."""
        self.frames[:] = world.frames
        self._write_stubs()
        registers = world.registers
        self._cr3 = registers.cr3
        for cpl in privileges:
            self._code_base[cpl] = stub_va(world.mode, 1 if cpl else 0)
            self._uc.context_restore(self._pristine[cpl])
            self._write_registers(registers)
            if self.long and registers.cr4 & X86_CR4_PKE:
                self._write_pkru(registers.pkru, self._code_base[cpl] + WRPKRU)
            self._current[cpl] = self._uc.context_save()

    def _write_registers(self, registers: Registers) -> None:
        uc = self._uc
        uc.msr_write(MSR_EFER, registers.efer)
        uc.reg_write(x86.UC_X86_REG_CR3, registers.cr3)
        uc.reg_write(x86.UC_X86_REG_CR4, registers.cr4)
        uc.reg_write(x86.UC_X86_REG_CR0, registers.cr0)
        efer, cr0 = uc.msr_read(MSR_EFER), uc.reg_read(x86.UC_X86_REG_CR0)
        cr4 = uc.reg_read(x86.UC_X86_REG_CR4)
        assert (cr0, cr4, efer) == (registers.cr0, registers.cr4, registers.efer)

    def _write_pkru(self, pkru: int, code: int) -> None:
        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_RAX, pkru)
        uc.reg_write(x86.UC_X86_REG_RCX, 0)
        uc.reg_write(x86.UC_X86_REG_RDX, 0)
        self._vector = None
        uc.emu_start(code, code + NEXT)
        assert self._vector is None

    def access(self, access: Access) -> Reached:
        """Make one access from an empty TLB."""
        uc = self._uc
        cpl = 3 if access.pfec & PFERR_USER_MASK else 0
        uc.context_restore(self._current[cpl])
        uc.reg_write(x86.UC_X86_REG_CR3, self._cr3)
        uc.reg_write(x86.UC_X86_REG_EFLAGS, 2 | (X86_EFLAGS_AC if access.ac else 0))
        uc.reg_write(x86.UC_X86_REG_RBX if self.long else x86.UC_X86_REG_EBX, access.va)
        self._vector = self._pa = None
        if access.pfec & PFERR_FETCH_MASK:
            begin, until = access.va, 0
        else:
            begin = self._code_base[cpl] + (WRITE if access.pfec & PFERR_WRITE_MASK else READ)
            until = begin + NEXT
        try:
            uc.emu_start(begin, until)
        except unicorn.UcError:
            if self._pa is None:
                raise
            return Reached(pa=self._pa)
        if self._vector != PF_VECTOR:
            return Reached(vector=self._vector)
        return Reached(vector=PF_VECTOR, error=self._error(), cr2=uc.reg_read(x86.UC_X86_REG_CR2))

    def _error(self) -> int:
        state = bytes(self._uc.context_save())
        return int.from_bytes(state[self._error_offset : self._error_offset + 4], "little")

    def _find_error_code(self) -> int:
        """Find the word of a saved context that holds the error code of known faults."""
        world = _plain_world(self.long)
        self._error_offset = 0
        found: set[int] | None = None
        for page, pfec, code in KNOWN_FAULTS:
            self.load(world)
            reached = self.access(Access(stub_va(world.mode, page), pfec, False))
            assert reached.vector == PF_VECTOR, (page, pfec, reached)
            state = np.frombuffer(bytes(self._uc.context_save()), np.uint32)
            places = set(np.flatnonzero(state == code).tolist())
            found = places if found is None else found & places
        assert found is not None
        assert len(found) == 1, f"the error code may be at {sorted(found)}"
        return 4 * found.pop()


READ_ONLY, USER_READ_ONLY, RESERVED, NOT_PRESENT = 3, 4, 5, 6
KNOWN_FAULTS = (
    (NOT_PRESENT, 0, 0x0),
    (NOT_PRESENT, PFERR_WRITE_MASK, 0x2),
    (NOT_PRESENT, PFERR_USER_MASK, 0x4),
    (NOT_PRESENT, PFERR_USER_MASK | PFERR_WRITE_MASK, 0x6),
    (READ_ONLY, PFERR_WRITE_MASK, 0x3),
    (READ_ONLY, PFERR_USER_MASK, 0x5),
    (USER_READ_ONLY, PFERR_USER_MASK | PFERR_WRITE_MASK, 0x7),
    (READ_ONLY, PFERR_USER_MASK | PFERR_FETCH_MASK, 0x15),
    (RESERVED, 0, 0x9),
    (NOT_PRESENT, PFERR_FETCH_MASK, 0x10),
)
"""Stub page, kind of access and error code by SDM 3, 4.7, with CR0.WP and EFER.NX set."""


def _plain_world(long: bool) -> World:
    """Return tables of 8-byte entries that map the stub pages and the pages of KNOWN_FAULTS."""
    frames = np.zeros((FRAMES, 512), np.uint64)
    levels = 4 if long else 3
    for level in range(2, levels + 1):
        top = level == levels
        flags = 1 if top and not long else STUB_FLAGS | 4
        frames[DATA + level, 3 if top and not long else 511] = (DATA + level - 1) << 12 | flags
    pages = (CODE_SUPERVISOR, CODE_USER, DATA)
    frames[DATA + 1, :3] = [page << 12 | STUB_FLAGS for page in pages]
    frames[DATA + 1, 1] |= np.uint64(4)
    frames[DATA + 1, 3:6] = [FRAMES << 12 | 0x61, FRAMES << 12 | 0x65, 1 << 40 | 0x67]
    efer = EFER_NX | (EFER_LME | EFER_LMA if long else 0)
    cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_WP | X86_CR0_PG
    mode = PAGING_4LEVEL if long else PAGING_PAE
    return World(mode, frames, Registers(cr0, (DATA + levels) << 12, X86_CR4_PAE, efer, 0))
