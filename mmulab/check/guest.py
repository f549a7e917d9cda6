"""A small guest for a search, as data, and what its memory holds at first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab.check.area import Area, AreaMaker
from mmulab.check.control_block import ept_pointer, vmcb, vmcs
from mmulab.kvm.vmx.vmcs12 import VMCS12_REVISION
from mmulab.machine import op as ops
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S
from mmulab.scenario.scenario import MODES, Header, Regs, Scenario
from mmulab.scenario.tables import PAGE, TABLE_FLAGS, mode_of
from mmulab.x86.ept import EPT_4LEVEL
from mmulab.x86.mode import NONPAGING
from mmulab.x86.regs import EFER_SVME, X86_CR4_VMXE

CONTROL_BLOCKS, VMXON_REGION = (0xA000, 0xB000), 0xD000
PAGES = (0x40000, 0x41000, 0x42000, 0x43000)
SLOT_PAGES = (0x200000, 0x201000, 0x400000, 0x401000)
"""Pages in slots 1 and 2, which come and go."""
MMIO = 0x900000
"""An address in no slot."""
LOW = 0x50000
SMM = 0x10000
"""Bit of a slot's number: the address space of SMM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest on a host.

    Attributes
    ----------
    name : str
    mode : str
        Paging of the guest, or of L1: a key of :data:`~mmulab.scenario.scenario.MODES`.
    modes : tuple of str
        Paging that it goes to and comes back from; with any, L2 also goes to that of L1's other guest.
    vendor : {"amd", "intel"}
    l2 : tuple of str
        Paging of L1's guests, a control block each; none: L1 has none.
    nested_paging : bool
        L1 gives them nested tables.
    vcpus : int
    large : bool
        Its memory has room for pages of 2 MiB.
    thp : bool
        And the host backs it with such.
    smm : bool
        There is an address space of SMM.
    manual_dirty : bool
        The VMM says which pages count as clean again (``KVM_CLEAR_DIRTY_LOG``).
    dirty_ring : int
        Entries of each vCPU's dirty ring; 0: there is a log for each memslot.
    host, cpu : Mapping
        Changes to the defaults of a scenario's header.
    """

    name: str
    mode: str
    vendor: str = "amd"
    modes: tuple[str, ...] = ()
    l2: tuple[str, ...] = ()
    nested_paging: bool = False
    vcpus: int = 1
    large: bool = False
    thp: bool = False
    smm: bool = False
    manual_dirty: bool = False
    dirty_ring: int = 0
    host: Mapping[str, int] = field(default_factory=dict)
    cpu: Mapping[str, int] = field(default_factory=dict)


class Slot(NamedTuple):
    """A memslot that ops delete, move and change."""

    id: int
    gpa: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A guest ready to be given ops.

    Attributes
    ----------
    guest : Guest
    scenario : Scenario
        The beginning; its steps lead to where L1 can enter L2.
    regs : Regs
        Of L1.
    l2_regs : tuple of Regs
    areas : tuple of Area
    slots : tuple of Slot
    modes : tuple of Regs
        Of L1, in each other way of paging that it goes to.
    """

    guest: Guest
    scenario: Scenario
    regs: Regs
    l2_regs: tuple[Regs, ...]
    areas: tuple[Area, ...]
    slots: tuple[Slot, ...]
    modes: tuple[Regs, ...] = ()

    @property
    def tables(self) -> tuple[int, ...]:
        """Addresses of all tables that ops change."""
        return tuple(dict.fromkeys(t for area in self.areas for level in area.tables.values() for t in level))

    def area(self, name: str) -> Area | None:
        """Return the area of this name."""
        return next((area for area in self.areas if area.name == name), None)


def width(regs: Regs) -> int:
    """Return the bytes of an entry of these registers' tables; of 8 without paging."""
    return mode_of(regs).entry_bytes


def plan(guest: Guest) -> Plan:
    """Return a guest ready to be given ops."""
    intel = guest.vendor == "intel"
    feature = {"vmx" if intel else "svm": 1} if guest.l2 else {}
    builder = ScenarioBuilder(
        guest.mode,
        vendor=guest.vendor,
        mem=0x800000 if guest.large else 0x60000,
        thp=guest.thp,
        manual_dirty=guest.manual_dirty,
        dirty_ring=guest.dirty_ring,
        vcpus=guest.vcpus,
        cpu={**feature, **guest.cpu},
        host={"virt_bits": 48, **guest.host},
        source=guest.name,
    )
    slots = _slots(builder, guest)
    maker = AreaMaker(builder)
    regs, targets = MODES[guest.mode], (*PAGES, *SLOT_PAGES)
    areas: list[Area] = []
    if mode_of(regs) is not NONPAGING:
        areas.append(maker.area("L1", mode_of(regs), targets))
        regs = regs._replace(cr3=areas[0].roots[0])
    regs = _hypervisor(guest, regs)
    builder.sregs(*regs)
    modes = tuple(_hypervisor(guest, _other_mode(maker, mode, targets, areas)) for mode in guest.modes)
    l2_regs = _nested(builder, maker, guest, regs, areas)
    if guest.nested_paging and not intel:
        for mode in {mode_of(other): None for other in modes if mode_of(other) is not mode_of(regs)}:
            areas.append(maker.area("nested", mode, targets))
    shown = (HELPER_S, *maker.frames, *PAGES, *(CONTROL_BLOCKS if guest.l2 else ()))
    for area, low in maker.lows:
        maker.show(area, low, shown, user=False)
    for number, page in enumerate((*PAGES, *(slot.offset + PAGE for slot in slots if not slot.id & SMM))):
        builder.value(4, page, 0xC0DE0000 | number << 8)
    for slot in slots[:2]:  # the first page of each can serve as a table
        for number, page in enumerate(PAGES[2:]):
            builder.value(width(regs), slot.offset + number * width(regs), page | TABLE_FLAGS)
    if guest.l2 and intel:
        builder.fill(VMXON_REGION, PAGE, 0).value(4, VMXON_REGION, VMCS12_REVISION)
        for vcpu in range(guest.vcpus):
            builder.op(ops.Vmxon(VMXON_REGION, vcpu=vcpu))
    return Plan(guest, builder.build(), regs, l2_regs, tuple(areas), slots, modes)


def _hypervisor(guest: Guest, regs: Regs) -> Regs:
    """Return registers of L1, with what lets it have guests if it has any."""
    if not guest.l2:
        return regs
    cr4, efer = (X86_CR4_VMXE, 0) if guest.vendor == "intel" else (0, EFER_SVME)
    return regs._replace(cr4=regs.cr4 | cr4, efer=regs.efer | efer)


def _other_mode(maker: AreaMaker, mode: str, targets: tuple[int, ...], areas: list[Area]) -> Regs:
    """Return L1's registers in a way of paging, of which there is an area then."""
    regs = MODES[mode]
    found = next((area for area in areas if area.mode is mode_of(regs)), None)
    if found is None:
        found = maker.area("L1", mode_of(regs), targets)
        areas.append(found)
    return regs._replace(cr3=found.roots[0])


def _slots(builder: ScenarioBuilder, guest: Guest) -> tuple[Slot, ...]:
    low, size = (0x200000, 0x200000) if guest.large else (LOW, 0x8000)
    first = 0x200000 if guest.large else LOW
    slots = [Slot(1, 0x200000, size, first), Slot(2, 0x400000, size, first + size)]
    builder.slot(0, 0, low)
    if guest.smm:
        builder.slot(SMM, 0, low)
        slots.append(Slot(SMM | 1, 0x200000, size, first + size))
    for slot in slots:
        builder.slot(slot.id, slot.gpa, slot.size, 0, slot.offset)
    return tuple(slots)


def _nested(
    builder: ScenarioBuilder,
    maker: AreaMaker,
    guest: Guest,
    regs: Regs,
    areas: list[Area],
) -> tuple[Regs, ...]:
    """Make the nested tables and the guests of L1; return their registers."""
    targets: tuple[int, ...] = (*PAGES, *SLOT_PAGES)
    root: int | None = None
    if guest.l2 and guest.nested_paging:
        intel = guest.vendor == "intel"
        nested = maker.area("nested", EPT_4LEVEL if intel else mode_of(regs), targets, ept=intel)
        if guest.mode == "57":
            maker.two_ways(nested, (PAGES[0], PAGES[1]))
        areas.append(nested)
        root = nested.roots[0]
        targets = (*(a for a in nested.addresses if a < 1 << 32), *PAGES)[:8]
    made: list[Regs] = []
    for number, l2 in enumerate(guest.l2):
        l2_regs, block = MODES[l2], CONTROL_BLOCKS[number]
        if mode_of(l2_regs) is not NONPAGING:
            l2_area = _l2_area(maker, guest, l2_regs, areas, targets)
            l2_regs = l2_regs._replace(cr3=l2_area.roots[number % 2])
        made.append(_hypervisor(guest, l2_regs))  # both vendors want the bit in L2's registers too
        if guest.vendor == "intel":
            eptp = None if root is None else ept_pointer(root, ad=bool(guest.host.get("eptad", 1)))
            vmcs(builder, block, regs, l2_regs, eptp, _pdptes(builder.build().header, l2_regs))
        else:
            vmcb(builder, block, l2_regs, root)
    return tuple(made)


def _l2_area(
    maker: AreaMaker,
    guest: Guest,
    l2_regs: Regs,
    areas: list[Area],
    targets: tuple[int, ...],
) -> Area:
    """Return L2's own area: L1's, where both page alike and L2 has no nested tables; one for each mode."""
    mode = mode_of(l2_regs)
    for area in areas:
        if area.mode is mode and (area.name == "L2" or (area.name == "L1" and not guest.nested_paging)):
            return area
    area = maker.area("L2", mode, targets)
    areas.append(area)
    return area


def _pdptes(header: Header, regs: Regs) -> tuple[int, ...]:
    """Return the entries that PAE paging has in registers; () in other modes."""
    if not mode_of(regs).has_pdptes:
        return ()
    held = {value.gpa: value.value for value in header.values}
    return tuple(held.get(regs.cr3 + 8 * number, 0) for number in range(4))
