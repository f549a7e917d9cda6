"""What can be seen of a machine at one moment: the guest's walk and the shadow path, as records.

Nothing here changes the machine: the guest's tables are walked without setting
A or D, and without an event. The records are plain values, so they stay true
when the machine runs on.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mmulab.errors import InputError
from mmulab.kvm.mmu import INVALID_PAGE, Mmu
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import is_last_spte, is_mmio_spte, is_shadow_present_pte
from mmulab.kvm.state import Kvm
from mmulab.memory.host import HostMemory
from mmulab.x86.markup import table_html
from mmulab.x86.mode import NONPAGING, PT_BASE_ADDR_MASK, PT_PRESENT_MASK
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import ACC_ALL, ACC_STRINGS
from mmulab.x86.walk import Walk, walk


class Viewed(Protocol):
    """What a machine has that is looked at here; :class:`mmulab.machine.machine.Machine` shows itself so."""

    kvm: Kvm
    memory: HostMemory


class GuestStep(NamedTuple):
    """One entry that a walk of the guest's tables read.

    Attributes
    ----------
    level : int
    table : int
        Guest-physical address of the table; -1 for a PDPTE register.
    entry_index : int
    entry_gpa : int
        Where the entry lies; -1 for a register.
    entry : int
    access : int
        Rights of the path down to and with this entry (``ACC_*``).
    """

    level: int
    table: int
    entry_index: int
    entry_gpa: int
    entry: int
    access: int


class GuestWalk(NamedTuple):
    """What the guest's own tables say of an address.

    Attributes
    ----------
    mode : str
        Name of the paging mode.
    root : int
        CR3.
    address : int
    steps : tuple of GuestStep
        From the root down.
    entry_bytes : int
    gpa : int or None
        The translation; None after a fault.
    error : int or None
        Error code of the page fault.
    """

    mode: str
    root: int
    address: int
    steps: tuple[GuestStep, ...]
    entry_bytes: int
    gpa: int | None
    error: int | None

    @property
    def said(self) -> str:
        """The walk and its end in one line."""
        end = f"page fault, error {self.error:#x}" if self.gpa is None else f"gpa {self.gpa:#x}"
        return f"{self.address:#x} ({self.mode} paging, CR3 {self.root:#x}) -> {end}"

    def _repr_html_(self) -> str:
        rows = [
            [
                step.level,
                _table(step),
                f"{step.entry_index:#x}",
                f"{step.entry:x}",
                ACC_STRINGS[step.access],
            ]
            for step in self.steps
        ]
        end = f"error {self.error:#x}" if self.gpa is None else f"gpa {self.gpa:#x}"
        caption = f"the guest's tables ({self.mode}, CR3 {self.root:#x}) for {self.address:#x} → {end}"
        return table_html(["level", "table", "index", "entry", "rights"], rows, caption)


def guest_walk(
    machine: Viewed, address: int, *, vcpu: int = 0, pfec: int = 0, not_smap: bool = True
) -> GuestWalk:
    """Walk the guest's tables as they are now.

    Parameters
    ----------
    machine : Viewed
    address : int
        Guest-virtual.
    vcpu : int
    pfec : int
        Kind of access, as error-code bits; a supervisor's read if left out.
    not_smap : bool
        SMAP does not apply.
    """
    v = machine.kvm.vcpus[vcpu]
    paging = v.walk_mmu.paging
    if paging is None or paging.mode.root_level == 0:
        return GuestWalk(NONPAGING.name, v.cr3, address, (), 0, address, None)
    slots = machine.kvm.slots[v.smm]
    width = paging.mode.entry_bytes

    def load(gpa: int, level: int) -> int | None:
        return slots.read(machine.memory.bytes, gpa, width)

    config = machine.kvm.config
    # Under nested paging AMD's processors read PDPTEs from memory (APM 2, 15.25).
    pdptes = None if config.tdp and config.vendor == "amd" else v.walk_mmu.pdptrs
    w = walk(paging, v.cr3, address, pfec, load, pdptes=pdptes, not_smap=not_smap, pkru=v.pkru)
    return walk_record(paging, v.cr3, address, w)


def walk_record(paging: Paging, root: int, address: int, w: Walk) -> GuestWalk:
    """Return a walk of tables in a paging mode as the record that is shown."""
    gpa = w.pa if w.error is None else None
    if paging.mode.root_level == 0:
        return GuestWalk(NONPAGING.name, root, address, (), 0, gpa, w.error)
    width = paging.mode.entry_bytes
    steps = []
    if w.pdpte is not None:
        steps.append(GuestStep(3, -1, address >> 30 & 3, -1, w.pdpte, ACC_ALL))
    top = w.level - 1 if w.pdpte is not None and w.level == 3 else w.max_level
    for level in range(top, w.level - 1, -1):
        table, at = w.table[level], w.entry_addr[level]
        access = w.pte_access if level == w.level else w.pt_access[level - 1]
        steps.append(GuestStep(level, table, (at - table) // width, at, w.ptes[level], access))
    return GuestWalk(paging.mode.name, root, address, tuple(steps), width, gpa, w.error)


class PageHeader(NamedTuple):
    """A shadow page's header, copied (:class:`~mmulab.kvm.mmu_page.ShadowPage`)."""

    frame: int
    gfn: int
    role: int
    level: int
    mmu_valid_gen: int
    root_count: int
    unsync: bool
    unsync_children: int
    unsync_child_bitmap: int
    invalid: bool
    write_flooding_count: int


def page_header(sp: ShadowPage) -> PageHeader:
    """Copy what the panels show of a shadow page."""
    return PageHeader(
        sp.frame,
        sp.gfn,
        sp.role,
        sp.level,
        sp.mmu_valid_gen,
        sp.root_count,
        sp.unsync,
        sp.unsync_children,
        sp.unsync_child_bitmap,
        sp.invalid,
        sp.write_flooding_count,
    )


class ShadowStep(NamedTuple):
    """One entry on the way down the host's tables.

    Attributes
    ----------
    level : int
    frame : int
        Host frame of the table.
    page : PageHeader or None
        None for a special root (PAE's and those above it).
    entry_index : int
    sptep, spte : int
        Host-physical address of the entry, and the entry.
    present, last, mmio : bool
        The entry leads somewhere; it maps a page; it says that there is no memory.
    gfn : int or None
        Of a last entry: the guest's page behind it; None if it is no memory of the guest's.
    """

    level: int
    frame: int
    page: PageHeader | None
    entry_index: int
    sptep: int
    spte: int
    present: bool
    last: bool
    mmio: bool
    gfn: int | None


def shadow_steps(machine: Viewed, address: int, *, vcpu: int = 0) -> tuple[ShadowStep, ...]:
    """Return the entries that the processor meets on the tables in use, root first."""
    kvm = machine.kvm
    mmu = kvm.vcpus[vcpu].mmu
    if mmu.root_hpa == INVALID_PAGE:
        return ()
    frame = mmu.root_hpa >> 12
    level = _root_level(kvm, mmu, frame)
    special = (mmu.pae_root, mmu.pml4_root, mmu.pml5_root)
    steps = []
    while level:
        index = address >> 12 + 9 * (level - 1) & (3 if frame == mmu.pae_root else 511)
        at = frame << 9 | index
        spte = kvm.memory.words[at]
        # Special roots hold entries without KVM's own present bit.
        present = is_shadow_present_pte(spte) or bool(frame in special and spte & PT_PRESENT_MASK)
        last = present and is_last_spte(spte, level)
        page = kvm.pages.get(frame)
        mmio = not present and is_mmio_spte(kvm.fmt, spte)
        header = None if page is None else page_header(page)
        gpa = gpa_of(machine, spte & PT_BASE_ADDR_MASK) if last else None
        gfn = None if gpa is None else gpa >> 12
        steps.append(ShadowStep(level, frame, header, index, at << 3, spte, present, last, mmio, gfn))
        if not present or last:
            break
        frame = (spte & PT_BASE_ADDR_MASK) >> 12
        level -= 1
    return tuple(steps)


def _root_level(kvm: Kvm, mmu: Mmu, frame: int) -> int:
    special = {mmu.pae_root: 3, mmu.pml4_root: 4, mmu.pml5_root: 5}
    return special[frame] if frame in special else kvm.pages[frame].level


def gpa_of(machine: Viewed, hpa: int, *, as_id: int = 0) -> int | None:
    """Return the guest-physical address behind which `hpa` lies; None if no slot shows it.

    Where slots alias, the lowest address that shows the frame.
    """
    frame = hpa >> 12
    for slot in machine.kvm.slots[as_id].slots:
        if 0 <= frame - slot.base_frame < slot.npages:
            return slot.base_gfn + frame - slot.base_frame << 12 | hpa & 0xFFF
    return None


def hpa_str(hpa: int, form: str = "x") -> str:
    """Spell a root or what it shadows; a place that was never used has neither.

    >>> hpa_str(0x7000), hpa_str(0x7000, "#x"), hpa_str(INVALID_PAGE)
    ('7000', '0x7000', 'none')
    """
    return "none" if hpa == INVALID_PAGE else f"{hpa:{form}}"


class Pages(tuple[ShadowPage, ...]):
    """Shadow pages, which show themselves one a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no shadow pages"

    def _repr_html_(self) -> str:
        rows = [
            [f"{sp.gfn:#x}", f"{sp.role:#x}", sp.role_str(), sp.root_count, sp.state_str(), f"{sp.frame:#x}"]
            for sp in self
        ]
        columns = ["gfn", "role", "in words", "held as root", "state", "frame"]
        return table_html(columns, rows, f"{len(self)} shadow pages")


class Walks(NamedTuple):
    """Where an address leads: by the guest's own tables, and by those that the processor uses.

    Attributes
    ----------
    guest : GuestWalk
    shadow : tuple of ShadowStep
        Empty while there is no root, and where the guest's tables lead nowhere and
        the tables in use start from a guest-physical address.
    """

    guest: GuestWalk
    shadow: tuple[ShadowStep, ...]

    @property
    def reached(self) -> int | None:
        """The guest-physical address that the processor reaches; None if an entry is missing there."""
        last = self.shadow[-1] if self.shadow else None
        if last is None or last.gfn is None:
            return None
        return last.gfn << 12 | self.guest.address & (1 << 12) - 1

    @property
    def _end(self) -> str:
        return "nothing is there yet" if self.reached is None else f"gpa {self.reached:#x}"

    def __repr__(self) -> str:
        lines = [f"guest   {self.guest.said}"]
        lines += [f"  l{s.level} {_table(s)} [{s.entry_index:x}] {s.entry:x}" for s in self.guest.steps]
        lines.append(f"shadow  {self.guest.address:#x} -> {self._end}")
        lines += [f"  l{s.level} {_page(s)} [{s.entry_index:x}] {s.spte:x}" for s in self.shadow]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [[s.level, _page(s), f"{s.entry_index:#x}", f"{s.spte:x}"] for s in self.shadow]
        caption = f"the tables in use, for {self.guest.address:#x} → {self._end}"
        below = table_html(["level", "table", "index", "entry"], rows, caption)
        return self.guest._repr_html_() + below


def _table(step: GuestStep) -> str:
    return "register" if step.table == -1 else f"gfn {step.table >> 12:#x}"


def _page(step: ShadowStep) -> str:
    page = step.page
    return f"frame {step.frame:#x}" if page is None else f"gfn {page.gfn:#x} role {page.role:#x}"


def walks(machine: Viewed, gva: int, *, vcpu: int = 0) -> Walks:
    """Walk the guest's tables and the tables in use, as both are now.

    Raises
    ------
    InputError
        An L2 runs under nested paging, where each step of its walk is a walk of L1's tables.
    """
    v = machine.kvm.vcpus[vcpu]
    if v.walk_mmu is v.nested_mmu:
        raise InputError("L2 runs under nested paging: mmulab.check.allowed.walks_of has its two walks")
    guest = guest_walk(machine, gva, vcpu=vcpu)
    address = guest.gpa if v.mmu.direct else gva
    return Walks(guest, () if address is None else shadow_steps(machine, address, vcpu=vcpu))
