"""A nested root that is PAE's first and that of 4-level paging afterwards.

The root page of a host with more levels is a portal both times, to a portal the
first time and to the table itself the second. Where special roots stand in for
the first (Linux 6.1) the two never meet; where every root is a shadow page, one
bit that says "portal" is too little.
"""

from __future__ import annotations

from itertools import count

from mmulab.check.control_block import vmcb
from mmulab.lab.cases.build import (
    ENTRY_VA,
    L1_ROOT,
    LOWER,
    NPT_ROOT,
    ROOT5,
    TABLE_VA,
    TABLES,
    UPPER,
    VMCB_GPA,
)
from mmulab.machine import op as ops
from mmulab.machine.op import Mode
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import TABLE_FLAGS, Tables, mode_of
from mmulab.x86.regs import EFER_LMA, EFER_SVME, X86_CR0_PG

SECOND = NPT_ROOT + 0x1000
"""Where the tables of 4-level paging wait for their first entry to be taken over."""


def portal_switch_nested(l0: int) -> Scenario:
    """Return an L1 that goes from PAE to 4-level paging, with new tables below the same nested root.

    Parameters
    ----------
    l0 : {4, 5}
    """
    host = {"virt_bits": 57 if l0 == 5 else 48, "npt": 1, "tdp_mmu": 0}
    builder = ScenarioBuilder("pae", cpu={"svm": 1}, host=host)
    for page in (LOWER, UPPER):
        builder.value(4, page, 0xC0DE0000 | page >> 12)
    free = count(TABLES, 0x1000)
    pae, long_mode = (
        MODES[mode]._replace(cr3=cr3, efer=MODES[mode].efer | EFER_SVME)
        for mode, cr3 in (("pae", L1_ROOT), ("64", ROOT5))
    )
    entries = {}
    for regs, root, page in ((pae, NPT_ROOT, LOWER), (long_mode, SECOND, UPPER)):
        own = Tables(builder, mode_of(regs), regs.cr3, free)
        own.identity(HELPER_S, HELPER_U)
        own.map(TABLE_VA, NPT_ROOT)
        npt = Tables(builder, mode_of(regs), root, free)
        npt.identity(HELPER_S, HELPER_U)
        npt.map(ENTRY_VA, page)
        entries[root] = npt.pages[1] | TABLE_FLAGS
    vmcb(builder, VMCB_GPA, MODES["np"], NPT_ROOT)
    builder.sregs(*pae)
    visit = [ops.Vmrun(VMCB_GPA), ops.Read(Mode.SUPERVISOR, 4, ENTRY_VA), ops.Vmmcall()]
    switch = [
        ops.Write(Mode.SUPERVISOR, 4, TABLE_VA, entries[SECOND]),
        ops.WriteCr(0, pae.cr0 & ~X86_CR0_PG),
        ops.WriteCr(3, long_mode.cr3),
        ops.WriteEfer(long_mode.efer & ~EFER_LMA),
        ops.WriteCr(0, long_mode.cr0),
    ]
    for op in (*visit, *switch, *visit):
        builder.op(op)
    return builder.build()
