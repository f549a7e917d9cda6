"""From one way of paging to another, by way of paging off."""

from __future__ import annotations

from random import Random

from mmulab.machine import op as ops
from mmulab.machine.op import Op
from mmulab.scenario.scenario import Regs
from mmulab.x86.regs import EFER_LMA, X86_CR0_PG


def switch_ops(rng: Random, regs: Regs, vcpu: int = 0, *, efer: bool = True) -> list[Op]:
    """Return the writes that lead from any way of paging to that of `regs`; without `efer`, EFER stays.

    Paging goes off first, from compatibility mode if it was 64-bit mode; then CR4.PAE, EFER.LME and
    CR3 may change in any order, and paging goes on again (SDM 3, 10.8.5; APM 2, 14.6). Where the code
    lies at its own address in both, it runs on.
    """
    between: list[Op] = [
        ops.WriteCr(4, regs.cr4, vcpu=vcpu),
        ops.WriteCr(3, regs.cr3, vcpu=vcpu),
    ]
    if efer:
        between.append(ops.WriteEfer(regs.efer & ~EFER_LMA, vcpu=vcpu))
    rng.shuffle(between)
    off = ops.WriteCr(0, regs.cr0 & ~X86_CR0_PG, compat=True, vcpu=vcpu)
    return [off, *between, ops.WriteCr(0, regs.cr0, vcpu=vcpu)]
