"""The hypervisor's state: VM and vCPU.

Records, and what they answer at once: whose table, which slots, how a nested guest
leaves. The rules are in the files beside this one. Everything mutable hangs from
one :class:`Kvm`. A shadow page is named by the number of the frame that holds its
table, an spte by its host-physical address, so that state can be copied without
following references.

Source: Linux 6.1 ``arch/x86/include/asm/kvm_host.h``, ``arch/x86/kvm/mmu/mmu_internal.h``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmulab.events import EventSink, kvm_exit, kvm_nested_vmexit
from mmulab.kvm.dirty_ring import DirtyRing
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu import Mmu, X86Exception
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.stat import VCPU_STATS, VM_STATS
from mmulab.kvm.sync.oos_state import OosState
from mmulab.kvm.sync.stat import SYNC_STATS
from mmulab.kvm.validity import RoleDecision
from mmulab.kvm.vmx.vmcs12 import VmxState
from mmulab.memory.host import HostMemory
from mmulab.memory.memslots import Memslots
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.regs import CpuModel

if TYPE_CHECKING:  # the kernel that a configuration names holds a sync policy, which knows this state
    from mmulab.kvm.config import KvmConfig

MMIO_GVA_ANY = -1
Watch = Callable[[RoleDecision | MmuLockHeld], None]
TlbSink = Callable[["Vcpu", int], None]


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
    SMI = 1 << 8


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


class KvmRunError(Exception):
    """``KVM_RUN`` fails with `errno`, and would again."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class NestedGuest(ABC):
    """What a vendor's half of KVM keeps of L2 while it runs.

    Attributes
    ----------
    nested_pgd : int
        Nested CR3, or the EPT pointer, by which L1 maps L2's memory; 0: none.
    idt_vectoring : int
        Event whose delivery the last exit interrupted; 0: none.
    run_pending : bool
        L2 was entered by L1 or by RSM and has not run since: an SMI waits.
    """

    nested_pgd: int = 0
    idt_vectoring: int = 0
    run_pending: bool = False

    def vmexit_event(self, event: kvm_exit, info1: int, info2: int) -> kvm_nested_vmexit:
        """Describe an exit of L2 as ``kvm_nested_vmexit`` does; on AMD by EXITINFO1 and EXITINFO2."""
        return kvm_nested_vmexit(event.reason, info1, info2)

    @abstractmethod
    def exit_handled(self, vcpu: Vcpu, exit: kvm_nested_vmexit) -> bool:
        """Give an exit of L2 to L1 if L1 asked for it; return whether it did."""

    @abstractmethod
    def exception_handled(self, vcpu: Vcpu) -> bool:
        """Give the exception queued for L2 to L1 if L1 asked for it."""

    @abstractmethod
    def triple_fault(self, vcpu: Vcpu) -> bool:
        """Give a triple fault of L2 to L1 if L1 asked for it."""

    def smi_handled(self, vcpu: Vcpu) -> bool:
        """Give an SMI to L1 if L1 asked for it; return whether it did."""
        return False

    def enter_smm(self, vcpu: Vcpu) -> dict[str, int]:
        """Leave L2 for SMM; return what the state-save area tells RSM of it.

        Raises
        ------
        AssertionError
            VMX, in whose operation no SMI is sent (``kvm_vcpu_ioctl_smi``).
        """
        raise AssertionError("an SMI in VMX operation is refused when it is sent")

    def write_log_dirty(self, vcpu: Vcpu, gpa: int) -> bool:
        """Log for L1 that a page of L2 gets dirty; False if that cannot be now. AMD has no such log."""
        return True

    @abstractmethod
    def inject_page_fault(self, vcpu: Vcpu, fault: X86Exception) -> None:
        """Tell L1 of a fault of the tables by which it maps L2's memory."""

    @abstractmethod
    def pdptr(self, vcpu: Vcpu, index: int) -> int:
        """Return a PDPTE of PAE nested tables."""


class Vcpu:
    """KVM's side of a vCPU (``struct kvm_vcpu_arch``, as far as the MMU needs it).

    Attributes
    ----------
    id : int
    cr0, cr2, cr3, cr4, efer, rip : int
    cr3_written : bool
        CR3 was loaded, and what that obliges to sync was not looked for yet.
    hw_cr4 : int
        What the processor has of CR4's SMEP, SMAP and PKE while KVM shadows (:mod:`mmulab.kvm.hw_cr4`).
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
    vmx : VmxState
        What is kept of VMX, whoever runs.
    exit_qualification : int
        Of the last EPT violation; a walk of L1's EPT that fails makes of it what L1 gets.
    last_vmcb12_gpa : int
        Where the VMCB of L1's last VMRUN lies.
    last_vmentry_cpu : int
        The host's processor on which it last ran, always 0 here; -1 if it never did.
    gif : bool
        SVM's global interrupt flag: without it an SMI waits.
    hsave_msr : int
        MSR VM_HSAVE_PA: where L1's registers lie while L2 is interrupted by an SMI.
    singlestep_rip : int or None
        Where the VMM single-steps from (``KVM_GUESTDBG_SINGLESTEP``).
    smbase : int
        Where SMRAM lies.
    smi_pending : bool
        An SMI waits until the vCPU is out of SMM.
    smm : int
        The address space in use: 1 in system management mode.
    dirty_ring : DirtyRing or None
        None: the VM's slots have dirty bitmaps.
    pml_buffer : list of int
        gfns that the processor has logged as dirty since the last exit, oldest first.
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
        "cr3_written",
        "cr4",
        "dirty_ring",
        "efer",
        "emulation",
        "exception",
        "exit_qualification",
        "fetch_fault",
        "gif",
        "guest_mmu",
        "guest_mode",
        "hsave_msr",
        "hw_cr4",
        "id",
        "kvm",
        "last_retry_addr",
        "last_retry_eip",
        "last_vmcb12_gpa",
        "last_vmentry_cpu",
        "mmio_access",
        "mmio_gen",
        "mmio_gfn",
        "mmio_gva",
        "mmu",
        "nested",
        "nested_mmu",
        "pdptrs_available",
        "pkru",
        "pml_buffer",
        "requests",
        "rip",
        "root_mmu",
        "singlestep_rip",
        "smbase",
        "smi_pending",
        "smm",
        "stat",
        "vmx",
        "walk_mmu",
    )

    def __init__(self, kvm: Kvm, id: int, cpu: CpuModel) -> None:
        self.kvm = kvm
        self.id = id
        self.cpu = cpu
        self.cr0 = 0x60000010
        self.cr2 = self.cr3 = self.cr4 = self.efer = 0
        self.hw_cr4 = 0
        self.cr3_written = False
        self.rip = 0
        self.cpl = 0
        self.ac = False
        self.pkru = 0
        self.smbase = 0x30000
        self.smi_pending = False
        self.smm = 0
        self.root_mmu = Mmu()
        self.guest_mmu = Mmu()
        self.nested_mmu = Mmu()
        self.mmu = self.root_mmu
        self.walk_mmu = self.root_mmu
        self.requests = 0
        self.mmio_gva = self.mmio_gfn = self.mmio_access = self.mmio_gen = 0
        self.last_retry_eip = self.last_retry_addr = 0
        self.exception: tuple[int, int | None, int | None] | None = None
        self.emulation = Emulation()
        self.fetch_fault: X86Exception | None = None
        self.guest_mode = False
        self.nested: NestedGuest | None = None
        self.vmx = VmxState()
        self.exit_qualification = 0
        self.dirty_ring: DirtyRing | None = None
        self.pml_buffer: list[int] = []
        self.pdptrs_available = False
        self.gif = True
        self.hsave_msr = 0
        self.singlestep_rip: int | None = None
        self.last_vmcb12_gpa = 0
        self.last_vmentry_cpu = -1
        self.stat = dict.fromkeys(VCPU_STATS, 0)


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
    dummy_root : int
        Frame of a page of zeros, the root of a guest whose own lies outside all memslots;
        0 as long as there was none (:attr:`Behaviours.dummy_root`).
    dirty_ring_size : int
        Entries of each vCPU's dirty ring; 0: there is none.
    running_vcpu : int
        Number of the vCPU whose ioctl this is (``kvm_get_running_vcpu``); those of the VM dirty no page.
    tdp_mmu_roots : dict of int to None
        Frames of the TDP MMU's roots, oldest first.
    nx_huge_pages : bool
        The host's parameter as it is now.
    disable_nx_huge_pages : bool
        ``KVM_CAP_VM_DISABLE_NX_HUGE_PAGES``: it does not hold for this VM.
    possible_nx_huge_pages : dict of int to None
        Frames of the pages that alone stand in the way of NX huge pages, oldest first
        (``lpage_disallowed_mmu_pages``, from 6.2 on ``possible_nx_huge_pages``).
    mmu_lock_shared : bool
        The TDP MMU is at work with the MMU lock held for reading.
    split_desc_cache, split_page_header_cache : int
        What the caches for eager splitting hold; tables are taken from the third,
        ``split_shadow_page_cache``, one with each header.
    split_tables_left : int
        Pages that the host can still give for tables of eager splitting; -1: any number.
    need_resched : bool
        Another task waits for the CPU, and gets it before the next split under the lock held for writing.
    stat : dict of str to int
        ``kvm_vm_stat``.
    fired : dict of str to int
        Assertions of the kernel whose condition held, and how often, the first one first.
    assertion_counts : dict of str to (int, int) or None
        How often each assertion was reached, and how often its condition held; None: nobody counts.
    sync : SyncPolicy
    sync_stat : dict of str to int
        What the policy has done and cost (:mod:`mmulab.kvm.sync.counts`).
    sync_state : OosState or None
        What the policy remembers, if that is not with the pages.
    emit : callable or None
        Event sink.
    watch : callable or None
        Gets what no tracepoint shows: each decision whether a context is configured
        again, and each holding of the MMU lock while roots are freed.
    tlb_sink : callable or None
        Gets each flush of a vCPU's TLB as the request's bit, and 0 when it enters the guest.
    """

    __slots__ = (
        "active_mmu_pages",
        "assertion_counts",
        "behaviours",
        "bugs",
        "config",
        "dirty_ring_size",
        "disable_nx_huge_pages",
        "dummy_root",
        "emit",
        "fired",
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
        "need_resched",
        "nr_memslot_pages",
        "nx_huge_pages",
        "page_hash",
        "pages",
        "possible_nx_huge_pages",
        "running_vcpu",
        "shadow_root_allocated",
        "slots",
        "split_desc_cache",
        "split_page_header_cache",
        "split_tables_left",
        "stat",
        "sync",
        "sync_stat",
        "sync_state",
        "tdp_mmu_roots",
        "tlb_sink",
        "vcpus",
        "watch",
    )

    def __init__(self, config: KvmConfig, memory: HostMemory, emit: EventSink | None = None) -> None:
        self.config = config
        self.behaviours = config.kernel.behaviours
        self.bugs = config.kernel.bugs
        self.sync = config.kernel.sync
        self.sync_stat = dict.fromkeys(SYNC_STATS, 0)
        self.sync_state: OosState | None = self.sync.new_state()
        self.fmt = config.spte_format
        self.memory = memory
        self.emit = emit
        self.watch: Watch | None = None
        self.tlb_sink: TlbSink | None = None
        self.fired: dict[str, int] = {}
        self.assertion_counts: dict[str, tuple[int, int]] | None = None
        self.slots: list[Memslots[KvmMemslot]] = [Memslots(0), Memslots(1)]
        self.vcpus: list[Vcpu] = []
        self.pages: dict[int, ShadowPage] = {}
        self.active_mmu_pages: dict[int, None] = {}
        self.page_hash: dict[int, list[int]] = {}
        self.mmu_valid_gen = 0
        self.n_used_mmu_pages = self.n_max_mmu_pages = self.n_requested_mmu_pages = 0
        self.nr_memslot_pages = 0
        self.indirect_shadow_pages = 0
        self.dummy_root = 0
        self.shadow_root_allocated = False
        self.manual_dirty_log_protect = 0
        self.nx_huge_pages = config.nx_huge_pages
        self.disable_nx_huge_pages = False
        self.dirty_ring_size = 0
        self.running_vcpu = 0
        self.mmu_invalidate_in_progress = False
        self.mmu_lock_shared = False
        self.split_desc_cache = self.split_page_header_cache = 0
        self.split_tables_left = -1
        self.need_resched = False
        self.tdp_mmu_roots: dict[int, None] = {}
        self.possible_nx_huge_pages: dict[int, None] = {}
        self.stat = dict.fromkeys(VM_STATS, 0)

    def make_all_cpus_request(self, request: int) -> None:
        """Leave a request to every vCPU (``kvm_make_all_cpus_request``)."""
        for vcpu in self.vcpus:
            vcpu.requests |= request

    def bug(self) -> None:
        """Let the VM run no more (``kvm_vm_bugged``)."""
        self.make_all_cpus_request(Request.VM_DEAD)


def context_name(vcpu: Vcpu, mmu: Mmu) -> str:
    """Return the name by which the vCPU has this context."""
    named = (("root_mmu", vcpu.root_mmu), ("guest_mmu", vcpu.guest_mmu), ("nested_mmu", vcpu.nested_mmu))
    return next(name for name, context in named if context is mmu)


def spte_at(kvm: Kvm, sptep: int) -> int:
    """Return the spte at host-physical `sptep`."""
    return kvm.memory.words[sptep >> 3]


def sptep_to_sp(kvm: Kvm, sptep: int) -> ShadowPage:
    """Return the page whose table holds the spte at host-physical `sptep`."""
    return kvm.pages[sptep >> 12]


def spte_index(sptep: int) -> int:
    """Return the index of the spte in its table."""
    return sptep >> 3 & 511


def to_shadow_page(kvm: Kvm, hpa: int) -> ShadowPage | None:
    """Return the page whose table lies at `hpa`; None for a special root."""
    return kvm.pages.get((hpa & PT_BASE_ADDR_MASK) >> 12)


def vcpu_memslots(vcpu: Vcpu) -> Memslots[KvmMemslot]:
    """Return the slots of the address space the vCPU is in (``kvm_vcpu_memslots``)."""
    return vcpu.kvm.slots[vcpu.smm]


def is_obsolete_sp(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether no vCPU may use the page any more."""
    return sp.invalid or (not sp.tdp_mmu_page and sp.mmu_valid_gen != kvm.mmu_valid_gen)
