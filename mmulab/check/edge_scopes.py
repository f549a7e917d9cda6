"""Scopes at the edge of what L1 may do: roots where no memory is, a control block that goes away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmulab.check.nested_scopes import BLOCKS, L1, L2_PAGES, L2_ROOTS, NESTED_ROOT
from mmulab.check.scope import Scope, steps
from mmulab.check.scope_guest import FULL, GVA, MEMORY, OUTSIDE, PAGES
from mmulab.kvm.svm.nested import INTERCEPT_EXCEPTION, SVM_EXITS, VMCB
from mmulab.kvm.vmx.vmcs12 import VMCS12
from mmulab.machine.config import Stubs
from mmulab.machine.stubs import l2_rip
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES
from mmulab.scenario.tables import PAGE
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, VMX_EPTP_PWL_4
from mmulab.x86.mode import (
    PT_PAGE_SIZE_MASK,
    VMX_EPT_ACCESS_BIT,
    VMX_EPT_EXECUTABLE_MASK,
    VMX_EPT_READABLE_MASK,
    VMX_EPT_RWX_MASK,
)
from mmulab.x86.pferr import PF_VECTOR
from mmulab.x86.regs import EFER_NX, X86_CR4_PCIDE

_EPT_POINTER = 6 | VMX_EPTP_PWL_4 | VMX_EPTP_AD_ENABLE_BIT
LARGE = 0x400000
"""A large page of 32-bit paging, and its size."""
BLOCK_SLOT, BLOCK_AT = 1, 0x800000
"""The slot of a control block that goes away, and where it is."""


def _scope(about: str, l1: L1, lines: list[str], depth: int) -> Scope:
    return Scope("", about, l1.builder.build(), steps(*dict.fromkeys(lines)), depth)


def nested_root_outside(**host: Any) -> Scope:
    """The root of L1's nested tables lies in no memslot."""
    l1 = L1("64", **host)
    l1.shows(PAGES, at=L2_PAGES)
    l1.guest("64", (GVA, L2_PAGES))
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!rd s 4 {GVA:x}"]
    if l1.vendor == "amd":
        word, bit = divmod(SVM_EXITS["shutdown"], 32)
        lines.append(f"hw 4 {BLOCKS[0] + 4 * word:x} {1 << bit:x}")
    for root in (OUTSIDE, NESTED_ROOT):
        if l1.vendor == "amd":
            at = BLOCKS[0] + VMCB["nested_cr3"][0]
            lines.append(f"hw 8 {at:x} {root:x}")
        else:
            lines.append(f"?vmw {VMCS12['ept_pointer'].encoding:x} {root | _EPT_POINTER:x}")
    return _scope("L1's nested root lies in no memory", l1, lines, 5)


def rights_apart(**host: Any) -> Scope:
    """A leaf of L1's EPT grants other rights than the entry above it; its neighbour can be read."""
    l1 = L1("64", **host)
    assert l1.nested is not None
    l1.shows(PAGES, at=L2_PAGES)
    leaf = PAGES + PAGE | VMX_EPT_EXECUTABLE_MASK | 6 << 3 | VMX_EPT_ACCESS_BIT
    l1.nested.put(L2_PAGES + PAGE, leaf)
    l1.guest("np")
    upper = l1.nested.entry(L2_PAGES, 2)
    below, at = l1.nested.entry(L2_PAGES) & -PAGE, l1.table(upper) | upper & 0xFFF
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, "?invept 2 0 0"]
    lines += [f"!rd s 4 {address:x}" for address in (L2_PAGES, L2_PAGES + PAGE)]
    lines += [f"?wr s 8 {at:x} {below | rights:x}" for rights in (VMX_EPT_READABLE_MASK, VMX_EPT_RWX_MASK)]
    return _scope("a nested leaf that grants nothing which its way does", l1, lines, 5)


def l2_registers(l2: str, **host: Any) -> Scope:
    """L2 is entered with a CR3 where no memory is, and with a PCID."""
    l1 = L1("64", nested=False, cpu={"pcid": 1}, **host)
    l1.guest(l2, (GVA, PAGES))
    block, cr4 = BLOCKS[0], MODES[l2].cr4
    lines = [f"vmrun {block:x}", l1.leave, f"!rd s 4 {GVA:x}"]
    lines += [f"hw 8 {block + VMCB['cr3'][0]:x} {root:x}" for root in (OUTSIDE, L2_ROOTS[0], L2_ROOTS[0] | 1)]
    lines += [f"hw 8 {block + VMCB['cr4'][0]:x} {value:x}" for value in (cr4, cr4 | X86_CR4_PCIDE)]
    return _scope("L2 begins with a CR3 and a CR4 that no MOV would take", l1, lines, 5)


def control_block_gone(**host: Any) -> Scope:
    """L1's VMCB lies in a slot that is deleted while L2 runs; L1 wants L2's page faults."""
    l1 = L1("64", nested=False, **host)
    tables = l1.guest("64", (GVA, PAGES))
    assert tables is not None
    block = BLOCKS[0]
    l1.builder.value(4, block + VMCB["rip"][0], l2_rip(Stubs(HELPER_S, HELPER_U)))
    l1.builder.slot(0, 0, MEMORY).slot(BLOCK_SLOT, BLOCK_AT, PAGE, 0, block)
    lines = [f"vmrun {BLOCK_AT:x}", l1.leave, f"!rd s 4 {GVA:x}", f"!rd s 4 {GVA + PAGE:x}"]
    lines += [f"hw 4 {block + 4 * INTERCEPT_EXCEPTION:x} {value:x}" for value in (1 << PF_VECTOR, 0)]
    lines += [f"slotdel {BLOCK_SLOT}", f"slot {BLOCK_SLOT} {BLOCK_AT:x} {PAGE:x} 0 {block:x}"]
    return _scope("L1's control block goes away while L2 runs", l1, lines, 5)


def no_execute_32(**host: Any) -> Scope:
    """A 32-bit L1 has NX off; KVM makes large pages of its nested tables not executable."""
    l1 = L1("32", mem=2 * LARGE, **host)
    l1.builder.thp = True
    assert l1.nested is not None
    l1.nested.put(L2_PAGES, LARGE | FULL | PT_PAGE_SIZE_MASK, 2)
    l1.guest("np")
    lines = [f"vmrun {BLOCKS[0]:x}", l1.leave, f"!rd s 4 {L2_PAGES:x}", f"!wr s 4 {L2_PAGES + PAGE:x} 7700"]
    lines += [f"?efer {l1.regs.efer ^ EFER_NX:x}", f"?efer {l1.regs.efer:x}"]
    return _scope("large nested pages of an L1 without NX", l1, lines, 5)


def edge_makers() -> dict[str, Callable[[], Scope]]:
    """Return what makes each scope, by its name."""
    npt: dict[str, Any] = {"npt": 1, "tdp_mmu": 0}
    ept: dict[str, Any] = {"vendor": "intel", "ept": 1, "tdp_mmu": 0, "unrestricted_guest": 1}
    made: dict[str, Callable[[], Scope]] = {
        "edge-npt-root": partial(nested_root_outside, **npt),
        "edge-ept-rights": partial(rights_apart, **ept),
        "edge-ept-root": partial(nested_root_outside, **ept),
        "edge-control-block": control_block_gone,
        "edge-nx-32": partial(no_execute_32, nx_huge_pages=1, **npt),
    }
    for l2 in ("64", "pae"):
        made[f"edge-registers-{l2}"] = partial(l2_registers, l2)
    return made
