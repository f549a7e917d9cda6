"""A machine's guest as the oracle sees it: its registers, its tables and where its memory lies.

Only what the guest itself could know is read: registers, L1's control block or
VMCS, the memslots; no shadow page and nothing of a sync policy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import SvmNested
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_EPT, SECONDARY_EXEC_ENABLE_VPID
from mmulab.machine.machine import Machine
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, VMX_EPTP_PWL_5, VMX_EPTP_PWL_MASK, make_ept_paging
from mmulab.x86.paging import KVM_WALK, Paging, Walker, make_paging
from mmulab.x86.pferr import PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    X86_CR0_PG,
    X86_CR3_PCID_MASK,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
    X86_CR4_PGE,
    CpuModel,
)

HOST_SPACE = "L1"
"""The space of whoever runs on the processor itself, as far as it can know: ASID or VPID 0."""
FLUSHING_CR4 = X86_CR4_PGE | X86_CR4_PAE | X86_CR4_LA57 | X86_CR4_PCIDE
"""A change of one of these makes every processor forget everything (SDM 3, 4.10.4.1; APM 2, 5.5.2)."""
ASID = 0x58
"""Where a VMCB names the guest's ASID (APM 2, appendix B)."""


class Nested(NamedTuple):
    """L1's nested tables.

    Attributes
    ----------
    paging : Paging
    root : int
    tag : Hashable
        What names them: their root in INVEPT, on AMD with the ASID that tags what comes of them.
    table_kind : int
        What kind of access to these tables one to a table of L2's is.
    """

    paging: Paging
    root: int
    tag: Hashable
    table_kind: int

    def final_kind(self, pfec: int) -> int:
        """Return an access to the address that L2's walk arrived at, as an access to these tables.

        Every step is a user access to NPT (APM 2, 15.25.5); EPT has no users, and
        the walk takes U for a read.
        """
        if not self.paging.ept:
            return pfec | PFERR_USER_MASK
        return pfec & ~PFERR_USER_MASK or PFERR_USER_MASK


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """How a guest's addresses are translated: its registers, and where its memory lies.

    Attributes
    ----------
    paging : tuple of Paging
        By each walker that may walk: the processor, and a hypervisor that emulates it.
    cr3, pcid : int
    control : tuple of three int
        CR0, CR4 and EFER as far as a change makes the processor forget everything.
    space : Hashable
        See :class:`~mmulab.check.remembered.Forgotten`.
    hpa_of : callable
        Host-physical address of a guest-physical one; None: no memory.
    pdptes : tuple of int or None
        PDPTE registers.
    nested : Nested or None
    pkru : int
    nested_guest : bool
        L2 runs.
    address_space : int
        1 in system management mode.
    """

    paging: tuple[Paging, ...]
    cr3: int
    pcid: int
    control: tuple[int, int, int]
    space: Hashable
    hpa_of: Callable[[int], int | None]
    pdptes: tuple[int, ...] | None = None
    nested: Nested | None = None
    pkru: int = 0
    nested_guest: bool = False
    address_space: int = 0

    @property
    def name(self) -> Hashable:
        """What it is, but for the forms of paging and nested tables, which are slow to hash."""
        return (
            self.cr3,
            self.pcid,
            self.control,
            self.space,
            self.pdptes,
            self.pkru,
            self.nested_guest,
            self.address_space,
        )


def registers(vcpu: Vcpu) -> tuple[object, ...]:
    """Return what a vCPU's :class:`World` follows from, while no op changes more: cheap to compare."""
    nested = vcpu.nested
    return (
        vcpu.cr0,
        vcpu.cr3,
        vcpu.cr4,
        vcpu.efer,
        vcpu.pkru,
        vcpu.smm,
        vcpu.guest_mode,
        id(vcpu.cpu),
        0 if nested is None else nested.nested_pgd,
        *vcpu.walk_mmu.pdptrs,
    )


def world_of(machine: Machine, vcpu: int = 0) -> World:
    """Return how the vCPU's running guest translates addresses now."""
    v = machine.kvm.vcpus[vcpu]
    # Under nested paging the processor walks alone: what CPUID takes from the guest, it has.
    host = machine.processor.cpu if machine.kvm.config.tdp else None
    space = _space(machine, v)
    return World(
        paging=_forms(v.cr0, v.cr4, v.efer, v.cpu, machine.processor.walker, host),
        control=(v.cr0 & X86_CR0_PG, v.cr4 & FLUSHING_CR4, v.efer & EFER_LMA),
        cr3=v.cr3,
        pcid=v.cr3 & X86_CR3_PCID_MASK if v.cr4 & X86_CR4_PCIDE else 0,
        space=space,
        hpa_of=_hpa_of(machine, v.smm),
        address_space=v.smm,
        pdptes=_pdptes(machine, v),
        nested=_nested_tables(v, space),
        pkru=v.pkru,
        nested_guest=bool(v.guest_mode),
    )


@lru_cache(maxsize=4096)
def _forms(
    cr0: int, cr4: int, efer: int, cpu: CpuModel, walker: Walker, host: CpuModel | None
) -> tuple[Paging, ...]:
    own = replace(walker, sets_ad=False)
    models = [(cpu, KVM_WALK), (cpu, own)]
    if host is not None:
        models.append((host, own))
    forms = [make_paging(cr0, cr4, efer, model, by) for model, by in models]
    return tuple(dict.fromkeys(replace(form, marks_pdptes=False) for form in forms))


def _hpa_of(machine: Machine, address_space: int) -> Callable[[int], int | None]:
    every = machine.kvm.slots

    def hpa_of(gpa: int) -> int | None:
        gfn = gpa >> 12
        slot = every[address_space].lookup(gfn)
        return None if slot is None else slot.base_frame + gfn - slot.base_gfn << 12 | gpa & 0xFFF

    return hpa_of


def _pdptes(machine: Machine, v: Vcpu) -> tuple[int, ...] | None:
    """Return the PDPTE registers; under AMD's nested paging, L0's too, there are none (APM 2, 15.25.10)."""
    amd = machine.kvm.config.vendor == "amd"
    npt = machine.kvm.config.tdp or (isinstance(v.nested, SvmNested) and v.nested.npt)
    return None if amd and npt else tuple(v.walk_mmu.pdptrs)


def _space(machine: Machine, v: Vcpu) -> Hashable:
    if not v.guest_mode:
        return HOST_SPACE
    if isinstance(v.nested, SvmNested):
        return "asid", machine.kvm.slots[0].read(machine.memory.bytes, v.nested.vmcb12_gpa + ASID, 4)
    if v.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID):
        return "vpid", v.vmx.get("virtual_processor_id")
    return HOST_SPACE


def _nested_tables(vcpu: Vcpu, space: Hashable) -> Nested | None:
    """Return the tables by which L1 maps the memory of its guest; None: none are in use."""
    nested = vcpu.nested
    if isinstance(nested, SvmNested):
        paging = make_paging(X86_CR0_PG, nested.l1["cr4"], nested.l1["efer"], vcpu.cpu, KVM_WALK)
        tag, kind = (space, nested.nested_pgd >> 12), PFERR_USER_MASK | PFERR_WRITE_MASK
        return Nested(paging, nested.nested_pgd, tag, kind) if nested.npt else None
    if nested is None or not vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT):
        return None
    eptp = nested.nested_pgd
    level = 5 if eptp & VMX_EPTP_PWL_MASK == VMX_EPTP_PWL_5 else 4
    ad = bool(eptp & VMX_EPTP_AD_ENABLE_BIT)
    # With A/D bits every access to a table of L2's counts as a write (SDM 3, 29.3.5).
    kind = PFERR_USER_MASK | (PFERR_WRITE_MASK if ad else 0)
    return Nested(make_ept_paging(level, ad=ad, cpu=vcpu.cpu, walker=KVM_WALK), eptp, eptp >> 12, kind)
