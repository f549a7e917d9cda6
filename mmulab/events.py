"""Everything observable: the event types, under the kernel's own names.

An event is a small tuple with named fields. Tracepoints of the groups
``kvmmmu`` (Linux 6.1 ``arch/x86/kvm/mmu/mmutrace.h``) and ``kvm``
(``arch/x86/kvm/trace.h``) keep their names and their fields' names; the entry
of a function that has no tracepoint is an event of the function's name, as a
kprobe would show it. Fields hold raw integers: a role is its word, an address
a host- or guest-physical number, access kinds are error-code bits.

An *event sink* is any callable that takes one event. Code that can be observed
keeps it in a local and tests it::

    if emit is not None:
        emit(ev.kvm_mmu_walker_error(code))
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.event import Event as Event  # noqa: PLC0414 - this module has them too
from mmulab.event import EventSink as EventSink  # noqa: PLC0414 - this module has them too
from mmulab.event import PageEvent as PageEvent  # noqa: PLC0414 - this module has them too

# kvmmmu: the tracepoints of mmutrace.h ---------------------------------------


class kvm_mmu_pagetable_walk(NamedTuple):
    """KVM starts a software walk of `addr`; `pferr` is the kind of access."""

    addr: int
    pferr: int


class kvm_mmu_paging_element(NamedTuple):
    """The walk read `pte` from a table of `level`."""

    pte: int
    level: int


class kvm_mmu_set_accessed_bit(NamedTuple):
    """KVM sets A in the guest entry at `gpa`."""

    gpa: int


class kvm_mmu_set_dirty_bit(NamedTuple):
    """KVM sets D in the guest entry at `gpa`."""

    gpa: int


class kvm_mmu_walker_error(NamedTuple):
    """The walk ends in a page fault of error code `pferr`."""

    pferr: int


class kvm_mmu_get_page(NamedTuple):
    """A shadow page was found or created; the fields are its state afterwards."""

    gfn: int
    role: int
    mmu_valid_gen: int
    root_count: int
    unsync: bool
    created: bool


class kvm_mmu_sync_page(NamedTuple):
    """A shadow page stops being out of sync."""

    gfn: int
    role: int
    mmu_valid_gen: int
    root_count: int
    unsync: bool


class kvm_mmu_unsync_page(NamedTuple):
    """A shadow page is about to go out of sync."""

    gfn: int
    role: int
    mmu_valid_gen: int
    root_count: int
    unsync: bool


class kvm_mmu_prepare_zap_page(NamedTuple):
    """A shadow page is about to be zapped."""

    gfn: int
    role: int
    mmu_valid_gen: int
    root_count: int
    unsync: bool


class mark_mmio_spte(NamedTuple):
    """An MMIO spte is written at `sptep` (a host-physical address)."""

    sptep: int
    gfn: int
    access: int
    gen: int


class check_mmio_spte(NamedTuple):
    """An MMIO spte's generation is compared with the memslots'."""

    spte: int
    kvm_gen: int
    spte_gen: int


class handle_mmio_page_fault(NamedTuple):
    """A fault on an MMIO spte goes to the emulator; `addr` is 0 for a direct map."""

    addr: int
    gfn: int
    access: int


class fast_page_fault(NamedTuple):
    """A fault was tried without the MMU lock; `ret` is a ``RET_PF_*``.

    `sptep` is -1 where the kernel's is NULL.
    """

    cr2_or_gpa: int
    error_code: int
    sptep: int
    old_spte: int
    new_spte: int
    ret: int


class kvm_mmu_zap_all_fast(NamedTuple):
    """All shadow pages become obsolete; the generation is the one before the flip."""

    mmu_valid_gen: int
    mmu_used_pages: int


class kvm_mmu_set_spte(NamedTuple):
    """A leaf spte was written at `sptep` (a host-physical address).

    `u` is -1 where the format has no user bit; `r`, `x` as KVM computes them.
    """

    gfn: int
    spte: int
    level: int
    sptep: int
    r: bool
    x: bool
    u: int


class kvm_mmu_spte_requested(NamedTuple):
    """The fault wants `gfn` mapped to `pfn` at `level`."""

    gfn: int
    pfn: int
    level: int


class kvm_tdp_mmu_spte_changed(NamedTuple):
    """The TDP MMU changed an spte."""

    as_id: int
    gfn: int
    level: int
    old_spte: int
    new_spte: int


class kvm_mmu_split_huge_page(NamedTuple):
    """A huge spte was split before a fault asked for it."""

    gfn: int
    spte: int
    level: int
    errno: int


# kvm: the tracepoints of trace.h ---------------------------------------------


class kvm_exit(NamedTuple):
    """The processor left the guest.

    `reason` is the lower-case name without vendor prefix (``pf``, ``npf``,
    ``ept_violation``, ``write_cr3``). Of the rest only what that exit has is
    not None: `error_code` and `address` of a #PF or #NPF, `qualification` of a
    VMX exit (SVM: EXITINFO1 of an I/O or MSR exit), `idt_vectoring` (SVM:
    EXITINTINFO) of an exit during delivery.
    """

    reason: str
    guest_rip: int
    error_code: int | None = None
    address: int | None = None
    qualification: int | None = None
    idt_vectoring: int | None = None


class kvm_page_fault(NamedTuple):
    """KVM handles a page fault."""

    guest_rip: int
    fault_address: int
    error_code: int


class kvm_inj_exception(NamedTuple):
    """An exception is put into the guest; `error_code` None where it has none."""

    exception: int
    error_code: int | None
    reinjected: bool


class kvm_emulate_insn(NamedTuple):
    """The emulator decoded an instruction (`insn`: its bytes in hex), or failed to."""

    rip: int
    len: int
    insn: str
    failed: bool


class kvm_mmio(NamedTuple):
    """A device access: `type` is ``read``, ``write`` or ``unsatisfied-read``."""

    type: str
    len: int
    gpa: int


class kvm_msr(NamedTuple):
    """RDMSR or WRMSR."""

    write: bool
    ecx: int
    data: int
    exception: bool


class kvm_cr(NamedTuple):
    """A decoded control-register access (VMX)."""

    rw: bool
    cr: int
    val: int


class kvm_smm_transition(NamedTuple):
    """The vCPU enters or leaves system management mode."""

    smbase: int
    entering: bool


class kvm_unmap_hva_range(NamedTuple):
    """The host unmaps a range of the VMM's memory (MMU notifier)."""


class kvm_age_hva(NamedTuple):
    """The host asks whether a range of the VMM's memory was accessed (``clear_flush_young``)."""


class kvm_dirty_ring_push(NamedTuple):
    """A page is added to the dirty ring of vCPU `ring`; the counts are those afterwards."""

    ring: int
    dirty_index: int
    reset_index: int
    slot: int
    offset: int


class kvm_dirty_ring_reset(NamedTuple):
    """The entries of the dirty ring of vCPU `ring` that the VMM took are given back."""

    ring: int
    dirty_index: int
    reset_index: int


class kvm_dirty_ring_exit(NamedTuple):
    """A vCPU whose dirty ring is all but full does not run."""

    vcpu_id: int


class kvm_nested_vmenter(NamedTuple):
    """L1 enters L2; `nested_pgd` is its EPTP or nested CR3 if `tdp`, else the guest's CR3."""

    vmcb: int
    nested_rip: int
    tdp: bool
    nested_pgd: int


class kvm_nested_vmenter_failed(NamedTuple):
    """A VM entry of L1 failed its checks."""

    err: int


class kvm_nested_vmexit(NamedTuple):
    """The processor left L2.

    `exit_int_info` and `exit_int_info_err` are None where the exit has none.
    """

    reason: str
    exit_info1: int
    exit_info2: int
    exit_int_info: int | None = None
    exit_int_info_err: int | None = None


class kvm_nested_vmexit_inject(NamedTuple):
    """L1 is told of an exit of L2."""

    reason: str
    exit_info1: int
    exit_info2: int
    exit_int_info: int | None = None
    exit_int_info_err: int | None = None


# Function entries ------------------------------------------------------------


class kvm_mmu_load(NamedTuple):
    """Entry of ``kvm_mmu_load``: a root is wanted."""


class kvm_mmu_new_pgd(NamedTuple):
    """Entry of ``kvm_mmu_new_pgd``."""

    new_pgd: int


class kvm_mmu_free_roots(NamedTuple):
    """Entry of ``kvm_mmu_free_roots``; bit 0 is the current root, bit 1 + i previous root i."""

    roots_to_free: int


class kvm_mmu_sync_roots(NamedTuple):
    """Entry of ``kvm_mmu_sync_roots``."""


class kvm_mmu_sync_prev_roots(NamedTuple):
    """Entry of ``kvm_mmu_sync_prev_roots``."""


class kvm_mmu_invlpg(NamedTuple):
    """Entry of ``kvm_mmu_invlpg``."""

    gva: int


class kvm_mmu_unprotect_page(NamedTuple):
    """Entry of ``kvm_mmu_unprotect_page``."""

    gfn: int


class kvm_mmu_pte_write(NamedTuple):
    """Entry of ``kvm_mmu_pte_write``: an emulated write reached a tracked page."""

    gpa: int
    bytes: int


class kvm_mmu_reset_context(NamedTuple):
    """Entry of ``kvm_mmu_reset_context``."""


class kvm_flush_remote_tlbs(NamedTuple):
    """Entry of ``kvm_flush_remote_tlbs``."""


class kvm_flush_remote_tlbs_with_address(NamedTuple):
    """Entry of ``kvm_flush_remote_tlbs_with_address``, where it does not flush all."""

    start_gfn: int
    pages: int


class drop_spte(NamedTuple):
    """A present leaf spte at `sptep` (a host-physical address) is dropped."""

    sptep: int
    old_spte: int


# What the kernel's log says --------------------------------------------------


class kvm_assertion(NamedTuple):
    """The kernel finds its own state wrong (:mod:`mmulab.kvm.assertions`).

    `severity` is its macro, `condition` what should not be.
    """

    name: str
    severity: str
    condition: str


KVMMMU: tuple[type[Event], ...] = (
    kvm_mmu_pagetable_walk,
    kvm_mmu_paging_element,
    kvm_mmu_set_accessed_bit,
    kvm_mmu_set_dirty_bit,
    kvm_mmu_walker_error,
    kvm_mmu_get_page,
    kvm_mmu_sync_page,
    kvm_mmu_unsync_page,
    kvm_mmu_prepare_zap_page,
    mark_mmio_spte,
    check_mmio_spte,
    handle_mmio_page_fault,
    fast_page_fault,
    kvm_mmu_zap_all_fast,
    kvm_mmu_set_spte,
    kvm_mmu_spte_requested,
    kvm_tdp_mmu_spte_changed,
    kvm_mmu_split_huge_page,
)
KVM: tuple[type[Event], ...] = (
    kvm_exit,
    kvm_page_fault,
    kvm_inj_exception,
    kvm_emulate_insn,
    kvm_mmio,
    kvm_msr,
    kvm_cr,
    kvm_smm_transition,
    kvm_unmap_hva_range,
    kvm_age_hva,
    kvm_dirty_ring_push,
    kvm_dirty_ring_reset,
    kvm_dirty_ring_exit,
    kvm_nested_vmenter,
    kvm_nested_vmenter_failed,
    kvm_nested_vmexit,
    kvm_nested_vmexit_inject,
)
FUNCTIONS: tuple[type[Event], ...] = (
    kvm_mmu_load,
    kvm_mmu_new_pgd,
    kvm_mmu_free_roots,
    kvm_mmu_sync_roots,
    kvm_mmu_sync_prev_roots,
    kvm_mmu_invlpg,
    kvm_mmu_unprotect_page,
    kvm_mmu_pte_write,
    kvm_mmu_reset_context,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_with_address,
    drop_spte,
)
CONSOLE: tuple[type[Event], ...] = (kvm_assertion,)
"""What goes to the kernel's log and into no trace: no recording has it."""
EVENT_TYPES: dict[str, type[Event]] = {t.__name__: t for t in KVMMMU + KVM + FUNCTIONS + CONSOLE}
