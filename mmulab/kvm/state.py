"""The hypervisor's state: VM, vCPU, MMU context, shadow page, slot.

Records only; the rules are in the files beside this one. Everything mutable
hangs from one :class:`Kvm`. A shadow page is named by the number of the frame
that holds its table, an spte by its host-physical address, so that state can
be copied without following references.

Source: Linux 6.1 ``arch/x86/include/asm/kvm_host.h``, ``arch/x86/kvm/mmu/mmu_internal.h``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab.events import EventSink
from mmulab.kvm.design import Derivation, RoleDesign, parity
from mmulab.kvm.role import CpuRole, RoleFacts
from mmulab.kvm.spte import SpteFormat
from mmulab.memory.host import HostMemory
from mmulab.memory.memslots import Memslot, Memslots
from mmulab.x86.paging import Paging
from mmulab.x86.regs import CpuModel

INVALID_PAGE = -1
INVALID_PAE_ROOT = 0
KVM_MMU_NUM_PREV_ROOTS = 3
KVM_MMU_ROOT_CURRENT = 1
KVM_MMU_ROOTS_ALL = (1 << 64) - 1
MMIO_GVA_ANY = -1

PteList = list[list[int]]
"""A ``struct kvm_rmap_head``: sptes in blocks of at most 14, in the kernel's order."""


def root_previous(i: int) -> int:
    """Return the bit of previous root `i` in a mask of roots (``KVM_MMU_ROOT_PREVIOUS``)."""
    return 1 << (1 + i)


class KvmMemslot(Memslot):
    """A slot with what KVM keeps for each of its gfns (``struct kvm_arch_memory_slot``).

    Attributes
    ----------
    rmap : list of dict
        ``rmap[level]``: gfn >> 9*(level-1) to the sptes that map it.
    disallow_lpage : list of dict
        ``disallow_lpage[level]``: the same key to the number of reasons against
        a huge page there (levels 2 and 3).
    gfn_track : dict
        gfn to the number of upper-level shadow pages that track writes to it.
    """

    __slots__ = ("disallow_lpage", "gfn_track", "rmap")

    def __init__(
        self,
        id: int,
        base_gfn: int,
        npages: int,
        base_frame: int,
        *,
        flags: int = 0,
        as_id: int = 0,
        host_level: int = 1,
    ) -> None:
        super().__init__(
            id, base_gfn, npages, base_frame, flags=flags, as_id=as_id, host_level=host_level
        )
        self.rmap: list[dict[int, PteList]] = [{}, {}, {}, {}]
        self.disallow_lpage: list[dict[int, int]] = [{}, {}, {}, {}]
        self.gfn_track: dict[int, int] = {}


class ShadowPage:
    """A shadow page (``struct kvm_mmu_page``): header of the table in `frame`.

    The facts of `role` are kept beside it because the MMU asks for them at
    every step; `role` alone, with `gfn`, is the page's identity.

    Attributes
    ----------
    frame, gfn, role : int
    level, quadrant, access : int
    has_4_byte_gpte, direct, passthrough, invalid, guest_mode, ad_disabled : bool
    smm : int
        Address space.
    has_gptes : bool
        It shadows a guest table (``sp_has_gptes``).
    mmu_valid_gen, root_count : int
    unsync : bool
        The guest may write its table without KVM's knowledge.
    unsync_children : int
        Entries that lead to unsync pages; `unsync_child_bitmap` says which.
    parent_ptes : PteList
        sptes that point here.
    write_flooding_count : int
    shadowed_translation : dict of int to int
        Index to gfn << 12 | access of the guest entry shadowed there.
    tdp_mmu_page, tdp_mmu_scheduled_root_to_zap : bool
        The TDP MMU made it; it is a root to be emptied.
    """

    __slots__ = (
        "access",
        "ad_disabled",
        "direct",
        "frame",
        "gfn",
        "guest_mode",
        "has_4_byte_gpte",
        "has_gptes",
        "invalid",
        "level",
        "lpage_disallowed",
        "mmu_valid_gen",
        "parent_ptes",
        "passthrough",
        "quadrant",
        "role",
        "root_count",
        "shadowed_translation",
        "smm",
        "tdp_mmu_page",
        "tdp_mmu_scheduled_root_to_zap",
        "unsync",
        "unsync_child_bitmap",
        "unsync_children",
        "write_flooding_count",
    )

    def __init__(self, frame: int, gfn: int, role: int, facts: RoleFacts, mmu_valid_gen: int) -> None:
        self.frame = frame
        self.gfn = gfn
        self.role = role
        self.level = facts.level
        self.quadrant = facts.quadrant
        self.access = facts.access
        self.has_4_byte_gpte = facts.has_4_byte_gpte
        self.direct = facts.direct
        self.passthrough = facts.passthrough
        self.invalid = facts.invalid
        self.guest_mode = facts.guest_mode
        self.ad_disabled = facts.ad_disabled
        self.smm = facts.smm
        self.has_gptes = not facts.direct and not facts.passthrough
        self.mmu_valid_gen = mmu_valid_gen
        self.root_count = 0
        self.unsync = False
        self.unsync_children = 0
        self.unsync_child_bitmap = 0
        self.parent_ptes: PteList = []
        self.write_flooding_count = 0
        self.shadowed_translation: dict[int, int] = {}
        self.lpage_disallowed = False
        self.tdp_mmu_page = False
        self.tdp_mmu_scheduled_root_to_zap = False

    def __repr__(self) -> str:
        return (
            f"ShadowPage(frame {self.frame:#x}, gfn {self.gfn:#x}, role {self.role:#x}, l{self.level}"
            f" q{self.quadrant}{' direct' if self.direct else ''}{' invalid' if self.invalid else ''}"
            f" root {self.root_count} {'unsync' if self.unsync else 'sync'})"
        )


@dataclass(slots=True)
class Mmu:
    """An MMU context (``struct kvm_mmu``).

    Attributes
    ----------
    kind : str
        Which handlers it has: ``nonpaging`` and ``tdp`` build direct maps,
        ``paging32`` and ``paging64`` shadow guest tables, ``none`` before the
        first configuration.
    cpu_role : CpuRole
    root_role : int
        Word of a root page of this context.
    root_facts : RoleFacts or None
    paging : Paging or None
        Configuration of walks of the guest's tables.
    root_hpa, root_pgd : int
        The root in use (-1: none) and the guest root it shadows.
    prev_roots : list of [pgd, hpa]
    pae_root, pml4_root, pml5_root : int
        Frames of the special roots, -1 where there is none.
    pdptrs : list of int
        PDPTE registers of a PAE guest.
    inject_page_fault : callable or None
        Takes a fault of a walk of these tables to whoever owns them; None
        queues a #PF.
    """

    kind: str = "none"
    cpu_role: CpuRole = field(default_factory=CpuRole)
    root_role: int = 0
    root_facts: RoleFacts | None = None
    root_level: int = 0
    direct: bool = False
    paging: Paging | None = None
    root_hpa: int = INVALID_PAGE
    root_pgd: int = 0
    prev_roots: list[list[int]] = field(
        default_factory=lambda: [[0, INVALID_PAGE] for _ in range(KVM_MMU_NUM_PREV_ROOTS)]
    )
    pae_root: int = -1
    pml4_root: int = -1
    pml5_root: int = -1
    pdptrs: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    inject_page_fault: Callable[[Vcpu, X86Exception], None] | None = None


class X86Exception(NamedTuple):
    """A page fault that KVM found in a walk (``struct x86_exception``).

    Attributes
    ----------
    error_code, address : int
    nested_page_fault : bool
        Not the running guest's tables are at fault but those that L1 keeps for it;
        `address` is then L2's guest-physical one.
    exit_qualification : int
        Of the EPT violation that L1 is to see.
    """

    error_code: int
    address: int
    nested_page_fault: bool = False
    exit_qualification: int = 0


class NestedGuest(ABC):
    """What a vendor's half of KVM keeps of L2 while it runs.

    Attributes
    ----------
    nested_pgd : int
        Nested CR3, or the EPT pointer, by which L1 maps L2's memory; 0: none.
    idt_vectoring : int
        Event whose delivery the last exit interrupted; 0: none.
    """

    nested_pgd: int = 0
    idt_vectoring: int = 0

    @abstractmethod
    def exit_handled(self, vcpu: Vcpu, reason: str, info1: int, info2: int) -> bool:
        """Give an exit of L2 to L1 if L1 asked for it; return whether it did."""

    @abstractmethod
    def exception_handled(self, vcpu: Vcpu) -> bool:
        """Give the exception queued for L2 to L1 if L1 asked for it."""

    @abstractmethod
    def pdptr(self, vcpu: Vcpu, index: int) -> int:
        """Return a PDPTE of PAE nested tables."""


class Request:
    """Bits of :attr:`Vcpu.requests` (``KVM_REQ_*``)."""

    MMU_FREE_OBSOLETE_ROOTS = 1 << 0
    MMU_SYNC = 1 << 1
    LOAD_MMU_PGD = 1 << 2
    TLB_FLUSH = 1 << 3
    TLB_FLUSH_CURRENT = 1 << 4
    TLB_FLUSH_GUEST = 1 << 5
    TRIPLE_FAULT = 1 << 6
    VM_DEAD = 1 << 7


@dataclass(slots=True)
class MmioAccess:
    """One access to a device, for the VMM to perform."""

    write: bool
    gpa: int
    size: int
    value: int


@dataclass(slots=True)
class Emulation:
    """What the emulator did for the instruction at hand.

    Attributes
    ----------
    result : int
        Value read from memory.
    zf : int or None
        Of ``cmpxchg8b``.
    gpa : int
        Address of the memory operand; -1 if there is none.
    mmio : list of MmioAccess
    """

    result: int = 0
    zf: int | None = None
    gpa: int = -1
    mmio: list[MmioAccess] = field(default_factory=list)


VCPU_STATS = (
    "pf_taken",
    "pf_fixed",
    "pf_emulate",
    "pf_spurious",
    "pf_fast",
    "pf_mmio_spte_created",
    "pf_guest",
    "tlb_flush",
    "invlpg",
    "insn_emulation",
    "insn_emulation_fail",
    "mmio_exits",
)
VM_STATS = (
    "mmu_shadow_zapped",
    "mmu_pte_write",
    "mmu_pde_zapped",
    "mmu_flooded",
    "mmu_recycled",
    "mmu_cache_miss",
    "mmu_unsync",
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "nx_lpage_splits",
    "max_mmu_rmap_size",
    "max_mmu_page_hash_collisions",
    "remote_tlb_flush",
    "remote_tlb_flush_requests",
)
PAGES_STAT = ("", "pages_4k", "pages_2m", "pages_1g")


class Vcpu:
    """KVM's side of a vCPU (``struct kvm_vcpu_arch``, as far as the MMU needs it).

    Attributes
    ----------
    id : int
    cr0, cr2, cr3, cr4, efer, rip : int
    cpl : int
    ac : bool
        EFLAGS.AC.
    root_mmu, guest_mmu, nested_mmu : Mmu
    mmu, walk_mmu : Mmu
        Context whose tables the processor uses; context that translates the
        guest's virtual addresses.
    requests : int
        ``Request`` bits, served at the next entry.
    mmio_gva, mmio_gfn, mmio_access, mmio_gen : int
        The last MMIO translation.
    exception : tuple of (vector, error code or None, address or None) or None
        Queued for injection at the next entry.
    emulation : Emulation
        What the emulator did last.
    fetch_fault : X86Exception or None
        Fault of the emulator's last opcode fetch.
    guest_mode : bool
        L2 runs, and the registers here are its.
    nested : NestedGuest or None
        What is kept of L2 while it runs.
    singlestep_rip : int or None
        Where the VMM single-steps from (``KVM_GUESTDBG_SINGLESTEP``).
    pdptrs_available : bool
        The PDPTEs were read since the guest last ran (``VCPU_EXREG_PDPTR``).
    stat : dict of str to int
        ``kvm_vcpu_stat``.
    """

    __slots__ = (
        "ac",
        "cpl",
        "cpu",
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "efer",
        "emulation",
        "exception",
        "fetch_fault",
        "guest_mmu",
        "guest_mode",
        "id",
        "kvm",
        "last_retry_addr",
        "last_retry_eip",
        "mmio_access",
        "mmio_gen",
        "mmio_gfn",
        "mmio_gva",
        "mmu",
        "nested",
        "nested_mmu",
        "pdptrs_available",
        "pkru",
        "requests",
        "rip",
        "root_mmu",
        "singlestep_rip",
        "smm",
        "stat",
        "walk_mmu",
    )

    def __init__(self, kvm: Kvm, id: int, cpu: CpuModel) -> None:
        self.kvm = kvm
        self.id = id
        self.cpu = cpu
        self.cr0 = 0x60000010
        self.cr2 = self.cr3 = self.cr4 = self.efer = 0
        self.rip = 0
        self.cpl = 0
        self.ac = False
        self.pkru = 0
        self.smm = 0
        self.root_mmu = Mmu()
        self.guest_mmu = Mmu()
        self.nested_mmu = Mmu()
        self.mmu = self.root_mmu
        self.walk_mmu = self.root_mmu
        self.requests = 0
        self.mmio_gva = 0
        self.mmio_gfn = 0
        self.mmio_access = 0
        self.mmio_gen = 0
        self.last_retry_eip = 0
        self.last_retry_addr = 0
        self.exception: tuple[int, int | None, int | None] | None = None
        self.emulation = Emulation()
        self.fetch_fault: X86Exception | None = None
        self.guest_mode = False
        self.nested: NestedGuest | None = None
        self.pdptrs_available = False
        self.singlestep_rip: int | None = None
        self.stat = dict.fromkeys(VCPU_STATS, 0)


@dataclass(frozen=True, slots=True)
class KvmConfig:
    """Host and module parameters, fixed for a VM's life.

    Attributes
    ----------
    vendor : {"amd", "intel"}
        kvm_amd or kvm_intel.
    host_phys_bits : int
    tdp : bool
        ``npt`` or ``ept``.
    tdp_mmu, eager_page_split, flush_on_reuse, mmio_caching, nx_huge_pages : bool
        Module parameters of those names.
    eptad, pml : bool
        kvm_intel's ``eptad`` and ``pml``.
    la57 : bool
        The host runs with 5-level paging.
    gbpages : bool
        The host's processor has 1 GiB pages.
    decode_assists : bool
        Exits tell the operands of the instruction.
    design : RoleDesign
    derivation : callable
        Quadrant rule for child pages.
    """

    vendor: str
    host_phys_bits: int
    design: RoleDesign
    spte_format: SpteFormat
    tdp: bool = False
    tdp_mmu: bool = False
    eager_page_split: bool = True
    flush_on_reuse: bool = False
    mmio_caching: bool = True
    nx_huge_pages: bool = False
    eptad: bool = True
    pml: bool = False
    la57: bool = False
    gbpages: bool = True
    decode_assists: bool = False
    derivation: Derivation = parity

    @property
    def uses_tdp_mmu(self) -> bool:
        """Whether direct maps are the TDP MMU's (``is_tdp_mmu_enabled``)."""
        return self.tdp and self.tdp_mmu


class Kvm:
    """A VM (``struct kvm``).

    Attributes
    ----------
    config : KvmConfig
    memory : HostMemory
    slots : list of Memslots
        By address space.
    vcpus : list of Vcpu
    pages : dict of int to ShadowPage
        All shadow pages, by frame, freed ones excepted.
    active_mmu_pages : dict of int to None
        Frames of the pages in use, oldest first (the kernel's list reads from
        its tail).
    page_hash : dict of int to list of int
        gfn to frames, newest first (``mmu_page_hash``).
    mmu_valid_gen : int
        0 or 1; a page of the other generation is obsolete.
    n_used_mmu_pages, n_max_mmu_pages, n_requested_mmu_pages : int
    indirect_shadow_pages : int
    tdp_mmu_roots : dict of int to None
        Frames of the TDP MMU's roots, oldest first.
    mmu_lock_shared : bool
        The TDP MMU is at work with the MMU lock held for reading.
    stat : dict of str to int
        ``kvm_vm_stat``.
    emit : callable or None
        Event sink.
    """

    __slots__ = (
        "active_mmu_pages",
        "config",
        "emit",
        "fmt",
        "indirect_shadow_pages",
        "manual_dirty_log_protect",
        "memory",
        "mmu_invalidate_in_progress",
        "mmu_lock_shared",
        "mmu_valid_gen",
        "n_max_mmu_pages",
        "n_requested_mmu_pages",
        "n_used_mmu_pages",
        "nr_memslot_pages",
        "page_hash",
        "pages",
        "shadow_root_allocated",
        "slots",
        "stat",
        "tdp_mmu_roots",
        "vcpus",
    )

    def __init__(self, config: KvmConfig, memory: HostMemory, emit: EventSink | None = None) -> None:
        self.config = config
        self.fmt = config.spte_format
        self.memory = memory
        self.emit = emit
        self.slots: list[Memslots[KvmMemslot]] = [Memslots(0), Memslots(1)]
        self.vcpus: list[Vcpu] = []
        self.pages: dict[int, ShadowPage] = {}
        self.active_mmu_pages: dict[int, None] = {}
        self.page_hash: dict[int, list[int]] = {}
        self.mmu_valid_gen = 0
        self.n_used_mmu_pages = 0
        self.n_max_mmu_pages = 0
        self.n_requested_mmu_pages = 0
        self.nr_memslot_pages = 0
        self.indirect_shadow_pages = 0
        self.shadow_root_allocated = False
        self.manual_dirty_log_protect = 0
        self.mmu_invalidate_in_progress = False
        self.mmu_lock_shared = False
        self.tdp_mmu_roots: dict[int, None] = {}
        self.stat = dict.fromkeys(VM_STATS, 0)

    def make_all_cpus_request(self, request: int) -> None:
        """Leave a request to every vCPU (``kvm_make_all_cpus_request``)."""
        for vcpu in self.vcpus:
            vcpu.requests |= request


def sptep_to_sp(kvm: Kvm, sptep: int) -> ShadowPage:
    """Return the page whose table holds the spte at host-physical `sptep`."""
    return kvm.pages[sptep >> 12]


def spte_index(sptep: int) -> int:
    """Return the index of the spte in its table."""
    return sptep >> 3 & 511


def to_shadow_page(kvm: Kvm, hpa: int) -> ShadowPage | None:
    """Return the page whose table lies at `hpa`; None for a special root."""
    return kvm.pages.get((hpa & 0xFFFFFFFFFF000) >> 12)


def vcpu_memslots(vcpu: Vcpu) -> Memslots[KvmMemslot]:
    """Return the slots of the address space the vCPU is in (``kvm_vcpu_memslots``)."""
    return vcpu.kvm.slots[vcpu.smm]


def is_obsolete_sp(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether no vCPU may use the page any more."""
    return sp.invalid or (not sp.tdp_mmu_page and sp.mmu_valid_gen != kvm.mmu_valid_gen)
