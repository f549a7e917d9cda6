"""What Linux 6.1.192 is known to do wrong with guests of guests, and how to tell each from the machine."""

from __future__ import annotations

from dataclasses import replace

from mmulab import events as ev
from mmulab.check.access import DATA, TwoWalks
from mmulab.check.allowed import walk_memory
from mmulab.check.finding import Finding
from mmulab.check.world import Nested, World, world_of
from mmulab.kvm.svm.nested import SVM_NESTED_CTL_NP_ENABLE, SvmNested, read_vmcb
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result
from mmulab.trace.judge import access_kind
from mmulab.x86.mode import PAGING_32
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import PFERR_GUEST_PAGE_MASK, PFERR_RSVD_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_PG, X86_CR4_PSE


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


def emulated_at_table(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether a write was emulated at the table on its way instead of at its own address."""
    op, fault = result.op, None
    if not isinstance(op, DATA):
        return False
    for event in result.events:
        if isinstance(event, ev.kvm_page_fault):
            fault = event
        elif isinstance(event, ev.kvm_emulate_insn) and fault is not None:
            at_table = fault.error_code & PFERR_GUEST_PAGE_MASK
            if at_table and not (fault.fault_address ^ op.gva) & 0xFFF:
                return True
    return False


def address_above_4g(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether L2 has an address above what L1's nested tables of 32-bit or PAE paging reach."""
    world = _world(machine, result)
    if world is None or world.nested is None or world.nested.paging.mode.va_bits != 32:
        return False
    return any(inner.va >> 32 for walks in _walks(machine, result, world) for inner in walks.inner)


def pse_kept(machine: Machine, result: Result, finding: Finding) -> bool:
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


def reserved_in_nested_pdpte(machine: Machine, result: Result, finding: Finding) -> bool:
    """Whether a PDPTE of L1's nested tables has a reserved bit on the way."""
    world = _world(machine, result)
    if world is None or world.nested is None or not world.nested.paging.mode.has_pdptes:
        return False
    found = (walks.inner[-1] for walks in _walks(machine, result, world) if walks.inner)
    errors = (inner.error or 0 for inner in found if inner.level == 3)
    return any(error & PFERR_RSVD_MASK for error in errors)
