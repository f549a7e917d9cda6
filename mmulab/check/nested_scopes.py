"""Scopes of a guest with guests of its own: nested tables, levels that are made up, two guests in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from mmulab.check.control_block import VMCB_TLB_CONTROL, ept_pointer, vmcb, vmcs
from mmulab.check.scope import Scope, steps
from mmulab.check.scope_guest import (
    FULL,
    GVA,
    MEMORY,
    OUTSIDE,
    PAGES,
    ROOT,
    SUPERVISOR,
    TABLE_VA,
    as_text,
    guest,
)
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VPID, VMCS12, VMCS12_REVISION
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs
from mmulab.scenario.tables import PAGE, EptTables, Tables, mode_of
from mmulab.x86.ept import EPT_4LEVEL
from mmulab.x86.mode import PT_PRESENT_MASK
from mmulab.x86.regs import EFER_SVME, X86_CR4_LA57, X86_CR4_PCIDE, X86_CR4_VMXE

BLOCKS, VMXON_REGION = (0xA000, 0xB000), 0xD000
NESTED_ROOT, NESTED_TABLES = 0x12000, 0xB0000
L2_ROOTS, L2_TABLES = (0x13000, 0x14000), (0xC0000, 0xD0000)
L2_PAGES = 0x60000000
"""Where the nested tables show the data pages to L2."""
TWO_WAYS = 0x3000
"""An address of L2 that 4- and 5-level nested tables lead to other pages."""


class L1:
    """A hypervisor in the making: its own tables, and those that it gives its guests.

    Parameters
    ----------
    mode : str
        Of L1.
    vendor : {"amd", "intel"}
    nested : bool
        It has nested tables, which show helper and data pages.
    cpu : dict of str to int, optional
    **host : int
    """

    def __init__(
        self,
        mode: str,
        *,
        vendor: str = "amd",
        nested: bool = True,
        cpu: dict[str, int] | None = None,
        **host: int,
    ) -> None:
        feature = "svm" if vendor == "amd" else "vmx"
        cpu = {feature: 1, **(cpu or {})}
        self.builder, self.own, self.regs = guest(mode, vendor=vendor, cpu=cpu, thp=False, **host)
        self.vendor, self._shown = vendor, 0
        cr4, efer = (0, EFER_SVME) if vendor == "amd" else (X86_CR4_VMXE, 0)
        self.regs = self.regs._replace(cr4=self.regs.cr4 | cr4, efer=self.regs.efer | efer)
        self.builder.sregs(*self.regs)
        self.nested: Tables | None = self._nested_tables() if nested else None
        if vendor == "intel":
            self.builder.fill(VMXON_REGION, PAGE, 0).value(4, VMXON_REGION, VMCS12_REVISION)
            self.builder.op(ops.Vmxon(VMXON_REGION))

    def _nested_tables(self) -> Tables:
        amd = self.vendor == "amd"
        mode, kind = (mode_of(self.regs), Tables) if amd else (EPT_4LEVEL, EptTables)
        tables = kind(self.builder, mode, NESTED_ROOT, count(NESTED_TABLES, PAGE))
        tables.identity(HELPER_S, HELPER_U)
        return tables

    def shows(self, *pages: int, at: int | None = None) -> None:
        """Let the nested tables show pages at their own addresses, or one of them elsewhere."""
        if self.nested is not None:
            for page in pages:
                self.nested.map(page if at is None else at, page)

    def table(self, address: int) -> int:
        """Map a table for L1 to write, and return where."""
        self.own.put(TABLE_VA + self._shown, address & -PAGE | FULL)
        self._shown += PAGE
        return TABLE_VA + self._shown - PAGE

    def guest(self, mode: str, *pages: tuple[int, int], number: int = 0) -> Tables | None:
        """Give L1 a guest, whose tables lead from the first to the second address of each pair.

        Parameters
        ----------
        mode : str
            Its paging; ``np`` has no tables, and None is returned.
        *pages : tuple of two int
        number : int
            Which of L1's two.
        """
        regs, tables = MODES[mode], None
        if mode != "np":
            regs = regs._replace(cr3=L2_ROOTS[number])
            paging = mode_of(regs)
            tables = Tables(self.builder, paging, regs.cr3, count(L2_TABLES[number], PAGE))
            tables.put(HELPER_S, HELPER_S | SUPERVISOR)
            tables.identity(HELPER_U)
            for address, target in pages:
                tables.put(address, target | FULL)
            self.shows(*tables.pages)
        self._control_block(BLOCKS[number], regs, tables)
        return tables

    def _control_block(self, at: int, regs: Regs, tables: Tables | None) -> None:
        if self.vendor == "amd":
            vmcb(self.builder, at, regs, None if self.nested is None else NESTED_ROOT)
            return
        eptp = None if self.nested is None else ept_pointer(NESTED_ROOT, ad=True)
        pdptes: tuple[int, ...] = ()
        if tables is not None and tables.mode.has_pdptes:
            held = {value.gpa: value.value for value in self.builder.build().header.values}
            pdptes = tuple(held.get(regs.cr3 + 8 * number, 0) for number in range(4))
        vmcs(self.builder, at, self.regs, regs, eptp, pdptes)

    @property
    def leave(self) -> str:
        """The op by which L2 goes back to L1."""
        return "!vmmcall" if self.vendor == "amd" else "!vmcall"


def _scope(about: str, builder: ScenarioBuilder, lines: list[str], depth: int) -> Scope:
    return Scope("", about, builder.build(), steps(*dict.fromkeys(lines)), depth)


def _entries(width: int, *entries: tuple[int, int]) -> list[str]:
    return [f"?{as_text('wr s', width, at, value)}" for at, value in entries]


def nested_tables(l1_mode: str, l2: str, **host: Any) -> Scope:
    """L1 changes a leaf of its nested tables, and writes their root again, between two runs of L2."""
    l1 = L1(l1_mode, **host)
    l1.shows(PAGES, at=L2_PAGES)
    gva = L2_PAGES if l2 == "np" else GVA
    l1.guest(l2, (GVA, L2_PAGES))
    assert l1.nested is not None
    leaf, root = l1.nested.entry(L2_PAGES), NESTED_ROOT
    width, mode = l1.nested.mode.entry_bytes, l1.nested.mode
    low = l1.nested.entry(HELPER_S, mode.root_level - 1) & -PAGE
    link = PT_PRESENT_MASK if mode.has_pdptes else l1.nested.table_flags
    leaf_at, root_at = l1.table(leaf) | leaf & 0xFFF, l1.table(root)
    ends = l1.nested.leaf_flags
    writes = _entries(width, *((leaf_at, page | ends) for page in (PAGES + PAGE, PAGES)), (leaf_at, 0))
    writes += _entries(width, (root_at, low | link))
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!rd s 4 {gva:x}", f"!wr s 4 {gva:x} 7700", *writes]
    if l1.vendor == "intel":
        lines.append("?invept 2 0 0")
    return _scope("L1 writes its nested tables between two runs of L2", l1.builder, lines, 6)


def nested_shadow(l1_mode: str, l2: str, **host: Any) -> Scope:
    """L2 has tables of its own and no nested ones; L1 writes them too."""
    l1 = L1(l1_mode, nested=False, **host)
    tables = l1.guest(l2, (GVA, PAGES))
    assert tables is not None
    entry, width = tables.entry(GVA), tables.mode.entry_bytes
    tables.put(TABLE_VA, entry & -PAGE | FULL)
    at = l1.table(entry) | entry & 0xFFF
    values = (PAGES + PAGE | FULL, PAGES | FULL)
    writes = [as_text("wr s", width, at, value) for value in values]  # at the same address in L1 and L2
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!rd s 4 {GVA:x}", f"!wr u 4 {GVA:x} 7700", *writes]
    lines += [f"!invlpg {GVA:x}", f"!cr3 {L2_ROOTS[0]:x}", f"?cr3 {ROOT:x}"]
    return _scope("L2's own tables, written by L2 and by L1", l1.builder, lines, 6)


def nested_logged(**host: Any) -> Scope:
    """L1's and L2's writes to one page of a memslot that is logged; L2 has no nested tables."""
    l1 = L1("64", nested=False, **host)
    l1.guest("64", (GVA, PAGES))
    l1.own.put(GVA, PAGES | FULL)
    l1.builder.slot(0, 0, MEMORY, KVM_MEM_LOG_DIRTY_PAGES, 0)
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!wr s 4 {GVA:x} 7700", f"?wr s 4 {GVA:x} 7700", "getdirty 0"]
    return _scope("writes of L1 and of L2 to a page that is logged", l1.builder, lines, 5)


def nested_two(l1_mode: str, first: str, second: str, *, nested: bool = True, **host: Any) -> Scope:
    """Two guests of other paging in turn; each reads memory, and a device, which KVM emulates."""
    l1 = L1(l1_mode, nested=nested, **host)
    l1.shows(PAGES, at=L2_PAGES if nested else None)
    data, device = (L2_PAGES if nested else PAGES), GVA + PAGE
    for number, mode in enumerate((first, second)):
        l1.guest(mode, (GVA, data), (device, OUTSIDE), number=number)
    if nested:
        l1.shows(OUTSIDE)
    lines = [f"vmrun {block:x}" for block in BLOCKS]
    lines += [l1.leave, *(f"!rd {who} 4 {GVA:x}" for who in "su")]
    lines += [f"!rd s 4 {device:x}", f"!wr s 4 {device:x} 7700"]
    return _scope("two guests of other paging in turn", l1.builder, lines, 6)


def nested_pcid(**host: Any) -> Scope:
    """L2 without a VPID, with two roots under PCIDs that it loads without a flush; one is in use."""
    l1 = L1("64", vendor="intel", nested=False, cpu={"pcid": 1, "invpcid": 1}, **host)
    tables = l1.guest("64", (GVA, PAGES))
    assert tables is not None
    entry, block = tables.entry(GVA), BLOCKS[0]
    other = Tables(l1.builder, tables.mode, L2_ROOTS[1], count(L2_TABLES[1], PAGE))
    other.put(HELPER_S, HELPER_S | SUPERVISOR)
    other.identity(HELPER_U)
    other.put(GVA, entry & -PAGE | FULL, 2)
    tables.put(TABLE_VA, entry & -PAGE | FULL)
    held = {value.gpa: value.value for value in l1.builder.build().header.values}
    for name, off, on in (
        ("secondary_vm_exec_control", SECONDARY_EXEC_ENABLE_VPID, 0),
        ("guest_cr4", 0, X86_CR4_PCIDE),
    ):
        place = block + VMCS12[name].offset
        l1.builder.value(4, place, held[place] & ~off | on)
    at = l1.table(entry) | entry & 0xFFF
    loads = [f"!cr3 {1 << 63 | root | pcid:x}" for pcid, root in enumerate(L2_ROOTS)]
    l1.builder.op(f"vmrun {block:x}").op(loads[1]).op(f"rd s 4 {GVA:x}")
    lines = [f"vmrun {block:x}", l1.leave, f"!rd s 4 {GVA:x}", as_text("wr s", 8, at, PAGES + PAGE | FULL)]
    return _scope("L2 without a VPID switches between two PCIDs", l1.builder, lines + loads, 6)


def nested_la57(**host: Any) -> Scope:
    """L1 changes CR4.LA57 and keeps its nested root, whose tables hold in both modes."""
    l1 = L1("57", **host)
    builder, nested, regs = l1.builder, l1.nested, l1.regs
    l1.guest("np")
    assert nested is not None
    own4 = l1.own.entry(HELPER_S, 4) & -PAGE
    # Entry 0 leads on in each of four tables; the fourth is one of leaves to 4-level paging, the fifth to 5.
    fourth, fifth = (nested.entry(HELPER_S, level) & -PAGE for level in (2, 1))
    for at, page in ((fourth, PAGES), (fifth, PAGES + PAGE)):
        for helper in (HELPER_S, HELPER_U):
            builder.value(8, at + (helper >> 9), helper | FULL)
        builder.value(8, at + (TWO_WAYS >> 9), page | FULL)
    builder.value(1, BLOCKS[0] + VMCB_TLB_CONTROL, 1)
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!rd s 4 {TWO_WAYS:x}", f"!wr s 4 {TWO_WAYS:x} 7700"]
    for cr3, cr4 in ((own4, regs.cr4 & ~X86_CR4_LA57), (ROOT, regs.cr4)):
        lines.append(f"?sregs {regs.cr0:x} {cr3:x} {cr4:x} {regs.efer:x}")
    return _scope("L1 changes its own levels under one nested root", builder, lines, 7)


def nested_makers() -> dict[str, Callable[[], Scope]]:
    """Return what makes each scope, by its name."""
    made: dict[str, Callable[[], Scope]] = {}
    for l0, levels in ((5, 57), (4, 48)):
        npt: dict[str, Any] = {"npt": 1, "tdp_mmu": 0, "virt_bits": levels}
        for l1 in ("64", "pae", "32"):
            made[f"npt-{l1}-np-l0-{l0}"] = partial(nested_tables, l1, "np", **npt)
    for l2 in ("32", "pae", "64"):
        made[f"npt-64-{l2}"] = partial(nested_tables, "64", l2, npt=1, tdp_mmu=0)
        made[f"nested-shadow-64-{l2}"] = partial(nested_shadow, "64", l2)
        ept: dict[str, Any] = {"vendor": "intel", "ept": 1, "tdp_mmu": 0, "unrestricted_guest": 1}
        made[f"ept-64-{l2}"] = partial(nested_tables, "64", l2, **ept)
    made["ept-64-np"] = partial(nested_tables, "64", "np", **ept)
    for first, second in (("pae", "64"), ("32", "64"), ("32", "pae")):
        made[f"npt-two-{first}-{second}"] = partial(nested_two, "64", first, second, npt=1, tdp_mmu=0)
        made[f"nonpt-two-{first}-{second}"] = partial(
            nested_two, "64", first, second, nested=False, npt=1, tdp_mmu=0
        )
    made["npt-la57"] = partial(nested_la57, npt=1, tdp_mmu=0)
    made["nested-pcid"] = nested_pcid
    for name, logged in (("ept-pml", {"ept": 1, "pml": 1}), ("ept", {"ept": 1, "pml": 0}), ("shadow", {})):
        made[f"nested-logged-{name}"] = partial(nested_logged, vendor="intel", **logged)
    made["nested-logged-npt"] = partial(nested_logged, npt=1)
    return made
