"""A machine's paging state at one address as text: the guest's walk and the shadow path."""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.mmu import INVALID_PAGE, Mmu
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.kvm.state import Kvm
from mmulab.machine.machine import Machine
from mmulab.machine.view import GuestWalk, ShadowStep, guest_walk, hpa_str, shadow_steps
from mmulab.x86.mode import NONPAGING, PT_BASE_ADDR_MASK, PT_PRESENT_MASK

_GUEST_FLAGS = ((0, "P"), (1, "W"), (2, "U"), (5, "A"), (6, "D"), (7, "PS"), (8, "G"), (63, "NX"))


def state_lines(machine: Machine, gva: int | None, fault_gpa: int | None = None, vcpu: int = 0) -> list[str]:
    """Return lines that show a vCPU's paging state.

    Parameters
    ----------
    machine : Machine
    gva : int or None
        Guest-virtual address whose walks are shown; None: only the vCPU.
    fault_gpa : int or None
        With a direct map, the guest-physical address whose path is shown; None:
        that to which `gva` translates.
    vcpu : int
    """
    v = machine.kvm.vcpus[vcpu]
    mmu = v.mmu
    root = f"root pgd {hpa_str(mmu.root_pgd)} hpa {hpa_str(mmu.root_hpa)}"
    lines = [
        f"vcpu {vcpu}: cr0 {v.cr0:x} cr3 {v.cr3:x} cr4 {v.cr4:x} efer {v.efer:x} cpl {v.cpl}",
        f"mmu {mmu.kind}: {root} role {_role(machine.kvm, mmu)}",
    ]
    for pgd, hpa in mmu.prev_roots:
        if hpa != INVALID_PAGE:
            lines.append(f"  prev root: pgd {pgd:x} {_page(machine.kvm, hpa >> 12)}")
    if gva is None:
        return lines
    # Access rights are not the question here, so the kind of access is a supervisor's read.
    walk = guest_walk(machine, gva, vcpu=vcpu)
    lines += [f"guest walk of {gva:x}:", *(f"  {line}" for line in _guest_walk(walk))]
    address: int | None = gva
    if mmu.direct:
        address = walk.gpa if fault_gpa is None else fault_gpa
    if address is not None:
        lines.append(f"{'direct map' if mmu.direct else 'shadow path'} of {address:x}:")
        lines += [f"  {line}" for line in _path(machine, address, vcpu)]
    return lines


def _role(kvm: Kvm, mmu: Mmu) -> str:
    return f"{mmu.root_role:x} [{kvm.config.kernel.design.facts(mmu.root_role).full_str()}]"


def _guest_walk(walk: GuestWalk) -> Iterator[str]:
    if walk.mode == NONPAGING.name:
        yield "no paging"
        return
    yield f"mode {walk.mode}, cr3 {walk.root:x}"
    for step in walk.steps:
        entry = _guest_entry(step.entry)
        if step.entry_gpa == -1:
            yield f"l{step.level} pdptr[{step.entry_index}] = {entry}"
        else:
            where = f"gfn {step.table >> 12:x}[{step.entry_index:x}] at {step.entry_gpa:x}"
            yield f"l{step.level} {where} = {entry}"
    yield f"error {walk.error:x}" if walk.gpa is None else f"gpa {walk.gpa:x}"


def _guest_entry(entry: int) -> str:
    flags = " ".join(name for bit, name in _GUEST_FLAGS if entry >> bit & 1)
    return f"{entry:x} ({flags})" if flags else f"{entry:x}"


def _path(machine: Machine, address: int, vcpu: int) -> Iterator[str]:
    steps = shadow_steps(machine, address, vcpu=vcpu)
    if not steps:
        yield "no root"
    for step in steps:
        page = _page(machine.kvm, step.frame)
        yield f"l{step.level} {page}[{step.entry_index:x}] = {step.spte:x}{_target(machine.kvm, step)}"


def _page(kvm: Kvm, frame: int) -> str:
    sp = kvm.pages.get(frame)
    if sp is None:
        return f"special root {frame:x}"
    role = kvm.config.kernel.design.facts(sp.role).full_str()
    sync = "unsync" if sp.unsync else "sync"
    if sp.unsync_children:
        sync += f", {sp.unsync_children} unsync children"
    use = f"gen {sp.mmu_valid_gen} roots {sp.root_count} {sync}"
    return f"sp {frame:x} gfn {sp.gfn:x} {sp.role:x} [{role}] {use} "


def _target(kvm: Kvm, step: ShadowStep) -> str:
    if not is_shadow_present_pte(step.spte):
        return " (not present)" if not step.spte & PT_PRESENT_MASK else ""
    frame = (step.spte & PT_BASE_ADDR_MASK) >> 12
    if not step.last:
        return f" -> sp {frame:x}"
    return f" -> page {frame - kvm.memory.backing:x} of the backing"
