"""The processor under a guest: accesses through whatever tables KVM has set up.

It knows nothing of shadow pages. It has a root, control registers and frames.
Without two-dimensional paging the root is KVM's shadow of the guest's tables;
with it the guest's own tables are walked, and each of their addresses, like the
final one, is translated by the nested tables at the root.

SDM 3, 29.3; APM 2, 15.25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from mmulab.kvm.config import KvmConfig
from mmulab.kvm.mmu import PT32E_ROOT_LEVEL
from mmulab.kvm.state import Vcpu
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VMFUNC, VMFUNC_FUNCTIONS
from mmulab.machine.config import HostConfig
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, make_ept_paging, raw_rwx
from mmulab.x86.insn import VMX_INSTRUCTIONS, Instruction, Mnemonic
from mmulab.x86.mode import (
    PT_PRESENT_MASK,
    VMX_EPT_DIRTY_BIT,
    is_canonical,
    paging_mode,
)
from mmulab.x86.paging import PROCESSOR, Paging, Walker, make_paging, pdpte_reserved
from mmulab.x86.pferr import ACC_ALL, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_PDPTR_BITS,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR3_PCID_NOFLUSH,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
    X86_CR4_PDPTR_BITS,
    CpuModel,
)
from mmulab.x86.walk import Walk, walk

KNOWN_WALKS = 4096
"""Addresses of which walks are known at most, before all are forgotten."""
KNOWN_WAYS = 4
"""Walks of one address that are known at most, the newest first: tables change, and change back."""


class _Known(NamedTuple):
    """A walk after which nothing is left to store, and the words that it read: the same lead the same way.

    `walk` is None where two dimensions were walked, which arrived at `pa`.
    """

    words: tuple[tuple[int, int], ...]
    pa: int
    walk: Walk | None = None


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor that the guest really runs on.

    Attributes
    ----------
    cpu : CpuModel
    walker : Walker
        Its walk, with the quirks of an emulated one.
    ad_ignores_ept_w, cr0_reloads_pdptes : bool
        Quirks, as :class:`~mmulab.machine.config.HostConfig` has them.
    known : dict
        Walks, by all that they depend on besides memory. This is no TLB: each word is read anew,
        so walks of one machine hold for others too.
    pagings : dict
        Configurations by CR0, CR4 and EFER.
    """

    cpu: CpuModel
    walker: Walker = PROCESSOR
    ad_ignores_ept_w: bool = False
    cr0_reloads_pdptes: bool = False
    known: dict[tuple[object, ...], list[_Known]] = field(default_factory=dict, compare=False, repr=False)
    pagings: dict[tuple[int, int, int], Paging] = field(default_factory=dict, compare=False, repr=False)

    def paging(self, cr0: int, cr4: int, efer: int) -> Paging:
        """Return the configuration that registers select on this processor."""
        found = self.pagings.get((cr0, cr4, efer))
        if found is None:
            found = self.pagings[cr0, cr4, efer] = make_paging(cr0, cr4, efer, self.cpu, self.walker)
        return found

    def recall(self, key: tuple[object, ...], words: Sequence[int]) -> _Known | None:
        """Return a known walk of which memory still holds what it read."""
        for found in self.known.get(key, ()):
            for at, value in found.words:
                if words[at] != value:
                    break
            else:
                return found
        return None

    def learn(self, key: tuple[object, ...], known: _Known) -> None:
        """Remember a walk."""
        ways = self.known.get(key)
        if ways is None:
            if len(self.known) >= KNOWN_WALKS:
                self.known.clear()
            ways = self.known[key] = []
        ways.insert(0, known)
        del ways[KNOWN_WAYS:]


@lru_cache(maxsize=8)
def processor_of(host: HostConfig) -> Processor:
    """Return a host's processor: one for all machines on it, because what it knows holds for each."""
    return Processor(
        CpuModel(vendor=host.vendor, maxphyaddr=host.phys_bits),
        replace(PROCESSOR, rsvd_sets_p=not host.rsvd_without_p, marks_pdptes=host.marks_pdptes),
        ad_ignores_ept_w=host.ad_ignores_ept_w,
        cr0_reloads_pdptes=host.cr0_reloads_pdptes,
    )


class ShadowFault(Exception):
    """The tables that KVM built do not allow the access: a #PF that KVM intercepts."""

    def __init__(self, va: int, error_code: int) -> None:
        super().__init__(va, error_code)
        self.va = va
        self.error_code = error_code


class GuestFault(Exception):
    """The guest's own tables do not allow the access: a #PF that goes straight to the guest."""

    def __init__(self, va: int, error_code: int) -> None:
        super().__init__(va, error_code)
        self.va = va
        self.error_code = error_code


class NestedFault(Exception):
    """The nested tables do not allow a guest-physical access.

    Attributes
    ----------
    gpa : int
    va : int or None
        The linear address being translated; None if there is none.
    error_code : int
        In page-fault form, for the access to `gpa`.
    final : bool
        `gpa` is the final address rather than that of a guest table.
    rwx : int
        Rights of the nested entries used (R, W, X in bits 0 to 2), 0 if one is not present.
    kind : int
        The access, as error-code bits.
    guest_access : int
        Rights of the linear address by the guest's tables (``ACC_*``).
    """

    def __init__(self, gpa: int, va: int | None, w: Walk, *, final: bool, guest_access: int) -> None:
        super().__init__(gpa, va)
        self.gpa = gpa
        self.va = va
        self.error_code = w.error or 0
        self.final = final
        self.rwx = raw_rwx(w.pte_access) if w.ptes[w.level] & 7 else 0
        self.kind = w.pfec
        self.guest_access = guest_access


def access(vcpu: Vcpu, host: Processor, va: int, pfec: int, *, explicit: bool = True) -> int:
    """Access `va` and return the host-physical address reached; A and D bits are set on the way.

    Parameters
    ----------
    pfec : int
        Kind of access: W, U and F bits of an error code.
    explicit : bool
        EFLAGS.AC counts.

    Raises
    ------
    ShadowFault, GuestFault, NestedFault
    """
    if vcpu.kvm.config.tdp:
        return _two_dimensional(vcpu, host, va, pfec, explicit)
    w = host_walk(vcpu, host, va, pfec, explicit=explicit)
    if w.error is not None:
        raise ShadowFault(va, w.error)
    return w.pa


# One dimension -----------------------------------------------------------------


def host_paging(vcpu: Vcpu, host: Processor) -> Paging:
    """Return the configuration the processor runs the guest with on shadow tables.

    Paging, write protection, PAE and NX are always on, whatever the guest has;
    SMEP, SMAP and PKE as KVM last loaded them (:mod:`mmulab.kvm.hw_cr4`).
    """
    cr4 = X86_CR4_PAE | vcpu.hw_cr4
    efer = EFER_NX
    level = vcpu.mmu.root_level
    if level >= 4:
        efer |= EFER_LMA | EFER_LME
        if level == 5:
            cr4 |= X86_CR4_LA57
    return host.paging(X86_CR0_PG | X86_CR0_WP, cr4, efer)


def host_walk(vcpu: Vcpu, host: Processor, va: int, pfec: int, *, explicit: bool = True) -> Walk:
    """Walk the shadow tables in use as the processor does, setting A and D."""
    memory, mmu = vcpu.kvm.memory, vcpu.mmu
    words, root, level = memory.words, mmu.root_hpa, mmu.root_level
    not_smap = vcpu.ac and explicit
    pdptes = None if level >= 4 else words[root >> 3 : (root >> 3) + 4].tolist()
    key = (root, va, pfec, not_smap, level, vcpu.hw_cr4, vcpu.pkru)
    known = host.recall(key, words)
    if known is not None and known.walk is not None:
        return known.walk
    w = walk(
        host_paging(vcpu, host),
        root,
        va,
        pfec,
        memory.load64,
        memory.store64,
        pdptes=pdptes,
        not_smap=not_smap,
        pkru=vcpu.pkru,
    )
    host.learn(key, _Known(_words_of(w, words, None if pdptes is None else root), w.pa, w))
    return w


def _words_of(w: Walk, words: Sequence[int], pae_root: int | None) -> tuple[tuple[int, int], ...]:
    """Return the words that a walk read, by their number, as it left them; all four of a PAE root."""
    top = 0 if w.pdpte is not None and w.level == w.max_level == PT32E_ROOT_LEVEL else w.max_level
    read = [(w.entry_addr[at] >> 3, w.ptes[at]) for at in range(top, w.level - 1, -1)]
    if pae_root is not None:
        read += [(at, words[at]) for at in range(pae_root >> 3, (pae_root >> 3) + 4)]
    return tuple(read)


# Two dimensions ----------------------------------------------------------------


def nested_paging(vcpu: Vcpu, host: Processor) -> Paging:
    """Return the configuration of the nested tables: NPT as the host's own paging, or EPT."""
    config = vcpu.kvm.config
    if config.vendor == "intel":
        level = vcpu.mmu.root_level
        return make_ept_paging(level, ad=_ept_ad(vcpu), cpu=host.cpu, walker=host.walker)
    level = host_level(config)
    cr4 = X86_CR4_PAE | (X86_CR4_LA57 if level == 5 else 0)
    efer = EFER_NX | (EFER_LMA | EFER_LME if level >= 4 else 0)
    return host.paging(X86_CR0_PG | X86_CR0_WP, cr4, efer)


def host_level(config: KvmConfig) -> int:
    """Return the levels of the host's own paging, and so of AMD's nested tables (APM 2, 15.25.3)."""
    if not config.x86_64:
        return 3
    return 5 if config.la57 else 4


def _ept_ad(vcpu: Vcpu) -> bool:
    """Whether the EPT pointer in use turns A/D bits on (``construct_eptp``): for L2, if L1's does."""
    nested = vcpu.nested
    return vcpu.kvm.fmt.ad_enabled and (nested is None or bool(nested.nested_pgd & VMX_EPTP_AD_ENABLE_BIT))


def _logging_store(vcpu: Vcpu, gfn: int) -> Callable[[int, int], None]:
    """Return what stores an entry of a walk to `gfn`, and logs the page where that sets D."""
    memory = vcpu.kvm.memory

    def store(hpa: int, entry: int) -> None:
        if entry & ~memory.words[hpa >> 3] & VMX_EPT_DIRTY_BIT:
            vcpu.pml_buffer.append(gfn)
        memory.store64(hpa, entry)

    return store


def _nested(
    vcpu: Vcpu,
    host: Processor,
    gpa: int,
    va: int | None,
    pfec: int,
    *,
    final: bool,
    guest_access: int = ACC_ALL,
) -> int:
    """Translate a guest-physical address."""
    w, _ = _nested_walk(vcpu, host, gpa, pfec)
    if w.error is not None:
        raise NestedFault(gpa, va, w, final=final, guest_access=guest_access)
    return w.pa


def _nested_walk(
    vcpu: Vcpu, host: Processor, gpa: int, pfec: int
) -> tuple[Walk, tuple[tuple[int, int], ...]]:
    """Walk the nested tables; return the words that were read too."""
    memory, mmu, config = vcpu.kvm.memory, vcpu.mmu, vcpu.kvm.config
    words, root, level = memory.words, mmu.root_hpa, mmu.root_level
    key: tuple[object, ...] = (root, gpa, pfec, level, config.vendor == "intel" and _ept_ad(vcpu))
    pdptes = None
    if config.vendor != "intel" and host_level(config) == PT32E_ROOT_LEVEL:
        pdptes = words[root >> 3 : (root >> 3) + 4].tolist()
    known = host.recall(key, words)
    if known is not None and known.walk is not None:
        return known.walk, known.words
    logs = config.pml and not vcpu.guest_mode  # L2 runs without a log
    store = _logging_store(vcpu, gpa >> 12) if logs else memory.store64
    w = walk(nested_paging(vcpu, host), root, gpa, pfec, memory.load64, store, pdptes=pdptes)
    read = _words_of(w, words, None if pdptes is None else root)
    host.learn(key, _Known(read, w.pa, w))
    return w, read


def _final_kind(vcpu: Vcpu, pfec: int) -> int:
    """Return the nested access for a guest's: NPT's are all user accesses, EPT's reads need R."""
    if vcpu.kvm.config.vendor == "amd":
        return pfec | PFERR_USER_MASK
    kind = pfec & ~PFERR_USER_MASK
    return kind if kind else PFERR_USER_MASK


def _two_dimensional(vcpu: Vcpu, host: Processor, va: int, pfec: int, explicit: bool) -> int:
    intel = vcpu.kvm.config.vendor == "intel"
    not_smap, ept_ad = vcpu.ac and explicit, intel and _ept_ad(vcpu)
    paging = (vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.cr3, vcpu.pkru, *vcpu.walk_mmu.pdptrs)
    key = (vcpu.mmu.root_hpa, vcpu.mmu.root_level, va, pfec, not_smap, ept_ad, paging)
    known = host.recall(key, vcpu.kvm.memory.words)
    if known is not None:
        return known.pa
    read: list[tuple[int, int]] = []
    pa = _walk_both(vcpu, host, va, pfec, not_smap, read)
    host.learn(key, _Known(tuple(dict.fromkeys(read)), pa))
    return pa


def _walk_both(
    vcpu: Vcpu, host: Processor, va: int, pfec: int, not_smap: bool, read: list[tuple[int, int]]
) -> int:
    """Walk the guest's tables, and the nested ones for each step; `read` gets the words read.

    Raises
    ------
    GuestFault, NestedFault
    """
    memory = vcpu.kvm.memory
    paging = host.paging(vcpu.cr0, vcpu.cr4, vcpu.efer)

    def nested(gpa: int, kind: int, *, final: bool = False, guest_access: int = ACC_ALL) -> int:
        w, words = _nested_walk(vcpu, host, gpa, kind)
        if w.error is not None:
            raise NestedFault(gpa, va, w, final=final, guest_access=guest_access)
        read.extend(words)
        return w.pa

    if not paging.mode.root_level:
        return nested(va, _final_kind(vcpu, pfec), final=True)
    width = paging.mode.entry_bytes
    intel = vcpu.kvm.config.vendor == "intel"
    # NPT takes every access to a guest table as a write; EPT does so where it has A/D bits.
    table_kind = PFERR_USER_MASK | (PFERR_WRITE_MASK if not intel or _ept_ad(vcpu) else 0)

    reached: dict[int, int] = {}

    def load(gpa: int, level: int) -> int:
        hpa = reached[gpa] = nested(gpa, table_kind)
        return memory.words[hpa >> 3] if width == 8 else memory.dwords[hpa >> 2]

    # With A/D bits the load already was a write; without, the store asks for W on its own.
    checked = bool(table_kind & PFERR_WRITE_MASK) or host.ad_ignores_ept_w

    def store(gpa: int, entry: int) -> None:
        if not checked:
            nested(gpa, table_kind | PFERR_WRITE_MASK)
        memory.write(reached[gpa], width, entry)

    w = walk(
        paging,
        vcpu.cr3,
        va,
        pfec,
        load,
        store,
        pdptes=vcpu.walk_mmu.pdptrs if intel and paging.mode.has_pdptes else None,
        not_smap=not_smap,
        pkru=vcpu.pkru,
    )
    if w.error is not None:
        raise GuestFault(va, w.error)
    read.extend((hpa >> 3, memory.words[hpa >> 3]) for hpa in reached.values())
    return nested(w.pa, _final_kind(vcpu, pfec), final=True, guest_access=w.pte_access)


def is_undefined(vcpu: Vcpu, insn: Instruction) -> bool:
    """Whether the processor does not know a VMX instruction, or VMFUNC is not on for L2 (SDM 3, 26.5.6.2)."""
    mnemonic = insn.mnemonic
    if mnemonic not in VMX_INSTRUCTIONS:
        return False
    if vcpu.kvm.config.vendor != "intel":
        return True
    if mnemonic is not Mnemonic.VMFUNC or not vcpu.guest_mode:
        return False
    return insn.value >= VMFUNC_FUNCTIONS or not vcpu.vmx.has_secondary(SECONDARY_EXEC_ENABLE_VMFUNC)


def load_cr(vcpu: Vcpu, host: Processor, register: int, value: int) -> bool:
    """Give a MOV to CR that is not intercepted its effect; False: #GP. KVM learns of it later.

    With PAE paging some loads read the PDPTEs (SDM 3, 4.4.1), through EPT but
    for no linear address; AMD's nested paging leaves them in memory (APM 2, 15.25.10).

    Raises
    ------
    NestedFault
    """
    if register == 3:
        if vcpu.cr4 & X86_CR4_PCIDE:
            value &= ~X86_CR3_PCID_NOFLUSH
        if value >> host.cpu.maxphyaddr:
            return False
    cr0, cr3, cr4 = vcpu.cr0, vcpu.cr3, vcpu.cr4
    registers = {0: cr0, 3: cr3, 4: cr4, register: value}
    mode = paging_mode(registers[0], registers[4], vcpu.efer)
    reloads = {
        0: X86_CR0_PDPTR_BITS & (cr0 ^ value) or host.cr0_reloads_pdptes,
        3: True,
        4: X86_CR4_PDPTR_BITS & (cr4 ^ value),
    }[register]
    if mode.has_pdptes and reloads and vcpu.kvm.config.vendor == "intel":
        base = registers[3] & mode.root_mask
        hpas = [_nested(vcpu, host, base + 8 * i, None, PFERR_USER_MASK, final=False) for i in range(4)]
        pdptes = [vcpu.kvm.memory.words[hpa >> 3] for hpa in hpas]
        reserved = pdpte_reserved(host.cpu)
        if any(p & PT_PRESENT_MASK and p & reserved for p in pdptes):
            return False
        vcpu.walk_mmu.pdptrs = pdptes
    vcpu.cr0, vcpu.cr3, vcpu.cr4 = registers[0], registers[3], registers[4]
    return True


def linear_address(vcpu: Vcpu, va: int) -> int:
    """Return `va` as the guest's code forms it: outside long mode an address has 32 bits (SDM 1, 3.3.4)."""
    return va if vcpu.efer & EFER_LMA else va & 0xFFFFFFFF


def guest_canonical(vcpu: Vcpu, va: int) -> bool:
    """Whether `va` is canonical in the guest's mode; 32-bit code cannot say anything else."""
    mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer)
    return mode.va_bits == 32 or is_canonical(va, mode)
