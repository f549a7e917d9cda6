"""Cases of nested guests whose translations must go: by ASID, by TLB control, by EPT root, by the dirty log.

On AMD L1 changes an entry of its nested tables and says so at VMRUN, with
another ASID or with TLB_CONTROL (APM 2, 15.16.1). On Intel L1 turns L2 to
another EPT pointer and back, and INVEPT alone takes translations away (SDM 3,
29.4.3). Under either the VMM logs what L2 writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from mmulab.check.control_block import TLB_CONTROL_FLUSH_ALL_ASID, VMCB_TLB_CONTROL, ept_pointer, vmcs
from mmulab.kvm.svm.nested import VMCB
from mmulab.kvm.vmx.vmcs12 import VMCS12, VMCS12_REVISION, VMCS12_SIZE
from mmulab.lab.cases.build import (
    GVA_LOWER,
    GVA_UPPER,
    L1_ROOT,
    LOWER,
    MOVED,
    NPT_ROOT,
    TABLE_VA,
    TABLES,
    UPPER,
    VALUE,
    VMCB_GPA,
    host_of,
    marks,
    npt_of_nonpaging_l2,
)
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import EptTables, Tables, mode_of
from mmulab.x86.ept import EPT_4LEVEL, EPT_5LEVEL
from mmulab.x86.regs import X86_CR4_VMXE

VMCS_GPA, VMXON_GPA = VMCB_GPA, 0xC000
OTHER_ROOT = 0x15000
"""A second EPT root of L1's."""
OTHER_TABLES = 0x80000
"""Where the tables below it are taken from."""
VMCB_VA = 0x40200000
"""Where L1 sees its VMCB."""
INVEPT_SINGLE_CONTEXT = 1


def _read(address: int) -> ops.Read:
    return ops.Read(Mode.SUPERVISOR, 4, address)


def _write(address: int, value: int, size: int = 4) -> ops.Write:
    return ops.Write(Mode.SUPERVISOR, size, address, value)


def _built(builder: ScenarioBuilder, steps: list[Op]) -> Scenario:
    for op in steps:
        builder.op(op)
    return builder.build()


def npt_flush(l1: str, l0: int, kind: str) -> Scenario:
    """Return an L1 that moves a page of L2 and flushes at VMRUN, without leaving the nested root.

    Parameters
    ----------
    l1 : {"32", "pae", "64", "57"}
    l0 : {4, 5}
    kind : {"asid", "tlb-control"}
        L1 gives L2 another ASID, or sets TLB_CONTROL.
    """
    builder, own, npt = npt_of_nonpaging_l2(l1, l0)
    npt.map(GVA_UPPER, UPPER)
    entry = npt.entry(GVA_UPPER)
    own.map(TABLE_VA, entry & ~0xFFF)
    own.map(VMCB_VA, VMCB_GPA)
    offset, value = (VMCB["asid"][0], 2) if kind == "asid" else (VMCB_TLB_CONTROL, TLB_CONTROL_FLUSH_ALL_ASID)
    move = [
        # The low half of an entry is enough, and code of 32 bits can write no more at once.
        _write(TABLE_VA | entry & 0xFFF, MOVED | npt.leaf_flags),
        _write(VMCB_VA + offset, value),
    ]
    visit = [ops.Vmrun(VMCB_GPA), _read(GVA_LOWER), _read(GVA_UPPER), ops.Vmmcall()]
    return _built(builder, [*visit, *move, *visit])


def _ept_of_nonpaging_l2(l0: int, levels: int, *, ad: bool) -> tuple[ScenarioBuilder, Tables, EptTables]:
    """Return a builder with a 4-level L1 in VMX operation, an L2 without paging and L1's EPT."""
    host = host_of(l0, ept=1, tdp_mmu=0)
    builder = ScenarioBuilder("64", vendor="intel", cpu={"vmx": 1}, host=host)
    marks(builder)
    l1 = MODES["64"]
    l1 = l1._replace(cr3=L1_ROOT, cr4=l1.cr4 | X86_CR4_VMXE)
    builder.sregs(*l1).fill(VMXON_GPA, VMCS12_SIZE, 0).value(4, VMXON_GPA, VMCS12_REVISION)
    free = count(TABLES, VMCS12_SIZE)
    own = Tables(builder, mode_of(l1), L1_ROOT, free)
    own.identity(HELPER_S, HELPER_U)
    ept = _ept(builder, NPT_ROOT, levels, free)
    vmcs(builder, VMCS_GPA, l1, MODES["np"], ept_pointer(NPT_ROOT, levels, ad=ad), vpid=0)
    builder.op(ops.Vmxon(VMXON_GPA))
    return builder, own, ept


def _ept(builder: ScenarioBuilder, root: int, levels: int, free: Iterator[int]) -> EptTables:
    ept = EptTables(builder, EPT_5LEVEL if levels == 5 else EPT_4LEVEL, root, free)
    ept.identity(HELPER_S, HELPER_U)
    ept.map(GVA_LOWER, LOWER)
    return ept


def ept_roots(l0: int, levels: int, *, ad: bool) -> Scenario:
    """Return an L1 that turns L2 to another EPT, changes that one while the first is in use, and goes back.

    Parameters
    ----------
    l0 : {4, 5}
    levels : {4, 5}
        Of L1's EPTs.
    ad : bool
        L1 turns A/D bits on.
    """
    builder, own, first = _ept_of_nonpaging_l2(l0, levels, ad=ad)
    first.map(GVA_UPPER, UPPER)
    second = _ept(builder, OTHER_ROOT, levels, count(OTHER_TABLES, VMCS12_SIZE))
    second.map(GVA_UPPER, LOWER)
    entry = second.entry(GVA_UPPER)
    own.map(TABLE_VA, entry & ~0xFFF)
    pointers = [ept_pointer(root, levels, ad=ad) for root in (NPT_ROOT, OTHER_ROOT)]
    to_first, to_second = (ops.Vmwrite(VMCS12["ept_pointer"].encoding, pointer) for pointer in pointers)
    visit = [ops.Vmrun(VMCS_GPA), _read(GVA_LOWER), _read(GVA_UPPER), ops.Vmcall()]
    change = [
        _write(TABLE_VA | entry & 0xFFF, MOVED | second.leaf_flags, 8),
        ops.Invept(INVEPT_SINGLE_CONTEXT, pointers[1]),
    ]
    steps = [*visit, to_second, *visit, to_first, *visit, *change, to_second, *visit, to_first, *visit]
    return _built(builder, steps)


def npt_dirty_log(l1: str, l0: int) -> Scenario:
    """Return an L2 on nested tables whose writes the VMM logs, twice over.

    Parameters
    ----------
    l1 : {"32", "pae", "64", "57"}
    l0 : {4, 5}
    """
    builder, _, npt = npt_of_nonpaging_l2(l1, l0)
    npt.map(GVA_UPPER, UPPER)
    return _built(builder, [ops.Vmrun(VMCB_GPA), *_logged(builder), ops.Vmmcall()])


def ept_dirty_log(l0: int, levels: int, *, ad: bool) -> Scenario:
    """Return the same of an L2 on EPT.

    Parameters
    ----------
    l0 : {4, 5}
    levels : {4, 5}
        Of L1's EPT.
    ad : bool
        L1 turns A/D bits on.
    """
    builder, _, ept = _ept_of_nonpaging_l2(l0, levels, ad=ad)
    ept.map(GVA_UPPER, UPPER)
    return _built(builder, [ops.Vmrun(VMCS_GPA), *_logged(builder), ops.Vmcall()])


def _logged(builder: ScenarioBuilder) -> list[Op]:
    """Turn logging on over pages that L2 has written already, and read the log after each further round."""
    write = [_write(GVA_LOWER + 8, VALUE), _write(GVA_UPPER + 8, VALUE)]
    log = ops.GetDirtyLog(0)
    turn_on = ops.SetMemslot(0, 0, builder.mem, KVM_MEM_LOG_DIRTY_PAGES, 0)
    return [*write, turn_on, *write, log, write[0], _read(GVA_UPPER), log, *write, log]
