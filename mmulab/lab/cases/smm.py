"""Scenarios of system management mode: memory that only ``smm`` in the role tells apart.

One page of guest-physical memory is other memory in address space 1. A handler
that pages with the very tables and registers of the guest outside needs every
page of theirs once more.
"""

from __future__ import annotations

from mmulab.lab.cases.build import GVA_LOWER, GVA_UPPER, LOWER, UPPER, VALUE
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.x86.regs import EFER_LMA

_PAGE = 4096
_MEM, _HIDDEN = 0x800000, 0x500000
_SMM = 1 << 16
"""Slots of address space 1."""


def smm_guest(mode: str, l0: int, *, vendor: str = "amd", **host: int) -> Scenario:
    """Return a guest whose page at UPPER is another one in SMM.

    It reads its pages outside SMM; in it before the handler pages, and again with
    the guest's own paging; and outside once more.

    Parameters
    ----------
    mode : {"np", "32", "pae", "64", "57"}
    l0 : {4, 5}
    vendor : {"amd", "intel"}
    **host
        Parameters of the host.
    """
    real_mode = {"unrestricted_guest": 1} if vendor == "intel" else {}
    host = {"virt_bits": 57 if l0 == 5 else 48, **real_mode, **host}
    builder = ScenarioBuilder(mode, vendor=vendor, host=host, mem=_MEM)
    builder.slot(0, 0, _MEM).slot(_SMM, 0, UPPER).slot(_SMM | 1, UPPER, _PAGE, 0, _HIDDEN)
    builder.slot(_SMM | 2, UPPER + _PAGE, _MEM - UPPER - _PAGE, 0, UPPER + _PAGE)
    for at in (LOWER, UPPER, _HIDDEN):
        builder.value(4, at, 0xC0DE0000 | at >> 12)
    lower, upper = LOWER, UPPER
    if mode != "np":
        lower, upper = GVA_LOWER, GVA_UPPER
        builder.root(0x10000).map(lower, LOWER).map(upper, UPPER)
    steps: list[Op] = [_read(lower), _read(upper), ops.Smm(True), _read(LOWER), _read(UPPER)]
    steps += [*_paging(mode), _read(lower), _read(upper), _write(upper), ops.Smm(False)]
    for op in (*steps, _read(upper), _write(upper), _read(lower)):
        builder.op(op)
    return builder.build()


def _paging(mode: str) -> list[Op]:
    """Turn on the paging that the guest has outside; CR3 is still the guest's."""
    regs = MODES[mode]
    if mode == "np":
        return []
    return [ops.WriteEfer(regs.efer & ~EFER_LMA), ops.WriteCr(4, regs.cr4), ops.WriteCr(0, regs.cr0)]


def _read(gva: int) -> Op:
    return ops.Read(Mode.SUPERVISOR, 4, gva)


def _write(gva: int) -> Op:
    return ops.Write(Mode.SUPERVISOR, 4, gva, VALUE)
