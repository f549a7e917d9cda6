"""What Linux itself is known to do wrong, each as narrow as it can be told from the machine.

A search looks on behind these: they are counted, and no findings. The shortest sequence of
each is ``data/sequences/reachable/NAME.mmu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmulab.check.access import DATA, TwoWalks
from mmulab.check.allowed import two_walks, walk_memory
from mmulab.check.deviation import Deviation
from mmulab.check.finding import Finding, FindingKind, MakeWatcher, Watcher
from mmulab.check.known_nested import NESTED_DEVIATIONS
from mmulab.check.told import fault_seen
from mmulab.check.world import world_of
from mmulab.kvm.hw_cr4 import WHILE_PAGING
from mmulab.kvm.mmu import PT32E_ROOT_LEVEL
from mmulab.kvm.spte import MMIO_SPTE_GEN_MASK, get_mmio_spte_generation, get_mmio_spte_gfn, is_mmio_spte
from mmulab.kvm.state import Vcpu
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.scenario.runner import Result
from mmulab.trace.judge import access_kind
from mmulab.x86.mode import (
    PAGING_32,
    PT64_NX_MASK,
    PT_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    paging_mode,
)
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import PFERR_PRESENT_MASK, PFERR_RSVD_MASK
from mmulab.x86.regs import EFER_NX, X86_CR0_PG, X86_CR0_WP, X86_CR4_PSE, X86_CR4_SMAP


def _walk(machine: Machine, result: Result) -> TwoWalks | None:
    """Walk the tables as they are now for an op's access."""
    op = result.op
    if not isinstance(op, (*DATA, ops.Execute, ops.Touch)):
        return None
    return two_walks(machine, op.gva, access_kind(op), vcpu=op.vcpu)


def _comes_to(machine: Machine, result: Result, **changes: Any) -> bool:
    """Whether an access came to what memory says to a vCPU with other `cr4`, `efer` or `cpu`."""
    op, outcome, vcpu = result.op, result.outcome, _vcpu(machine, result)
    assert isinstance(op, (*DATA, ops.Execute, ops.Touch))
    has = {"cr4": vcpu.cr4, "efer": vcpu.efer, "cpu": vcpu.cpu} | changes
    form = make_paging(vcpu.cr0, has["cr4"], has["efer"], has["cpu"], KVM_WALK)
    world = replace(world_of(machine, vcpu.id), paging=(form,))
    ac = op.mode is Mode.SUPERVISOR_AC
    walks = walk_memory(world, machine.memory.read, op.gva, access_kind(op), not_smap=ac)
    if walks.gpa is None:
        return fault_seen(walks, outcome)
    hpa = world.hpa_of(walks.gpa)
    if hpa is None or outcome.kind is not OutcomeKind.OK:
        return bool(outcome.mmio and outcome.mmio[0].gpa == walks.gpa)
    return outcome.hpa in (-1, hpa)


def _vcpu(machine: Machine, result: Result) -> Vcpu:
    return machine.kvm.vcpus[result.op.vcpu]


def _nx_reserved(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, vcpu = _walk(machine, result), _vcpu(machine, result)
    if walks is None or walks.outer.error is None or machine.kvm.config.tdp or vcpu.efer & EFER_NX:
        return False
    reserved = bool(walks.outer.error & PFERR_RSVD_MASK)
    marked = reserved and bool(walks.outer.ptes[walks.outer.level] & PT64_NX_MASK)
    return marked and _comes_to(machine, result, efer=vcpu.efer | EFER_NX)


def _smap_lost(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, vcpu = _walk(machine, result), _vcpu(machine, result)
    if walks is None or machine.kvm.config.tdp or not vcpu.cr4 & X86_CR4_SMAP or vcpu.cr0 & X86_CR0_WP:
        return False
    facts, leaf = vcpu.mmu.root_facts, walks.outer.pte_access
    by_role = facts is not None and bool(facts.smap_andnot_wp)  # else the role is wrong, and not this
    lost = by_role and bool(leaf & PT_USER_MASK) and not leaf & PT_WRITABLE_MASK
    return lost and _comes_to(machine, result, cr4=vcpu.cr4 & ~X86_CR4_SMAP)


def _rights_without_paging(machine: Machine, result: Result, finding: Finding) -> bool:
    vcpu, config = _vcpu(machine, result), machine.kvm.config
    if config.vendor != "intel" or config.tdp or vcpu.guest_mode or vcpu.cr0 & X86_CR0_PG:
        return False
    return bool(vcpu.hw_cr4)


def _rights_before_paging(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, vcpu, config = _walk(machine, result), _vcpu(machine, result), machine.kvm.config
    if walks is None or config.vendor != "intel" or config.tdp or vcpu.guest_mode:
        return False
    lost = vcpu.cr4 & WHILE_PAGING & ~vcpu.hw_cr4 if vcpu.cr0 & X86_CR0_PG else 0
    denied = (walks.outer.error or 0) & (PFERR_PRESENT_MASK | PFERR_RSVD_MASK) == PFERR_PRESENT_MASK
    missed = bool(lost) and denied and bool(walks.outer.pte_access & PT_USER_MASK)
    return missed and _comes_to(machine, result, cr4=vcpu.cr4 & ~lost)


def _table_for_operand(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, op = _walk(machine, result), result.op
    if walks is None or not isinstance(op, DATA) or not machine.kvm.config.tdp or result.outcome.hpa != -1:
        return False
    slots, offset = machine.kvm.slots[_vcpu(machine, result).smm], op.gva & 0xFFF
    for _, address, _ in walks.outer.steps():
        slot = slots.lookup(address >> 12)
        if slot is not None and slot.readonly and address & 0xFFF == offset:
            return True
    return False


def _device_write_not_dirty(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, mmio, vcpu = _walk(machine, result), result.outcome.mmio, _vcpu(machine, result)
    if walks is None or not mmio or machine.kvm.config.tdp or vcpu.cr0 & X86_CR0_WP:
        return False
    return mmio[0].gpa == walks.gpa and not walks.outer.ad_done


def _mmio_refreshed(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether an access to memory went to a device by an MMIO entry of today's generation."""
    walks, mmio, vcpu, kvm = _walk(machine, result), result.outcome.mmio, _vcpu(machine, result), machine.kvm
    if walks is None or walks.gpa is None or not mmio or mmio[0].gpa != walks.gpa:
        return False
    slots, gfn = kvm.slots[vcpu.smm], walks.gpa >> 12
    slot = slots.lookup(gfn)
    if slot is None or slot.readonly:
        return False
    sptes = (kvm.memory.words[(sp.frame << 9) + at] for sp in kvm.pages.values() for at in range(512))
    return any(
        is_mmio_spte(kvm.fmt, spte)
        and get_mmio_spte_gfn(kvm.fmt, spte) == gfn
        and get_mmio_spte_generation(spte) == slots.generation & MMIO_SPTE_GEN_MASK
        for spte in sptes
    )


def _pdpte_outside_memory(machine: Machine, result: Result, finding: Finding) -> bool:
    vcpu = _vcpu(machine, result)
    if machine.kvm.config.tdp or vcpu.guest_mode or result.outcome.kind is not OutcomeKind.SHUTDOWN:
        return False
    if vcpu.mmu.cpu_role.level != PT32E_ROOT_LEVEL:
        return False
    roots = [pdpte & PT_BASE_ADDR_MASK for pdpte in vcpu.walk_mmu.pdptrs if pdpte & PT_PRESENT_MASK]
    return any(machine.kvm.slots[vcpu.smm].lookup(root >> 12) is None for root in roots)


def _cpuid_shared(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, vcpu = _walk(machine, result), _vcpu(machine, result)
    if walks is None or machine.kvm.config.tdp or not (walks.outer.error or 0) & PFERR_RSVD_MASK:
        return False
    others = [other.cpu for other in machine.kvm.vcpus if other.cpu != vcpu.cpu]
    return any(_comes_to(machine, result, cpu=cpu) for cpu in others)


def _pse_kept(machine: Machine, result: Result, finding: Finding) -> bool:
    walks, vcpu = _walk(machine, result), _vcpu(machine, result)
    if walks is None or machine.kvm.config.tdp or vcpu.guest_mode or vcpu.cr4 & X86_CR4_PSE:
        return False
    if paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer) is not PAGING_32:
        return False
    large = bool(walks.outer.ptes[2] & PT_PAGE_SIZE_MASK)
    return large and _comes_to(machine, result, cr4=vcpu.cr4 | X86_CR4_PSE)


DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        name="pse-kept",
        kind=FindingKind.OUTCOME,
        findings=("fault-reached", "page-reached", "fault-not-reached", "page-not-reached"),
        said="A guest of 32-bit paging clears CR4.PSE and has everything flushed; its large pages stay",
        source="kvm_host.h:union kvm_mmu_page_role has no CR4.PSE, so the same shadow pages are found again",
        shows=_pse_kept,
    ),
    Deviation(
        name="nx-reserved-lost",
        kind=FindingKind.OUTCOME,
        findings=("fault-reached",),
        said="Bit 63 of an entry is reserved while EFER.NX is 0, but what was shadowed before is used on",
        source="mmu.c:kvm_calc_shadow_mmu_root_page_role sets efer_nx in the role of each shadow root, so a "
        "change of EFER.NX finds the same shadow pages, and nothing looks at the guest's entries again",
        shows=_nx_reserved,
    ),
    Deviation(
        name="smap-lost-without-wp",
        kind=FindingKind.OUTCOME,
        findings=("fault-reached",),
        said="With CR0.WP=0 and SMAP a page of the user's that the kernel has written is the kernel's to the "
        "processor, and no later access meets SMAP",
        source="paging_tmpl.h:FNAME(page_fault) takes ACC_USER_MASK away where it adds ACC_WRITE_MASK",
        shows=_smap_lost,
    ),
    Deviation(
        name="smap-without-paging",
        kind=FindingKind.OUTCOME,
        findings=("endless",),
        said="SMAP, SMEP or PKE still acts after CR0.PG is cleared, and no access of the kernel's ends",
        source="vmx.c:vmx_set_cr0 loads CR4 again only if enable_ept, so the processor keeps the bits that "
        "vmx_set_cr4 leaves out while the guest does not page",
        shows=_rights_without_paging,
    ),
    Deviation(
        name="smap-before-paging",
        kind=FindingKind.OUTCOME,
        findings=("fault-reached", "fault-not-reached"),
        said="SMAP, SMEP or PKE does not act if CR4 was loaded with it before CR0.PG was set",
        source="vmx.c:vmx_set_cr0 loads CR4 again only if enable_ept, so the bits that vmx_set_cr4 has left "
        "out stay out until the next load",
        shows=_rights_before_paging,
    ),
    Deviation(
        name="table-for-operand",
        kind=FindingKind.OUTCOME,
        findings=("page-not-reached",),
        said="A table of the guest's in a read-only slot is read or written in place of the operand",
        source="x86.c:emulator_read_write_onepage takes the address of the nested fault for the operand's if "
        "both have the same offset; but it is an entry's, which the processor wanted to mark",
        shows=_table_for_operand,
    ),
    Deviation(
        name="device-write-not-dirty",
        kind=FindingKind.OUTCOME,
        findings=("page-not-reached",),
        said="With CR0.WP=0 the first write of the kernel's to a page of a device leaves D clear",
        source="x86.c:vcpu_mmio_gva_to_gpa finds the page cached and the write allowed, and walks no tables",
        shows=_device_write_not_dirty,
    ),
    Deviation(
        name="mmio-refreshed",
        kind=FindingKind.OUTCOME,
        findings=("page-not-reached",),
        said="Memory that the VMM has added where a device was is still the device, to a guest that has "
        "read it before and whose table was synced since",
        source="mmu.c:sync_mmio_spte gives an MMIO entry whose gfn stays today's generation, and does not "
        "look whether the gfn is still in no slot",
        shows=_mmio_refreshed,
    ),
    Deviation(
        name="pdpte-outside-memory",
        kind=FindingKind.OUTCOME,
        findings=("page-not-reached", "fault-not-reached", "end-not-reached"),
        said="A PAE guest one of whose PDPTEs points to no memory is shut down, whichever it uses",
        source="mmu.c:mmu_alloc_shadow_roots looks at every present PDPTE, and mmu_check_root asks for "
        "KVM_REQ_TRIPLE_FAULT",
        shows=_pdpte_outside_memory,
    ),
    Deviation(
        name="cpuid-shared",
        kind=FindingKind.OUTCOME,
        findings=("fault-reached", "fault-not-reached"),
        said="A vCPU uses what another one with another CPUID has mapped, without #PF for its reserved bits",
        source="kvm_host.h:union kvm_mmu_page_role has nothing of CPUID's: vCPUs that differ share pages",
        shows=_cpuid_shared,
    ),
    *NESTED_DEVIATIONS,
)
"""What is known of 6.1.192; of two that a finding may be, the first."""


class Beyond:
    """A watcher that passes over known deviations.

    Parameters
    ----------
    machine : Machine
    make : MakeWatcher
        Makes the watcher that looks.
    met : dict of str to int
        Counts the deviations passed over, by name.

    Attributes
    ----------
    passed : Result or None
        The last op whose finding was passed over.
    """

    def __init__(self, machine: Machine, *, make: MakeWatcher, met: dict[str, int]) -> None:
        self._machine = machine
        self.watcher: Watcher = make(machine)
        self._met = met
        self.passed: Result | None = None

    def after(self, result: Result) -> Finding | None:
        """Return what is wrong with an op, and not known."""
        finding = self.watcher.after(result)
        if finding is None:
            return None
        deviation = deviation_of(self._machine, result, finding)
        if deviation is None:
            return finding
        self._met[deviation.name] = self._met.get(deviation.name, 0) + 1
        self.passed = result
        return None


def deviation_of(machine: Machine, result: Result, finding: Finding) -> Deviation | None:
    """Return the known deviation that a finding right after its op is, or None."""
    for deviation in DEVIATIONS:
        named = finding.kind is deviation.kind and finding.name in deviation.findings
        if named and deviation.shows(machine, result, finding):
            return deviation
    return None


def beyond(makers: Sequence[MakeWatcher], met: dict[str, int]) -> tuple[MakeWatcher, ...]:
    """Return watchers that pass over known deviations, and count them in `met`."""
    return tuple(partial(Beyond, make=make, met=met) for make in makers)
