"""Which values CR0, CR3, CR4 and EFER may have: what the VMM or the guest sets is held to it.

Two things decide: what KVM supports on this host, and what the guest's CPUID
says. Here the host's processor has every feature that the guest's CPUID names,
except for those that KVM keeps to itself (:func:`kvm_cpu_cap_has`). Features
of which :class:`~mmulab.x86.regs.CpuModel` says nothing and that every
processor with long mode has (VME, TSC, DE, MCE, FXSR, XMM) are there; CET and
what came later is not, as in Linux 6.1.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_is_valid_cr0``, ``kvm_is_valid_cr4``,
``kvm_valid_efer``, ``kvm_is_valid_sregs``), ``x86.h`` (``__cr4_reserved_bits``),
``cpuid.c`` (``kvm_set_cpu_caps``), ``svm/svm.c`` (``svm_hardware_setup``),
``vmx/vmx.c`` (``vmx_is_valid_cr4``, ``nested_vmx_cr_fixed1_bits_update``), ``vmx/nested.h``.
"""

from __future__ import annotations

from typing import Protocol

from mmulab.kvm.state import Vcpu
from mmulab.kvm.vmx.vmcs12 import INVALID_GPA, SECONDARY_EXEC_UNRESTRICTED_GUEST
from mmulab.x86.regs import (
    EFER_FFXSR,
    EFER_LMA,
    EFER_LME,
    EFER_LMSLE,
    EFER_NX,
    EFER_SCE,
    EFER_SVME,
    X86_CR0_CD,
    X86_CR0_NE,
    X86_CR0_NW,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR4_DE,
    X86_CR4_FSGSBASE,
    X86_CR4_LA57,
    X86_CR4_MCE,
    X86_CR4_OSFXSR,
    X86_CR4_OSXMMEXCPT,
    X86_CR4_OSXSAVE,
    X86_CR4_PAE,
    X86_CR4_PCE,
    X86_CR4_PCIDE,
    X86_CR4_PGE,
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_PVI,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    X86_CR4_TSD,
    X86_CR4_UMIP,
    X86_CR4_VME,
    X86_CR4_VMXE,
    CpuModel,
)

CR4_WITHOUT_CPUID = {
    "VME": X86_CR4_VME,
    "PVI": X86_CR4_PVI,
    "TSD": X86_CR4_TSD,
    "DE": X86_CR4_DE,
    "MCE": X86_CR4_MCE,
    "PCE": X86_CR4_PCE,
    "OSFXSR": X86_CR4_OSFXSR,
    "OSXMMEXCPT": X86_CR4_OSXMMEXCPT,
    "PSE": X86_CR4_PSE,
    "PAE": X86_CR4_PAE,
    "PGE": X86_CR4_PGE,
}
"""Bits of CR4 that KVM lets a guest set whatever its CPUID says."""
CR4_FEATURES = {
    "UMIP": (X86_CR4_UMIP, "umip"),
    "LA57": (X86_CR4_LA57, "la57"),
    "VMXE": (X86_CR4_VMXE, "vmx"),
    "FSGSBASE": (X86_CR4_FSGSBASE, "fsgsbase"),
    "PCIDE": (X86_CR4_PCIDE, "pcid"),
    "OSXSAVE": (X86_CR4_OSXSAVE, "xsave"),
    "SMEP": (X86_CR4_SMEP, "smep"),
    "SMAP": (X86_CR4_SMAP, "smap"),
    "PKE": (X86_CR4_PKE, "pku"),
}
"""Bits of CR4 that take a CPUID feature, of the guest and of KVM (``__cr4_reserved_bits``)."""
VMX_CR4_FEATURES = ((X86_CR4_PSE, "pse"), (X86_CR4_PAE, "pae"), (X86_CR4_PGE, "pge"))
"""Bits of CR4 that take one besides in VMX operation (IA32_VMX_CR4_FIXED1)."""
EFER_FEATURES = {
    "FFXSR": (EFER_FFXSR, "fxsr_opt"),
    "SVME": (EFER_SVME, "svm"),
    "LME or LMA": (EFER_LME | EFER_LMA, "lm"),
    "NX": (EFER_NX, "nx"),
}
"""Bits of EFER that take a feature of the guest's CPUID (``__kvm_valid_efer``)."""
VMXON_CR0_ALWAYSON = X86_CR0_PE | X86_CR0_PG | X86_CR0_NE


class Host(Protocol):
    """What of the host and its kernel decides, as ``KvmConfig`` and ``HostConfig`` have it."""

    @property
    def vendor(self) -> str:
        """``amd`` or ``intel``."""

    @property
    def tdp(self) -> bool:
        """``npt`` or ``ept``."""

    @property
    def nested(self) -> bool:
        """Parameter of kvm_amd and kvm_intel."""

    @property
    def x86_64(self) -> bool:
        """The kernel is a 64-bit one."""


def kvm_cpu_cap_has(host: Host, feature: str) -> bool:
    """Whether KVM supports a feature that the host's processor has (``kvm_cpu_caps``).

    It has protection keys only with two-dimensional paging.
    """
    if feature == "vmx":
        return host.vendor == "intel" and host.nested
    return feature != "pku" or host.tdp


def invalid_cr4(host: Host, cpu: CpuModel, cr4: int) -> str:
    """Say which bit of CR4 may not be set and why, "" if all may (``__kvm_is_valid_cr4``)."""
    known = 0
    for bit in CR4_WITHOUT_CPUID.values():
        known |= bit
    for name, (bit, feature) in CR4_FEATURES.items():
        known |= bit
        if cr4 & bit and not getattr(cpu, feature):
            return f"CR4.{name} is set, but the guest's CPUID has {feature}=0"
        if cr4 & bit and not kvm_cpu_cap_has(host, feature):
            return f"CR4.{name} is set, but KVM has no {feature} on this host"
    return f"CR4 has bits {cr4 & ~known:x}, which KVM does not have" if cr4 & ~known else ""


def invalid_cr0(cr0: int) -> str:
    """Say why CR0 may not have a value, "" if it may (``kvm_is_valid_cr0``)."""
    if cr0 >> 32:
        return "CR0 has bits above 31"
    if cr0 & X86_CR0_NW and not cr0 & X86_CR0_CD:
        return "CR0.NW is set without CD"
    return "CR0.PG is set without PE" if cr0 & X86_CR0_PG and not cr0 & X86_CR0_PE else ""


def efer_reserved_bits(host: Host) -> int:
    """Return the bits of EFER that KVM lacks on this host.

    A 32-bit kernel's has no long mode; kvm_amd adds FFXSR, and SVME and LMSLE with ``nested``.
    """
    bits = EFER_SCE | EFER_NX
    bits |= EFER_LME | EFER_LMA if host.x86_64 else 0
    if host.vendor == "amd":
        bits |= EFER_FFXSR | (EFER_SVME | EFER_LMSLE if host.nested else 0)
    return ~bits


def kvm_valid_efer(host: Host, cpu: CpuModel, efer: int) -> bool:
    """Whether the guest may set EFER to this value."""
    missing = efer_reserved_bits(host)
    for bits, feature in EFER_FEATURES.values():
        missing |= 0 if getattr(cpu, feature) else bits
    return not efer & missing


def unknown_efer(host: Host, efer: int) -> str:
    """Say that EFER has bits on which VM entry fails, "" if not: ``KVM_SET_SREGS`` lets them pass."""
    known = EFER_SCE | EFER_NX | EFER_LME | EFER_LMA
    known |= EFER_SVME | EFER_LMSLE | EFER_FFXSR if host.vendor == "amd" else 0
    if not efer & ~known:
        return ""
    return f"EFER has bits {efer & ~known:x}, on which VM entry fails; that is not modelled"


def invalid_sregs(host: Host, cpu: CpuModel, cr0: int, cr3: int, cr4: int, efer: int) -> str:
    """Say why ``KVM_SET_SREGS`` refuses these registers, "" if it takes them (``kvm_is_valid_sregs``).

    EFER is held to nothing but long mode's rule. The code segment is a 64-bit
    one in long mode only, as the VMM of the scenarios sets it.
    """
    if efer & EFER_LME and cr0 & X86_CR0_PG:
        if not cr4 & X86_CR4_PAE:
            return "EFER.LME and CR0.PG are set without CR4.PAE"
        if not efer & EFER_LMA:
            return "EFER.LME and CR0.PG are set without EFER.LMA"
        if cr3 >> cpu.maxphyaddr:
            return f"CR3 has bits beyond the {cpu.maxphyaddr} of the guest's maxphyaddr"
    elif efer & EFER_LMA:
        return "EFER.LMA is set without both CR0.PG and EFER.LME"
    return invalid_cr4(host, cpu, cr4) or invalid_cr0(cr0)


def kvm_is_valid_cr0(vcpu: Vcpu, cr0: int) -> bool:
    """Whether CR0 may have this value, in VMX operation too (``vmx_is_valid_cr0``)."""
    if invalid_cr0(cr0):
        return False
    if not _in_vmx_operation(vcpu):
        return True
    return nested_guest_cr0_valid(vcpu, cr0) if vcpu.guest_mode else nested_host_cr0_valid(cr0)


def kvm_is_valid_cr4(vcpu: Vcpu, cr4: int) -> bool:
    """Whether CR4 may have this value; there is no VMX operation in SMM (``vmx_is_valid_cr4``)."""
    if invalid_cr4(vcpu.kvm.config, vcpu.cpu, cr4):
        return False
    if vcpu.smm and cr4 & X86_CR4_VMXE and vcpu.kvm.config.vendor == "intel":
        return False
    return not _in_vmx_operation(vcpu) or nested_cr4_valid(vcpu, cr4)


def _in_vmx_operation(vcpu: Vcpu) -> bool:
    return vcpu.vmx.vmxon_ptr != INVALID_GPA


def nested_host_cr0_valid(cr0: int) -> bool:
    """Whether CR0 is one of VMX root operation: PE, PG and NE are set."""
    return not cr0 >> 32 and not ~cr0 & VMXON_CR0_ALWAYSON


def nested_guest_cr0_valid(vcpu: Vcpu, cr0: int) -> bool:
    """Whether CR0 is one of L2: an unrestricted guest needs neither paging nor protection."""
    fixed0 = VMXON_CR0_ALWAYSON
    if vcpu.vmx.has_secondary(SECONDARY_EXEC_UNRESTRICTED_GUEST):
        fixed0 &= ~(X86_CR0_PE | X86_CR0_PG)
    return not cr0 >> 32 and not ~cr0 & fixed0


def nested_cr4_valid(vcpu: Vcpu, cr4: int) -> bool:
    """Whether CR4 is one of VMX operation, L1's and L2's alike: VMXE is set."""
    absent = 0
    for bit, feature in VMX_CR4_FEATURES:
        absent |= 0 if getattr(vcpu.cpu, feature) else bit
    if not cr4 & X86_CR4_VMXE or cr4 & absent:
        return False
    return not invalid_cr4(vcpu.kvm.config, vcpu.cpu, cr4)
