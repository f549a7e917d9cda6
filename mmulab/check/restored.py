"""Whether a #VMEXIT gives L1 the registers again that VMRUN took from it (APM 2, 15.6).

The outcome of an op does not tell: it is what L1 sees later.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.check.access import WrongAccess, seen_str
from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import SvmNested
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import Result
from mmulab.x86.regs import X86_CR0_PE


class Kept(NamedTuple):
    """What a processor keeps of L1 while L2 runs, of what paging depends on."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


class Restored:
    """Compares L1's registers behind each #VMEXIT with those before the VMRUN.

    Parameters
    ----------
    machine : Machine
        Before its first op.
    """

    def __init__(self, machine: Machine) -> None:
        self._vcpus = machine.kvm.vcpus
        self._now = [_registers(vcpu) for vcpu in self._vcpus]
        self._kept: list[Kept | None] = [None] * len(self._vcpus)

    def after(self, result: Result) -> WrongAccess | None:
        """Look at an op that has run; say which register L1 has not got again."""
        number = result.op.vcpu
        vcpu, before = self._vcpus[number], self._now[number]
        now = self._now[number] = _registers(vcpu)
        if isinstance(result.op, ops.Smm):
            self._kept[number] = None  # what L1 has then is what its save area says
        elif isinstance(result.op, ops.Vmrun) and vcpu.guest_mode and isinstance(vcpu.nested, SvmNested):
            self._kept[number] = before
        kept = self._kept[number]
        if kept is None or vcpu.guest_mode or result.outcome.kind is not OutcomeKind.VMEXIT:
            return None
        self._kept[number] = None
        kept = kept._replace(cr0=kept.cr0 | X86_CR0_PE)
        lost = [name for name in Kept._fields if getattr(now, name) != getattr(kept, name)]
        if not lost:
            return None
        wanted = ", ".join(f"{name.upper()} {getattr(kept, name):#x}" for name in lost)
        got = ", ".join(f"{name.upper()} {getattr(now, name):#x}" for name in lost)
        seen = f"L1 comes back with {got}; {seen_str(result.outcome)}"
        return WrongAccess(result.index, result.text, None, None, seen, f"L1's {wanted}")


def _registers(vcpu: Vcpu) -> Kept:
    return Kept(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer)
