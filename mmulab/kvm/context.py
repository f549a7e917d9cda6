"""MMU contexts: which roles they have, and when they are configured again.

A context keeps two roles. The *CPU role* says what the guest's CPU is doing and
decides whether anything has to be configured at all; the *root role* is the word
of the pages that are built for it.

*Names.* Two questions are easily confused: may the host use two-dimensional
paging at all, and do the tables of this context map guest-physical addresses
directly? The first is a property of the host: ``tdp_enabled``, here `config.tdp`.
In March 2010 the series for nested NPT made ``tdp_enabled`` a field of the
context for the second, and its author proposed ``tdp_usable`` for the global one
("[PATCH 02/18] KVM: MMU: Make tdp_enabled a mmu-context parameter"). The reply
objected that two-dimensional paging is used in both states: while L1 runs,
``root_mmu`` maps directly; from a VMRUN with nested paging on, ``guest_mmu``
shadows L1's nested tables, and the processor still walks in two dimensions; after
#VMEXIT it is ``root_mmu`` again. What changes is whether the map is direct, which
is also so with paging off and no two-dimensional paging anywhere. Hence
``direct_map`` (2.6.37), today the role's ``direct`` (347a0d0ded16, 5.19), here
:attr:`mmulab.kvm.mmu.Mmu.direct`.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_calc_cpu_role``,
``kvm_init_shadow_mmu``, ``shadow_mmu_init_context``, ``kvm_mmu_create``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.bug import Bugs
from mmulab.kvm.mmu import PT32E_ROOT_LEVEL, Mmu
from mmulab.kvm.roles.design import role_word
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.kvm.state import Kvm, Request, Vcpu, context_name
from mmulab.kvm.validity import RoleDecision, unchanged
from mmulab.x86.ept import make_ept_paging
from mmulab.x86.paging import KVM_WALK, Paging, make_paging
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)


@lru_cache(maxsize=1 << 12)
def kvm_calc_cpu_role(cr0: int, cr4: int, efer: int, *, smm: int, guest_mode: bool) -> CpuRole:
    """Work out the CPU role that these registers give."""
    if not cr0 & X86_CR0_PG:
        return CpuRole(direct=1, smm=smm, guest_mode=int(guest_mode), valid=1)
    wp, lma = bool(cr0 & X86_CR0_WP), bool(efer & EFER_LMA)
    smep, smap = bool(cr4 & X86_CR4_SMEP), bool(cr4 & X86_CR4_SMAP)
    pae, la57 = bool(cr4 & X86_CR4_PAE), lma and bool(cr4 & X86_CR4_LA57)
    long_level, legacy_level = 5 if la57 else 4, 3 if pae else 2
    level = long_level if lma else legacy_level
    return CpuRole(
        level=level,
        has_4_byte_gpte=int(not pae),
        efer_nx=int(bool(efer & EFER_NX)),
        cr0_wp=int(wp),
        smep_andnot_wp=int(smep and not wp),
        smap_andnot_wp=int(smap and not wp),
        guest_mode=int(guest_mode),
        smm=smm,
        valid=1,
        cr4_pse=int(bool(cr4 & X86_CR4_PSE)),
        cr4_pke=int(lma and bool(cr4 & X86_CR4_PKE)),
        cr4_smap=int(smap),
        cr4_smep=int(smep),
        cr4_la57=int(la57),
        efer_lma=int(lma),
    )


def base_facts(cpu: CpuRole) -> RoleFacts:
    """Return the facts of a page that the CPU role's base describes."""
    return RoleFacts(
        level=cpu.level,
        has_4_byte_gpte=bool(cpu.has_4_byte_gpte),
        quadrant=0,
        direct=bool(cpu.direct),
        access=cpu.access,
        invalid=False,
        efer_nx=bool(cpu.efer_nx),
        cr0_wp=bool(cpu.cr0_wp),
        smep_andnot_wp=bool(cpu.smep_andnot_wp),
        smap_andnot_wp=bool(cpu.smap_andnot_wp),
        ad_disabled=bool(cpu.ad_disabled),
        guest_mode=bool(cpu.guest_mode),
        passthrough=False,
        smm=cpu.smm,
    )


def mmu_is_nested(vcpu: Vcpu) -> bool:
    """Whether L2 runs on L1's nested page tables."""
    return vcpu.walk_mmu is vcpu.nested_mmu


def _cpu_role(vcpu: Vcpu, cr0: int, cr4: int, efer: int) -> CpuRole:
    role = kvm_calc_cpu_role(cr0, cr4, efer, smm=vcpu.smm, guest_mode=vcpu.guest_mode)
    return vcpu.kvm.config.kernel.validity.cpu_role(role, vcpu.cpu)


def kvm_init_mmu(vcpu: Vcpu, *, force_role_reset: bool = False) -> None:
    """Configure the context in use for the vCPU's registers, unless nothing changed.

    Without TDP the context is ``root_mmu``: at least PAE tables, and always NX,
    because KVM itself uses NX (``kvm_init_shadow_mmu``).

    Parameters
    ----------
    force_role_reset : bool
        Configure it in any case (:mod:`mmulab.kvm.validity`).
    """
    cpu_role = _cpu_role(vcpu, vcpu.cr0, vcpu.cr4, vcpu.efer)
    if mmu_is_nested(vcpu):
        init_kvm_nested_mmu(vcpu, cpu_role, force_role_reset=force_role_reset)
        return
    if vcpu.kvm.config.tdp:
        init_kvm_tdp_mmu(vcpu, cpu_role, force_role_reset=force_role_reset)
        return
    level = max(cpu_role.level, PT32E_ROOT_LEVEL)
    passthrough = _passes_through(vcpu, level, cpu_role)
    nx = bool(cpu_role.efer_nx or cpu_role.smep_andnot_wp) if vcpu.kvm.bugs.B20 else True
    facts = base_facts(cpu_role)._replace(level=level, efer_nx=nx, passthrough=passthrough)
    facts = _without_missing_bits(vcpu.kvm.bugs, facts)
    shadow_mmu_init_context(
        vcpu, vcpu.root_mmu, cpu_role, facts, _guest_paging(vcpu), force_role_reset=force_role_reset
    )


def _without_missing_bits(bugs: Bugs, facts: RoleFacts) -> RoleFacts:
    """Leave out of a root's facts what a role did not have before the fixes of B10, B11 and B12."""
    missing = {"cr0_wp": bugs.B10, "smep_andnot_wp": bugs.B11, "smap_andnot_wp": bugs.B12}
    return facts._replace(**{name: False for name, is_missing in missing.items() if is_missing})


def _passes_through(vcpu: Vcpu, level: int, cpu_role: CpuRole) -> bool:
    """Whether a root of this level, if it is a shadow page, shadows no table: the guest's have fewer levels.

    A special root is no shadow page, so above tables of a 32-bit guest it is the strategy's to say.
    """
    if vcpu.kvm.bugs.B16:
        return False
    shadow_pages = cpu_role.level >= 4 or vcpu.kvm.config.kernel.root_strategy.shadow_pages
    return shadow_pages and not cpu_role.direct and level > top_table_level(cpu_role)


def _guest_paging(vcpu: Vcpu) -> Paging:
    return _paging_of(vcpu, vcpu.cr0, vcpu.cr4, vcpu.efer)


def _paging_of(vcpu: Vcpu, cr0: int, cr4: int, efer: int) -> Paging:
    """Return how KVM walks tables of the guest in this mode.

    With TDP the processor walks them too and knows nothing of the guest's CPUID, so
    1 GiB pages are legal if the host has them (``guest_can_use_gbpages``).
    """
    cpu, config = vcpu.cpu, vcpu.kvm.config
    if config.tdp and cpu.gbpages != config.gbpages:
        cpu = replace(cpu, gbpages=config.gbpages)
    return make_paging(cr0, cr4, efer, cpu, KVM_WALK)


def _is_unchanged(
    vcpu: Vcpu, mmu: Mmu, cpu_role: CpuRole, root_role: int | None, paging: Paging, *, force_role_reset: bool
) -> bool:
    """Whether a context may stay as it is; `root_role` None: only the CPU role is compared."""
    same = not force_role_reset and unchanged(mmu, cpu_role, root_role)
    watch = vcpu.kvm.watch
    if watch is not None:
        roles = mmu.cpu_role, cpu_role, mmu.root_role, root_role
        watch(RoleDecision(context_name(vcpu, mmu), *roles, mmu.paging, paging, same))
    return same


def init_kvm_nested_mmu(vcpu: Vcpu, cpu_role: CpuRole, *, force_role_reset: bool = False) -> None:
    """Configure the context that walks L2's own tables, which nobody shadows."""
    mmu, paging, compared = vcpu.nested_mmu, _guest_paging(vcpu), cpu_role
    if vcpu.kvm.bugs.B19:  # the levels were no part of this context's role
        compared = cpu_role._replace(level=mmu.cpu_role.level, efer_lma=mmu.cpu_role.efer_lma)
    if not _is_unchanged(vcpu, mmu, compared, None, paging, force_role_reset=force_role_reset):
        mmu.cpu_role = cpu_role
        mmu.paging = paging


def kvm_init_shadow_npt_mmu(vcpu: Vcpu, cr4: int, efer: int) -> None:
    """Configure ``guest_mmu`` to shadow the NPT that an L1 with these registers gives its guest.

    NPT has the format of L1's own paging, and no CR0.WP. On a host with five
    levels the table of a 4-level L1 gets a page above it that only passes through.
    """
    cr4 &= ~X86_CR4_PKE
    cpu_role = _cpu_role(vcpu, X86_CR0_PG, cr4, efer)
    unlike = bool(cpu_role.direct) or not cpu_role.guest_mode
    warn_on(vcpu.kvm, "mmu.c:kvm_init_shadow_npt_mmu:role", unlike)
    facts = base_facts(cpu_role)
    level = kvm_mmu_get_tdp_level(vcpu)
    if vcpu.kvm.bugs.B21:
        level = max(cpu_role.level, PT32E_ROOT_LEVEL)
    facts = facts._replace(level=level, passthrough=_passes_through(vcpu, level, cpu_role))
    paging = _paging_of(vcpu, X86_CR0_PG, cr4, efer)
    shadow_mmu_init_context(vcpu, vcpu.guest_mmu, cpu_role, facts, paging)


def kvm_init_shadow_ept_mmu(vcpu: Vcpu, *, level: int, accessed_dirty: bool, execonly: bool) -> None:
    """Configure ``guest_mmu`` to shadow an EPT of L1, for which L1's registers do not matter."""
    mmu, config = vcpu.guest_mmu, vcpu.kvm.config
    warn_on(vcpu.kvm, "mmu.c:kvm_calc_shadow_ept_root_page_role:smm", bool(vcpu.smm))
    cpu_role = CpuRole(level=level, ad_disabled=int(not accessed_dirty), guest_mode=1, execonly=int(execonly))
    cpu_role = config.kernel.validity.cpu_role(cpu_role, vcpu.cpu)
    paging = make_ept_paging(level, ad=accessed_dirty, cpu=vcpu.cpu, walker=KVM_WALK, execonly=execonly)
    if _is_unchanged(vcpu, mmu, cpu_role, None, paging, force_role_reset=False):
        return
    facts = base_facts(cpu_role)
    _set_roles(mmu, cpu_role, role_word(config.kernel.design, facts, cpu_role), facts, paging)
    mmu.kind = "ept"


def kvm_mmu_get_tdp_level(vcpu: Vcpu) -> int:
    """Return the levels of two-dimensional paging's tables.

    AMD's have the host's, three on a 32-bit one (``get_npt_level``); Intel's five
    only if the guest's addresses need them.
    """
    config = vcpu.kvm.config
    if not config.x86_64:
        return PT32E_ROOT_LEVEL
    if config.vendor == "amd":
        return 5 if config.la57 else 4
    return 5 if config.la57 and vcpu.cpu.maxphyaddr > 48 else 4


def init_kvm_tdp_mmu(vcpu: Vcpu, cpu_role: CpuRole, *, force_role_reset: bool = False) -> None:
    """Configure ``root_mmu`` as a direct map of guest-physical memory."""
    mmu, kvm = vcpu.root_mmu, vcpu.kvm
    facts = base_facts(CpuRole(access=cpu_role.access, smm=cpu_role.smm, guest_mode=cpu_role.guest_mode))
    facts = facts._replace(
        level=kvm_mmu_get_tdp_level(vcpu),
        direct=True,
        cr0_wp=True,
        efer_nx=True,
        ad_disabled=not kvm.fmt.ad_enabled,
    )
    root_role = role_word(kvm.config.kernel.design, facts, cpu_role)
    paging = _guest_paging(vcpu)
    if _is_unchanged(vcpu, mmu, cpu_role, root_role, paging, force_role_reset=force_role_reset):
        return
    _set_roles(mmu, cpu_role, root_role, facts, paging)
    mmu.kind = "tdp"
    warn_on(kvm, "mmu.c:boot_cpu_is_amd:tdp", not kvm.config.tdp)


def kvm_mmu_refresh_passthrough_bits(vcpu: Vcpu, mmu: Mmu) -> None:
    """Follow CR0.WP, which a guest on two-dimensional paging may change without an exit."""
    wp = int(bool(vcpu.cr0 & X86_CR0_WP))
    if vcpu.kvm.bugs.B32 or not vcpu.kvm.config.tdp or mmu is vcpu.guest_mmu or mmu.cpu_role.cr0_wp == wp:
        return
    if mmu.cpu_role.level:
        mmu.cpu_role = mmu.cpu_role._replace(cr0_wp=wp)
        mmu.paging = _guest_paging(vcpu)


def _set_roles(mmu: Mmu, cpu_role: CpuRole, root_role: int, facts: RoleFacts, paging: Paging) -> None:
    mmu.cpu_role = cpu_role
    mmu.root_role = root_role
    mmu.root_facts = facts
    mmu.root_level = facts.level
    mmu.direct = facts.direct
    mmu.paging = paging


def shadow_mmu_init_context(
    vcpu: Vcpu,
    mmu: Mmu,
    cpu_role: CpuRole,
    facts: RoleFacts,
    paging: Paging,
    *,
    force_role_reset: bool = False,
) -> None:
    """Give a context its roles and its view of the guest's paging."""
    root_role = role_word(vcpu.kvm.config.kernel.design, facts, cpu_role)
    if _is_unchanged(vcpu, mmu, cpu_role, root_role, paging, force_role_reset=force_role_reset):
        return
    _set_roles(mmu, cpu_role, root_role, facts, paging)
    if not cpu_role.level:
        mmu.kind = "nonpaging"
    else:
        mmu.kind = "paging32" if cpu_role.has_4_byte_gpte else "paging64"
    low = mmu.root_level < PT32E_ROOT_LEVEL
    warn_on(vcpu.kvm, "mmu.c:reset_shadow_zero_bits_mask:level", low)


def kvm_mmu_create(kvm: Kvm, cpu: CpuModel) -> Vcpu:
    """Add a vCPU with its contexts; where tables are PAE's a page for the four roots goes with each."""
    vcpu = Vcpu(kvm, len(kvm.vcpus), cpu)
    kvm.vcpus.append(vcpu)
    if kvm.config.vendor == "intel":
        # Its VMCS is new on its processor, so stale contexts are flushed (vmx_vcpu_load_vmcs).
        vcpu.requests |= Request.TLB_FLUSH
    if not kvm.config.tdp or not (kvm.config.x86_64 or kvm.bugs.B34a):
        vcpu.root_mmu.pae_root = kvm.memory.alloc_frame()
    if not kvm.config.x86_64 and not kvm.bugs.B34a:
        vcpu.guest_mmu.pae_root = kvm.memory.alloc_frame()
    return vcpu
