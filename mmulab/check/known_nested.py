"""What Linux 6.1.192 is known to do wrong with guests of guests, and how to tell each from the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mmulab import events as ev
from mmulab.check.access import DATA, TwoWalks
from mmulab.check.allowed import walk_memory
from mmulab.check.deviation import Deviation
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.world import Nested, World, world_of
from mmulab.kvm.gpte import SPTE_LEVEL_BITS
from mmulab.kvm.mmu import INVALID_PAGE, PT32E_ROOT_LEVEL
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.kvm.svm.nested import SVM_EXITS, SVM_NESTED_CTL_NP_ENABLE, SvmNested, read_vmcb
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_EPT
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result
from mmulab.trace.judge import access_kind
from mmulab.x86.ept import EPT_VIOLATION_GVA_TRANSLATED
from mmulab.x86.mode import PAGING_32, VMX_EPT_RWX_MASK
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import (
    PF_VECTOR,
    PFERR_FETCH_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import EFER_LMA, EFER_NX, PG_LEVEL_4K, X86_CR0_PG, X86_CR4_PCIDE, X86_CR4_PSE
from mmulab.x86.walk import EPT_ACCESS


def _world(machine: Machine, result: Result) -> World | None:
    """Return the world of an L2 with nested tables, by L1's control block if the op has left it."""
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    world = world_of(machine, vcpu.id)
    if world.nested_guest or result.outcome.vmexit is None or machine.kvm.config.vendor != "amd":
        return world if world.nested is not None else None
    block = vcpu.last_vmcb12_gpa
    cr0, cr3, cr4, efer, root = (
        read_vmcb(vcpu, block, name) for name in ("cr0", "cr3", "cr4", "efer", "nested_cr3")
    )
    if not read_vmcb(vcpu, block, "nested_ctl") & SVM_NESTED_CTL_NP_ENABLE:
        return None
    paging = make_paging(cr0, cr4, efer, vcpu.cpu, KVM_WALK)
    form = make_paging(X86_CR0_PG, vcpu.cr4, vcpu.efer, vcpu.cpu, KVM_WALK)
    nested = Nested(form, root, root, PFERR_USER_MASK | PFERR_WRITE_MASK)
    return replace(world, paging=(paging,), cr3=cr3, nested=nested, pdptes=None, nested_guest=True)


def _walks(machine: Machine, result: Result, world: World | None) -> list[TwoWalks]:
    """Walk for an op's access, and for its end where that is on another page; [] without nested tables."""
    op = result.op
    if world is None or not isinstance(op, (*DATA, ops.Execute, ops.Touch)):
        return []
    size = getattr(op, "size", 1)
    kind, read = access_kind(op), machine.memory.read
    return [walk_memory(world, read, at, kind) for at in dict.fromkeys((op.gva, op.gva + size - 1))]


def _emulated_at_table(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether a write was emulated at the table on its way instead of at its own address."""
    op, fault = result.op, None
    if not isinstance(op, DATA):
        return False
    for event in result.events:
        if isinstance(event, ev.kvm_page_fault):
            fault = event
        elif isinstance(event, ev.kvm_emulate_insn) and fault is not None:
            if machine.kvm.config.vendor == "amd":
                at_table = bool(fault.error_code & PFERR_GUEST_PAGE_MASK)
            else:  # it is the exit qualification
                at_table = not fault.error_code & EPT_VIOLATION_GVA_TRANSLATED
            if at_table and not (fault.fault_address ^ op.gva) & 0xFFF:
                return True
    return False


def _npf_mixed(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L1 was told of an emulated access's fault with the processor's own of another one."""
    told, world = result.outcome.vmexit or {}, _world(machine, result)
    if world is None or told.get("code") != SVM_EXITS["npf"]:
        return False
    fault, emulated = None, None
    for event in result.events:
        if isinstance(event, ev.kvm_page_fault):
            fault = event
        elif isinstance(event, ev.kvm_emulate_insn):
            emulated = fault
    if emulated is None or told["info2"] != emulated.fault_address:
        return False
    high = emulated.error_code & ~0xFFFFFFFF
    errors = [_error(walks) for walks in _walks(machine, result, world) if walks.inner]
    return any(error is not None and told["info1"] == high | error for error in errors)


def _address_above_4g(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L2 has an address above what L1's nested tables of 32-bit or PAE paging reach."""
    world = _world(machine, result)
    if world is None or world.nested is None or world.nested.paging.mode.va_bits != 32:
        return False
    faults = [event for event in result.events if isinstance(event, ev.kvm_page_fault)]
    return bool(faults) and faults[-1].fault_address >> 32 != 0


def _pse_kept(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L1's nested tables lead elsewhere with CR4.PSE as it is not."""
    world = _world(machine, result)
    if world is None or world.nested is None or world.nested.paging.mode is not PAGING_32:
        return False
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    cr4 = vcpu.cr4 if not isinstance(vcpu.nested, SvmNested) else vcpu.nested.l1["cr4"]
    form = make_paging(X86_CR0_PG, cr4 ^ X86_CR4_PSE, 0, vcpu.cpu, KVM_WALK)
    other = replace(world, nested=world.nested._replace(paging=form))
    now, then = (_walks(machine, result, each) for each in (world, other))
    return [(walks.gpa, _error(walks)) for walks in now] != [(walks.gpa, _error(walks)) for walks in then]


def _error(walks: TwoWalks) -> int | None:
    return walks.inner[-1].error if walks.inner else walks.outer.error


def _reserved_in_nested_pdpte(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether a PDPTE of L1's nested tables has a reserved bit on the way."""
    world = _world(machine, result)
    if world is None or world.nested is None or not world.nested.paging.mode.has_pdptes:
        return False
    found = (walks.inner[-1] for walks in _walks(machine, result, world) if walks.inner)
    errors = (inner.error or 0 for inner in found if inner.level == 3)
    return any(error & PFERR_RSVD_MASK for error in errors)


def _no_memory(machine: Machine, gpa: int) -> bool:
    return machine.kvm.slots[0].lookup(gpa >> 12) is None


def _root_outside(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L1 gave L2, or its nested tables, a root where no memory is."""
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    if machine.kvm.config.vendor == "intel":
        ept = vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
        return _no_memory(machine, vcpu.vmx.get("ept_pointer" if ept else "guest_cr3"))
    npt = read_vmcb(vcpu, vcpu.last_vmcb12_gpa, "nested_ctl") & SVM_NESTED_CTL_NP_ENABLE
    return _no_memory(machine, read_vmcb(vcpu, vcpu.last_vmcb12_gpa, "nested_cr3" if npt else "cr3"))


def _control_block_gone(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L1's VMCB lies in no memory."""
    return _no_memory(machine, machine.kvm.vcpus[result.op.vcpu].last_vmcb12_gpa)


def _tables_outside(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L2's tables lie in no memory, and its first fetch gets #PF after #PF at them."""
    if not isinstance(result.op, ops.Vmrun) or machine.kvm.config.vendor != "amd":
        return False
    codes = [event.error_code for event in result.events if isinstance(event, ev.kvm_page_fault)]
    sent = [event.exception for event in result.events if isinstance(event, ev.kvm_inj_exception)]
    if not codes or not codes[-1] & PFERR_GUEST_PAGE_MASK or set(sent) != {PF_VECTOR}:
        return False
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    return walk_memory(world_of(machine, vcpu.id), machine.memory.read, vcpu.rip, PFERR_FETCH_MASK).hole


def _nx_without_efer_nx(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether KVM makes large pages of an L1 that has EFER.NX clear not executable."""
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    nested = vcpu.nested
    if not machine.kvm.config.tdp or not machine.kvm.nx_huge_pages:
        return False
    if isinstance(nested, SvmNested):
        return nested.npt and not nested.l1["efer"] & EFER_NX
    return result.outcome.vmexit is not None and not vcpu.efer & EFER_NX


def _old_root_of_fewer_levels(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether INVLPG goes by another root than the current one, under which tables have three levels."""
    if not isinstance(result.op, ops.Invlpg) or machine.kvm.config.tdp:
        return False
    mmu = machine.kvm.vcpus[result.op.vcpu].mmu
    kept = [hpa for _, hpa in mmu.prev_roots if hpa not in (INVALID_PAGE, mmu.root_hpa)]
    return mmu.root_level == PT32E_ROOT_LEVEL and bool(kept)


def _pcid_without_long_mode(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L1 has entered an L2 with CR4.PCIDE set outside long mode, which no MOV to CR4 would take."""
    vcpu = machine.kvm.vcpus[result.op.vcpu]
    return vcpu.guest_mode and bool(vcpu.cr4 & X86_CR4_PCIDE) and not vcpu.efer & EFER_LMA


def _ept_rights_apart(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether each spte without any right is of a leaf of L1's EPT that grants nothing which its way does."""
    if machine.kvm.config.vendor != "intel":
        return False
    left = [sp.access & EPT_ACCESS[entry & VMX_EPT_RWX_MASK] for sp, entry in _without_rights(machine)]
    return bool(left) and not any(left)


def _without_rights(machine: Machine) -> Iterator[tuple[ShadowPage, int]]:
    """Yield the page of each leaf spte without rights in a shadow of L1's EPT, and L1's entry."""
    read, slots = machine.memory.read, machine.kvm.slots[0]
    for sp in machine.kvm.pages.values():
        if sp.direct or not sp.guest_mode or sp.level != PG_LEVEL_4K:
            continue
        for index in range(1 << SPTE_LEVEL_BITS):
            spte = read((sp.frame << 12) + 8 * index, 8)
            if is_shadow_present_pte(spte) and not spte & VMX_EPT_RWX_MASK:
                entry = slots.read(machine.memory.bytes, (sp.gfn << 12) + 8 * index, 8)
                if entry is not None:  # else its slot is gone
                    yield sp, entry


_WRONG = ("fault-not-reached", "fault-reached", "page-not-reached", "page-reached", "endless")

NESTED_DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        name="nested-emulated-at-table",
        kind=FindingKind.OUTCOME,
        findings=_WRONG,
        said="A write whose walk meets a table of L1's that is write-protected, being one of nested "
        "tables, is done at the entry that was read, if it lies at the same place of its page",
        source="x86.c:x86_emulate_instruction takes the faulting address for the operand's though the "
        "fault came at a table (PFERR_GUEST_PAGE_MASK)",
        shows=_emulated_at_table,
    ),
    Deviation(
        name="nested-npf-mixed",
        kind=FindingKind.OUTCOME,
        findings=("fault-not-reached",),
        said="KVM emulates an access of L2's for a fault at one of its tables, and the access faults in L1's "
        "nested tables; L1 is told the address of the table, with the error of the access",
        source="svm/nested.c:nested_svm_inject_npf_exit leaves EXITINFO2 and the high half of EXITINFO1 as "
        "they are if the exit is a #NPF, whatever that one was for",
        shows=_npf_mixed,
    ),
    Deviation(
        name="nested-address-above-4g",
        kind=FindingKind.OUTCOME,
        findings=("endless",),
        said="L2 reaches an address above 4 GiB by PSE-36 under nested tables of a 32-bit L1, and faults "
        "for ever",
        source="mmu.c:shadow_walk_init_using_root takes bits 31:30 of the address for its place in the "
        "root, and the processor takes all of it",
        shows=_address_above_4g,
    ),
    Deviation(
        name="nested-tables-outside",
        kind=FindingKind.OUTCOME,
        findings=("endless",),
        said="L1 enters an L2 whose tables lie where no memory is; it is sent a #PF for its first fetch, for "
        "ever, where a processor would come to a shutdown",
        source="x86.c:x86_emulate_instruction forgets the #PF that could not be delivered "
        "(kvm_clear_exception_queue) before it sends the next, so none becomes a double fault",
        shows=_tables_outside,
    ),
    Deviation(
        name="nested-pse-kept",
        kind=FindingKind.OUTCOME,
        findings=_WRONG,
        said="L1 changes CR4.PSE and has everything flushed; its nested tables are used as they were before",
        source="union kvm_mmu_page_role has no CR4.PSE, so the same shadow pages are found again",
        shows=_pse_kept,
    ),
    Deviation(
        name="nested-pdpte-reserved",
        kind=FindingKind.OUTCOME,
        findings=_WRONG,
        said="A PDPTE of L1's nested tables has a reserved bit set and is used all the same",
        source="paging_tmpl.h:FNAME(walk_addr_generic) looks for no reserved bits in the PDPTE that "
        "nested_svm_get_tdp_pdptr reads",
        shows=_reserved_in_nested_pdpte,
    ),
    Deviation(
        name="nested-invlpg-pae",
        kind=FindingKind.ASSERTION,
        findings=("mmu.c:shadow_walk_init_using_root:root",),
        said="INVLPG after an L2 without long mode stops the host: an older root is walked as if it were "
        "the current",
        source="mmu.c:kvm_mmu_invalidate_gva goes by each of prev_roots, and shadow_walk_init_using_root "
        "takes none but the current root under tables of three levels",
        shows=_old_root_of_fewer_levels,
    ),
    Deviation(
        name="nested-root-outside-svm",
        kind=FindingKind.ASSERTION,
        findings=("nested.c:nested_svm_vmexit:run_pending",),
        said="L2's root lies where no memory is, and L2 is left for the shutdown that L1 intercepts "
        "before it ran",
        source="mmu.c:mmu_check_root asks for a triple fault, which svm/nested.c:nested_svm_triple_fault "
        "takes while nested_run_pending is set",
        shows=_root_outside,
    ),
    Deviation(
        name="nested-root-outside-vmx",
        kind=FindingKind.ASSERTION,
        findings=("nested.c:nested_vmx_vmexit:run_pending", "vmx.c:__vmx_handle_exit:run_pending"),
        said="The EPT pointer leads out of memory; L2 is left before it ran, and the next exit kills the VM",
        source="mmu.c:mmu_check_root asks for a triple fault, which vmx/nested.c:nested_vmx_triple_fault "
        "takes while nested_run_pending is set and leaves it so",
        shows=_root_outside,
    ),
    Deviation(
        name="nested-control-block-gone",
        kind=FindingKind.ASSERTION,
        findings=(
            "x86.c:kvm_check_and_inject_events:vmexit_pending",
            "x86.c:kvm_check_and_inject_events:new_exception",
        ),
        said="The slot of L1's VMCB goes away; a fault of L2 that L1 intercepts is still pending after "
        "the exit",
        source="svm/nested.c:nested_svm_vmexit cannot map the VMCB and injects a #GP into L2",
        shows=_control_block_gone,
    ),
    Deviation(
        name="nested-nx-reserved-spte",
        kind=FindingKind.ASSERTION,
        findings=("spte.c:make_spte:reserved",),
        said="An spte of a large nested page has NX for nx_huge_pages, which L1 without EFER.NX makes "
        "reserved",
        source="mmu.c:reset_shadow_zero_bits_mask goes by the role's efer_nx, which a shadow of nested "
        "tables has from L1",
        shows=_nx_without_efer_nx,
    ),
    Deviation(
        name="nested-no-rights",
        kind=FindingKind.ASSERTION,
        findings=("spte.c:make_spte:access",),
        said="An spte without any right is made of a leaf of L1's EPT that grants nothing which its way does",
        source="paging_tmpl.h:FNAME(prefetch_gpte) and FNAME(sync_page) take the rights of both, and do "
        "not look whether any is left",
        shows=_ept_rights_apart,
    ),
    Deviation(
        name="nested-pcid-pae",
        kind=FindingKind.ASSERTION,
        findings=("svm.c:svm_load_mmu_pgd:pcid",),
        said="VMRUN takes CR4.PCIDE with a PCID outside long mode, for which three levels of tables have "
        "no place",
        source="svm/nested.c:__nested_vmcb_check_save asks for no EFER.LMA with CR4.PCIDE",
        shows=_pcid_without_long_mode,
    ),
)
"""What is known of 6.1.192 with an L1 that has guests."""
