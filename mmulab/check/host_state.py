"""Whether L1 can go on where an exit of L2's puts it: the state of the host is L1's own to give.

A VM exit loads control registers and RIP from the VMCS, and #VMEXIT what VMRUN saved (SDM 3, 28.5;
APM 2, 15.6); the tables that CR3 then leads to are L1's too. Where no code of the scenario's is
fetched, what comes of L1's first instruction says nothing of what L2 was left for.
"""

from __future__ import annotations

from mmulab.check.allowed import walk_memory
from mmulab.check.rsm import bad_pdptes
from mmulab.check.world import world_of
from mmulab.kvm.state import Vcpu
from mmulab.kvm.x86 import is_pae_paging
from mmulab.machine.machine import Machine
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_WRITE_MASK


def l1_cannot_run(machine: Machine, vcpu: Vcpu) -> bool:
    """Whether L1, which an exit has just put on the vCPU, has no code to fetch there or may not fault."""
    stubs, world, read = machine.config.stubs, world_of(machine, vcpu.id), machine.memory.read
    if stubs is None or (is_pae_paging(vcpu) and bad_pdptes(vcpu, world, vcpu.cr3, read)):
        return True
    rip = vcpu.vmx.get("host_rip") if machine.kvm.config.vendor == "intel" else stubs.supervisor
    kinds = (0, PFERR_WRITE_MASK, PFERR_FETCH_MASK)
    found = [walk_memory(world, read, rip, kind).gpa for kind in kinds]
    return rip & ~0xFFF != stubs.supervisor or any(gpa != rip for gpa in found)
