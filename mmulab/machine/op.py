"""The op: a small typed record of one thing that a guest, the VMM or the host does.

Scenarios, streams and the explorer are sources of ops; only
:meth:`mmulab.machine.machine.Machine.execute` gives them effect. A *guest op* is
one instruction of a vCPU; a *host op* is one action of the VMM or of the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mmulab.x86.markup import changed_fields, facts_html


class Mode(StrEnum):
    """Privilege of a guest access, with the scenario language's letters."""

    SUPERVISOR = "s"
    """CPL 0, EFLAGS.AC=0."""
    USER = "u"
    """CPL 3."""
    SUPERVISOR_AC = "a"
    """CPL 0, EFLAGS.AC=1: explicit accesses are exempt from SMAP."""
    IMPLICIT = "i"
    """An implicit supervisor access (descriptors, exception delivery) at any CPL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One op; `vcpu` is the number of the vCPU that guest ops run on."""

    vcpu: int = 0


@dataclass(frozen=True, slots=True)
class Read(Op):
    """``mov`` from memory of `size` bytes."""

    mode: Mode
    size: int
    gva: int


@dataclass(frozen=True, slots=True)
class Write(Op):
    """``mov`` to memory."""

    mode: Mode
    size: int
    gva: int
    value: int


@dataclass(frozen=True, slots=True)
class Exchange(Op):
    """``xchg`` with memory (locked by itself)."""

    mode: Mode
    size: int
    gva: int
    value: int


@dataclass(frozen=True, slots=True)
class CompareExchange(Op):
    """``cmpxchg8b``: store `new` if memory holds `old`."""

    mode: Mode
    size: int
    gva: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Execute(Op):
    """Execute a one-byte NOP at `gva`."""

    mode: Mode
    gva: int


@dataclass(frozen=True, slots=True)
class Touch(Op):
    """A read access that needs no value, without an instruction around it (streams)."""

    mode: Mode
    gva: int
    write: bool = False
    fetch: bool = False


@dataclass(frozen=True, slots=True)
class WriteCr(Op):
    """``mov`` to CR0, CR3 or CR4; `compat`: from compatibility mode."""

    cr: int
    value: int
    compat: bool = False


@dataclass(frozen=True, slots=True)
class WriteEfer(Op):
    """``wrmsr`` to EFER."""

    value: int


@dataclass(frozen=True, slots=True)
class Invlpg(Op):
    """``invlpg``."""

    gva: int


@dataclass(frozen=True, slots=True)
class Nop(Op):
    """A one-byte NOP at the instruction stub."""


@dataclass(frozen=True, slots=True)
class GuestStore(Op):
    """A guest store by physical address through write tracking, without translation.

    What a device model or a replayed stream does to a page that KVM may shadow.
    """

    size: int
    gpa: int
    value: int


@dataclass(frozen=True, slots=True)
class HostWrite(Op):
    """A store to the VMM's memory behind KVM's back."""

    size: int
    gpa: int
    value: int


@dataclass(frozen=True, slots=True)
class SetMemslot(Op):
    """``KVM_SET_USER_MEMORY_REGION``: create, move or change the flags of a slot.

    From bit 16 of `id` on, here as in the other ops that have one, lies the
    number of the address space, 1 for system management mode.
    """

    id: int
    gpa: int
    size: int
    flags: int
    offset: int


@dataclass(frozen=True, slots=True)
class DeleteMemslot(Op):
    """``KVM_SET_USER_MEMORY_REGION`` with size 0."""

    id: int


@dataclass(frozen=True, slots=True)
class GetDirtyLog(Op):
    """``KVM_GET_DIRTY_LOG``."""

    id: int


@dataclass(frozen=True, slots=True)
class ClearDirtyLog(Op):
    """``KVM_CLEAR_DIRTY_LOG`` of `count` pages from `first`."""

    id: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class GetDirtyRing(Op):
    """The VMM takes what is new in the dirty ring of `vcpu`."""


@dataclass(frozen=True, slots=True)
class ResetDirtyRings(Op):
    """``KVM_RESET_DIRTY_RINGS``: what the VMM took may get dirty again."""


@dataclass(frozen=True, slots=True)
class InvalidateHva(Op):
    """The host changes and restores the protection of a range: MMU-notifier invalidation."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Age(Op):
    """The host reclaims a range of the VMM's memory, but has no swap (``MADV_PAGEOUT``).

    Each of its pages, of whatever size, is asked once whether it was accessed,
    and stays.
    """

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Collapse(Op):
    """The host puts huge pages in the place of small ones (``MADV_COLLAPSE``)."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Protect(Op):
    """The VMM's own mapping of a range becomes inaccessible (0), read-only (1) or writable (3): ``mprotect``.

    The backing is locked in memory, so what becomes writable is writable at once.
    """

    gpa: int
    length: int
    access: int


@dataclass(frozen=True, slots=True)
class SwapOut(Op):
    """The host swaps a range out; a page comes back, in another frame, when KVM or the VMM next needs it."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class RecoverNxHugePages(Op):
    """The host's worker for NX huge pages makes one pass: a `ratio`-th of what was split may be huge again.

    `ratio` is ``nx_huge_pages_recovery_ratio``; 0 turns the recovery off, and there is no pass.
    """

    ratio: int


@dataclass(frozen=True, slots=True)
class SetNxHugePages(Op):
    """The host's module parameter ``nx_huge_pages`` is written: "force" or "off"."""

    enabled: bool


@dataclass(frozen=True, slots=True)
class SetNrMmuPages(Op):
    """``KVM_SET_NR_MMU_PAGES``."""

    count: int


@dataclass(frozen=True, slots=True)
class SetSregs(Op):
    """``KVM_SET_SREGS``."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True, slots=True)
class SetPkru(Op):
    """``KVM_SET_XSAVE`` with another PKRU: what each protection key forbids, two bits a key."""

    value: int


@dataclass(frozen=True, slots=True)
class Teardown(Op):
    """The VM is destroyed."""


class OutcomeKind(StrEnum):
    """How an op ended."""

    OK = "ok"
    EXC = "exc"
    HOST = "host"
    INTERNAL_ERROR = "internal_error"
    SHUTDOWN = "shutdown"
    L2 = "l2"
    """L2 was entered."""
    VMEXIT = "vmexit"
    """L1 got an exit of L2."""
    VMFAIL = "vmfail"
    """VM entry failed its checks."""
    DIRTY_RING_FULL = "dirty_ring_full"
    """``KVM_RUN`` ended before the guest was entered: the VMM has to empty the vCPU's dirty ring."""
    HANG = "hang"
    """``KVM_RUN`` failed, with an error number, and the VMM runs the VM no more."""
    HOST_DIED = "host_died"
    """An assertion stopped the host's kernel (``BUG_ON``)."""

    @property
    def is_last(self) -> bool:
        """Whether the VM runs no more after it."""
        return self in (OutcomeKind.SHUTDOWN, OutcomeKind.HANG, OutcomeKind.HOST_DIED)


@dataclass(frozen=True, slots=True)
class Mmio:
    """One exit to a device; reads get ``0xd0`` in every byte."""

    write: bool
    gpa: int
    size: int
    value: int


@dataclass(slots=True)
class Outcome:
    """What the guest and the VMM see of an op.

    Attributes
    ----------
    kind : OutcomeKind
    rip : int or None
        Instruction pointer afterwards; of an exception, of the faulting instruction.
    rax : int
        The value read, else the operand.
    vector, error_code, cr2 : int or None
        The exception.
    hpa : int
        Host-physical address that the data access reached; -1 if none did.
    mmio : list of Mmio
    result : int or None
        Return value of a host op.
    dirty : list of int or None
        Pages set in the returned dirty bitmap.
    ring : list of (int, int) or None
        Slots and offsets taken from a dirty ring.
    cf, zf : int or None
        Flags after ``cmpxchg8b`` and VMX instructions.
    error : int or None
        VM-instruction error of a failed entry; error number of the ``KVM_RUN`` that failed:
        ``EINTR`` of one that would never end.
    vmexit : dict of str to int or None
        What L1 was told of an exit, under the keys of a recording.
    words : list of str or None
        What the kernel said when it died.
    """

    kind: OutcomeKind
    rip: int | None = None
    rax: int = 0
    vector: int | None = None
    error_code: int | None = None
    cr2: int | None = None
    hpa: int = -1
    mmio: list[Mmio] | None = None
    result: int | None = None
    dirty: list[int] | None = None
    ring: list[tuple[int, int]] | None = None
    cf: int | None = None
    zf: int | None = None
    error: int | None = None
    suberror: int | None = None
    vmexit: dict[str, int] | None = None
    words: list[str] | None = None

    def __repr__(self) -> str:
        said = [f"{name}={value}" for name, value in changed_fields(self).items()]
        return f"<Outcome {' '.join(said)}>"

    def _repr_html_(self) -> str:
        return facts_html(changed_fields(self), "outcome")


# Ops of the scenario language beyond one guest's own paging --------------------


@dataclass(frozen=True, slots=True)
class Sysexit(Op):
    """``sysexit`` at the supervisor stub: CPL 3 afterwards, no memory access but the fetch."""


@dataclass(frozen=True, slots=True)
class Sysenter(Op):
    """``sysenter`` at the user stub: CPL 0 afterwards, no memory access but the fetch."""


@dataclass(frozen=True, slots=True)
class Invpcid(Op):
    """``invpcid`` of `type` with the descriptor (`pcid`, `gva`), each of 64 bits."""

    type: int
    pcid: int
    gva: int


@dataclass(frozen=True, slots=True)
class SetCpuid(Op):
    """``KVM_SET_CPUID2`` with one feature changed; `key` as in a scenario's ``cpu`` line."""

    key: str
    value: int


@dataclass(frozen=True, slots=True)
class Smm(Op):
    """System management mode: an SMI (``KVM_SMI``) before a NOP at the instruction stub, or ``rsm``.

    The SMI is taken at once, so the handler's first instruction is executed
    instead of the NOP: a NOP too, which is single-stepped, or OUT to port 0xfb
    if L2 runs. In SMM it waits for the RSM, and in L1 behind an exit of L2 for VMRUN.
    """

    on: bool


@dataclass(frozen=True, slots=True)
class Vmrun(Op):
    """``vmrun`` of the VMCB (on Intel: entry with the VMCS) at `gpa`."""

    gpa: int


@dataclass(frozen=True, slots=True)
class Vmmcall(Op):
    """``vmmcall``."""


@dataclass(frozen=True, slots=True)
class Vmxon(Op):
    """``vmxon`` with the region at `gpa`."""

    gpa: int


@dataclass(frozen=True, slots=True)
class Vmptrld(Op):
    """``vmptrld`` of the VMCS at `gpa`."""

    gpa: int


@dataclass(frozen=True, slots=True)
class Vmclear(Op):
    """``vmclear`` of the VMCS at `gpa`."""

    gpa: int


@dataclass(frozen=True, slots=True)
class Vmlaunch(Op):
    """``vmlaunch`` of the current VMCS."""


@dataclass(frozen=True, slots=True)
class Vmcall(Op):
    """``vmcall``."""


@dataclass(frozen=True, slots=True)
class Vmwrite(Op):
    """``vmwrite`` to `field` of the current VMCS."""

    field: int
    value: int


@dataclass(frozen=True, slots=True)
class Invept(Op):
    """``invept`` of `type` with the descriptor (`eptp`, `reserved`)."""

    type: int
    eptp: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Invvpid(Op):
    """``invvpid`` of `type` with the descriptor (`vpid`, `gva`)."""

    type: int
    vpid: int
    gva: int


@dataclass(frozen=True, slots=True)
class Vmfunc(Op):
    """``vmfunc`` of function `function` with ECX = `index`."""

    function: int
    index: int
