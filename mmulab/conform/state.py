"""A machine's paging state at one address as text: the guest's walk and the shadow path."""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.mmu import INVALID_PAGE, Mmu
from mmulab.kvm.spte import is_last_spte, is_shadow_present_pte
from mmulab.kvm.state import Kvm, Vcpu
from mmulab.machine.machine import Machine
from mmulab.x86.mode import PT_BASE_ADDR_MASK, PT_PRESENT_MASK
from mmulab.x86.walk import walk

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
    lines = [
        f"vcpu {vcpu}: cr0 {v.cr0:x} cr3 {v.cr3:x} cr4 {v.cr4:x} efer {v.efer:x} cpl {v.cpl}",
        f"mmu {mmu.kind}: root pgd {mmu.root_pgd:x} hpa {_hpa(mmu.root_hpa)} role {_role(machine.kvm, mmu)}",
    ]
    for pgd, hpa in mmu.prev_roots:
        if hpa != INVALID_PAGE:
            lines.append(f"  prev root: pgd {pgd:x} {_page(machine.kvm, hpa >> 12)}")
    if gva is None:
        return lines
    guest, gpa = _guest_walk(machine, v, gva)
    lines += [f"guest walk of {gva:x}:", *(f"  {line}" for line in guest)]
    address = gva
    if mmu.direct:
        address = gpa if fault_gpa is None else fault_gpa
    if address >= 0:
        lines.append(f"{'direct map' if mmu.direct else 'shadow path'} of {address:x}:")
        lines += [f"  {line}" for line in _shadow_path(machine.kvm, mmu, address)]
    return lines


def _hpa(hpa: int) -> str:
    return "none" if hpa == INVALID_PAGE else f"{hpa:x}"


def _role(kvm: Kvm, mmu: Mmu) -> str:
    return f"{mmu.root_role:x} [{kvm.config.design.facts(mmu.root_role).full_str()}]"


def _guest_walk(machine: Machine, v: Vcpu, address: int) -> tuple[list[str], int]:
    """Return the walk's lines and the address reached, -1 after a fault."""
    paging = v.walk_mmu.paging
    if paging is None or paging.mode.root_level == 0:
        return ["no paging"], address
    slots = machine.kvm.slots[v.smm]
    width = paging.mode.entry_bytes

    def load(gpa: int, level: int) -> int | None:
        entry: int | None = slots.read(machine.memory.bytes, gpa, width)
        return entry

    # Access rights are not the question here, so the kind of access is a supervisor's read.
    config = machine.kvm.config
    # Under nested paging AMD's processors read PDPTEs from memory (APM 2, 15.25).
    pdptes = None if config.tdp and config.vendor == "amd" else v.walk_mmu.pdptrs
    w = walk(paging, v.cr3, address, 0, load, pdptes=pdptes)
    lines = [f"mode {paging.mode.name}, cr3 {v.cr3:x}"]
    if w.pdpte is not None:
        lines.append(f"l3 pdptr[{address >> 30 & 3}] = {_guest_entry(w.pdpte)}")
    for level in range(w.max_level, w.level - 1, -1):
        table, at = w.table[level], w.entry_addr[level]
        entry = _guest_entry(w.ptes[level])
        lines.append(f"l{level} gfn {table >> 12:x}[{(at - table) // width:x}] at {at:x} = {entry}")
    lines.append(f"error {w.error:x}" if w.error is not None else f"gpa {w.pa:x}")
    return lines, w.pa


def _guest_entry(entry: int) -> str:
    flags = " ".join(name for bit, name in _GUEST_FLAGS if entry >> bit & 1)
    return f"{entry:x} ({flags})" if flags else f"{entry:x}"


def _shadow_path(kvm: Kvm, mmu: Mmu, address: int) -> Iterator[str]:
    if mmu.root_hpa == INVALID_PAGE:
        yield "no root"
        return
    frame = mmu.root_hpa >> 12
    special = {mmu.pae_root: 3, mmu.pml4_root: 4, mmu.pml5_root: 5}
    level = special.get(frame) or kvm.pages[frame].level
    words = kvm.memory.words
    while True:
        index = address >> 12 + 9 * (level - 1) & (3 if frame == mmu.pae_root else 511)
        spte = words[frame << 9 | index]
        yield f"l{level} {_page(kvm, frame)}[{index:x}] = {spte:x}{_target(kvm, spte, level)}"
        # Special roots hold entries without KVM's own present bit.
        present = is_shadow_present_pte(spte) or (frame in special and spte & PT_PRESENT_MASK)
        if not present or is_last_spte(spte, level):
            return
        frame = (spte & PT_BASE_ADDR_MASK) >> 12
        level -= 1


def _page(kvm: Kvm, frame: int) -> str:
    sp = kvm.pages.get(frame)
    if sp is None:
        return f"special root {frame:x}"
    role = kvm.config.design.facts(sp.role).full_str()
    sync = "unsync" if sp.unsync else "sync"
    if sp.unsync_children:
        sync += f", {sp.unsync_children} unsync children"
    use = f"gen {sp.mmu_valid_gen} roots {sp.root_count} {sync}"
    return f"sp {frame:x} gfn {sp.gfn:x} {sp.role:x} [{role}] {use} "


def _target(kvm: Kvm, spte: int, level: int) -> str:
    if not is_shadow_present_pte(spte):
        return " (not present)" if not spte & PT_PRESENT_MASK else ""
    frame = (spte & PT_BASE_ADDR_MASK) >> 12
    if not is_last_spte(spte, level):
        return f" -> sp {frame:x}"
    return f" -> page {frame - kvm.memory.backing:x} of the backing"
