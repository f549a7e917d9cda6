"""A machine: one VM with its vCPUs on one host, and the effect of each op.

A guest op runs as one instruction: fetch, operands, effect. Every access goes
through the host's tables; what faults there goes to KVM, which mends them,
emulates the instruction or gives the fault to the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.events import EventSink
from mmulab.kvm.assertions import HostDiedError, host_died
from mmulab.kvm.config import KvmConfig
from mmulab.kvm.context import kvm_mmu_create
from mmulab.kvm.cpuid import kvm_set_cpuid
from mmulab.kvm.dirty_ring import DirtyRing, check_dirty_ring, kvm_dirty_ring_get_rsvd_entries
from mmulab.kvm.host_page import access_host_page
from mmulab.kvm.invariants import Check, check
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.memory_region import (
    check_memory_region,
    kvm_clear_dirty_log,
    kvm_delete_memslot,
    kvm_get_dirty_log,
    kvm_set_memory_region,
    kvm_vm_ioctl_reset_dirty_pages,
)
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_notifier import kvm_age_hva, kvm_unmap_hva_range
from mmulab.kvm.pte_write import emulator_write_phys
from mmulab.kvm.roots import kvm_mmu_unload
from mmulab.kvm.smm import kvm_vcpu_ioctl_smi
from mmulab.kvm.state import Kvm, Vcpu
from mmulab.kvm.svm.nested import svm_leave_nested
from mmulab.kvm.tdp_mmu import kvm_mmu_uninit_tdp_mmu
from mmulab.kvm.vmx.nested import vmx_leave_nested
from mmulab.kvm.vmx.pml import vmx_flush_pml_buffer
from mmulab.kvm.vmx.vmcs12 import INVALID_GPA
from mmulab.kvm.x86 import is_long_mode, kvm_vcpu_ioctl_x86_set_xsave, set_sregs
from mmulab.kvm.zap import (
    KVM_MIN_ALLOC_MMU_PAGES,
    kvm_mmu_change_mmu_pages,
    kvm_mmu_zap_all,
    kvm_recover_nx_huge_pages,
    set_nx_huge_pages,
)
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, changed_cpu
from mmulab.machine.execution import Execution
from mmulab.machine.host_memory import mprotect, swap_out
from mmulab.machine.op import Op, Outcome, OutcomeKind
from mmulab.machine.processor import processor_of
from mmulab.machine.stubs import (
    HAS_OPERAND,
    HSAVE_PA,
    OPERAND_OFFSET,
    instruction_of,
    operand_words,
    vm_entry,
)
from mmulab.machine.view import Pages, Walks, walks
from mmulab.memory.host import ALL_ACCESS, FRAME_BYTES, READ_ACCESS, HostMemory
from mmulab.x86.insn import Instruction
from mmulab.x86.markup import facts_html

HUGE = 1 << 21

OpSink = Callable[[Op, Outcome], None]


class Machine:
    """One VM.

    Parameters
    ----------
    config : MachineConfig
    emit : callable, optional
        Event sink.

    Attributes
    ----------
    memory : HostMemory
    kvm : Kvm
    processor : Processor
        The processor that the guest really runs on.
    op_sink : callable or None
        Gets each op with its outcome, after it.
    """

    def __init__(self, config: MachineConfig, emit: EventSink | None = None) -> None:
        host = config.host
        self.config = config
        self.op_sink: OpSink | None = None
        self.memory = HostMemory(config.backing_bytes, table_frames=config.table_frames, align=HUGE)
        self.processor = processor_of(host)
        self.kvm = Kvm(_kvm_config(host, config.kernel), self.memory, None)
        self.kvm.manual_dirty_log_protect = int(config.manual_dirty)
        self.kvm.disable_nx_huge_pages = config.disable_nx_huge_pages
        for _ in range(config.vcpus):
            kvm_mmu_create(self.kvm, config.cpu)
            self.kvm.vcpus[-1].hsave_msr = HSAVE_PA
        if config.dirty_ring:
            self._enable_dirty_ring(config.dirty_ring, pml=host.pml)
        for slot in config.slots:
            errno = self._set_memslot(ops.SetMemslot(slot.id, slot.gpa, slot.size, slot.flags, slot.offset))
            if errno:
                raise InputError(f"KVM_SET_USER_MEMORY_REGION refuses slot {slot.id:x}: {errno}")
        self.kvm.emit = emit

    def __del__(self) -> None:
        # A VM and its vCPUs name each other. Cut there, its memory goes at once, not by the collector.
        # (A finalizer of weakref would hold the VM, and with it an observer that holds this machine.)
        if "kvm" in self.__dict__:
            self.kvm.vcpus.clear()

    def _enable_dirty_ring(self, entries: int, *, pml: bool) -> None:
        errno = check_dirty_ring(entries, pml=pml)
        if errno:
            raise InputError(f"KVM_ENABLE_CAP refuses a dirty ring of {entries:#x} entries: {errno}")
        self.kvm.dirty_ring_size = entries
        limit = entries - kvm_dirty_ring_get_rsvd_entries(pml=pml)
        for vcpu in self.kvm.vcpus:
            vcpu.dirty_ring = DirtyRing(vcpu.id, entries, limit)

    @property
    def emit(self) -> EventSink | None:
        """The event sink; None records nothing."""
        return self.kvm.emit

    @emit.setter
    def emit(self, sink: EventSink | None) -> None:
        self.kvm.emit = sink

    @property
    def stats(self) -> dict[str, int]:
        """KVM's binary statistics by name: the VM's, and the sums of the vCPUs'."""
        stats = dict(self.kvm.stat)
        for vcpu in self.kvm.vcpus:
            for name, value in vcpu.stat.items():
                stats[name] = stats.get(name, 0) + value
        return stats

    def pages(self) -> Pages:
        """Return the shadow pages, in the order in which they were made."""
        return Pages(self.kvm.pages.values())

    def walk(self, gva: int, *, vcpu: int = 0) -> Walks:
        """Return where `gva` leads now, by the guest's tables and by those in use; nothing changes."""
        return walks(self, gva, vcpu=vcpu)

    def check(self) -> Check:
        """Ask every invariant of the MMU's own state; nothing changes.

        True if all hold; ``status`` has a flag for each that does not, ``violations`` name the objects.

        >>> machine = Machine(MachineConfig())
        >>> machine.kvm.stat["pages_4k"] += 1
        >>> machine.check()
        <Check STATISTICS, 1 violations>
        STATISTICS: pages_4k is 1, a recount gives 0
        """
        return check(self.kvm)

    def __repr__(self) -> str:
        host, kernel = self.config.host, self.config.kernel
        return (
            f"<Machine {host.vendor} tdp={host.tdp:d} on {kernel.name}, {kernel.design.name}: "
            f"{len(self.kvm.vcpus)} vCPUs, {len(self.kvm.pages)} shadow pages>"
        )

    def _repr_html_(self) -> str:
        v = self.kvm.vcpus[0]
        facts = {"CR0": f"{v.cr0:#x}", "CR3": f"{v.cr3:#x}", "CR4": f"{v.cr4:#x}", "EFER": f"{v.efer:#x}"}
        return facts_html(facts, repr(self)) + self.pages()._repr_html_()

    def execute(self, op: Op) -> Outcome:
        """Give one op its effect.

        Raises
        ------
        NotImplementedError
            An op of the language that is not modelled yet.
        """
        try:
            if self.kvm.fired and host_died(self.kvm):
                return Outcome(OutcomeKind.HOST_DIED)
            outcome = self._execute(op)
            # Bare accesses end without an exit, but before anybody reads a log the vCPU is kicked out.
            vmx_flush_pml_buffer(self.kvm.vcpus[op.vcpu])
        except HostDiedError as died:
            outcome = Outcome(OutcomeKind.HOST_DIED, words=[str(died.assertion)])
        if self.op_sink is not None:
            self.op_sink(op, outcome)
        return outcome

    def _execute(self, op: Op) -> Outcome:
        vcpu = self.kvm.vcpus[op.vcpu]
        self.kvm.running_vcpu = op.vcpu
        match op:
            case ops.Touch():
                execution = Execution(self.config, self.processor, vcpu, op.mode)
                return execution.touch(op.gva, write=op.write, fetch=op.fetch)
            case (
                ops.Read()
                | ops.Write()
                | ops.Exchange()
                | ops.CompareExchange()
                | ops.Execute()
                | ops.WriteCr()
                | ops.WriteEfer()
                | ops.Invlpg()
                | ops.Invpcid()
                | ops.Nop()
                | ops.Smm()
                | ops.Sysexit()
                | ops.Sysenter()
                | ops.Vmrun()
                | ops.Vmmcall()
                | ops.Vmxon()
                | ops.Vmptrld()
                | ops.Vmclear()
                | ops.Vmlaunch()
                | ops.Vmcall()
                | ops.Vmwrite()
                | ops.Invept()
                | ops.Invvpid()
                | ops.Vmfunc()
            ):
                if isinstance(op, ops.Smm) and op.on:
                    kvm_vcpu_ioctl_smi(vcpu)
                self._stage_operand(op)
                mode, insn = self._instruction(op, vcpu)
                compat = isinstance(op, ops.WriteCr) and op.compat
                execution = Execution(self.config, self.processor, vcpu, mode)
                return execution.run(insn, cs_l=is_long_mode(vcpu) and not compat)
        return self._execute_host(op, vcpu)

    def _stage_operand(self, op: Op) -> None:
        """Put the memory operand of an instruction where the guest's registers point to it."""
        if type(op) not in HAS_OPERAND:
            return
        stubs = self.config.stubs
        for i, word in enumerate(operand_words(op)):
            if stubs is None:
                raise InputError(f"the op {type(op).__name__} needs a guest with instruction stubs")
            self._host_write(stubs.supervisor + OPERAND_OFFSET + 8 * i, 8, word)

    def _instruction(self, op: Op, vcpu: Vcpu) -> tuple[ops.Mode, Instruction]:
        if isinstance(op, ops.Vmrun) and self.config.host.vendor == "intel":
            entered = vcpu.vmx.current_vmptr != INVALID_GPA and vcpu.vmx.get("launch_state")
            return ops.Mode.SUPERVISOR, vm_entry(self.config.stubs, launch=not entered)
        return instruction_of(op, self.config.stubs)

    def _execute_host(self, op: Op, vcpu: Vcpu) -> Outcome:
        result: int | None = None
        dirty: list[int] | None = None
        ring: list[tuple[int, int]] | None = None
        match op:
            case ops.GuestStore(size=size, gpa=gpa, value=value):
                emulator_write_phys(vcpu, gpa, size, value)
            case ops.HostWrite(size=size, gpa=gpa, value=value):
                self._host_write(gpa, size, value)
            case ops.SetMemslot():
                result = self._set_memslot(op)
            case ops.DeleteMemslot(id=id):
                result = kvm_delete_memslot(self.kvm, id & 0xFFFF, id >> 16)
            case ops.GetDirtyLog(id=id):
                result, dirty = kvm_get_dirty_log(self.kvm, id & 0xFFFF, id >> 16)
            case ops.ClearDirtyLog(id=id, first=first, count=count):
                result = kvm_clear_dirty_log(self.kvm, id & 0xFFFF, first, count, id >> 16)
            case ops.GetDirtyRing():
                ring = self._get_dirty_ring(vcpu)
            case ops.ResetDirtyRings():
                result = kvm_vm_ioctl_reset_dirty_pages(self.kvm)
            case ops.InvalidateHva(gpa=gpa, length=length):
                self._invalidate_hva(gpa, length)
            case ops.Age(gpa=gpa, length=length):
                result = self._age(gpa, length)
            case ops.Collapse(gpa=gpa, length=length):
                result = self._collapse(gpa, length)
            case ops.Protect(gpa=gpa, length=length, access=access):
                result = self._protect(gpa, length, access)
            case ops.SwapOut(gpa=gpa, length=length):
                result = self._swap_out(gpa, length)
            case ops.RecoverNxHugePages(ratio=ratio):
                if ratio and self.kvm.nx_huge_pages:
                    kvm_recover_nx_huge_pages(self.kvm, ratio)
            case ops.SetNxHugePages(enabled=enabled):
                set_nx_huge_pages(self.kvm, enabled)
            case ops.SetNrMmuPages(count=count):
                result = self._set_nr_mmu_pages(count)
            case ops.SetSregs(cr0=cr0, cr3=cr3, cr4=cr4, efer=efer):
                result = set_sregs(vcpu, cr0, cr3, cr4, efer)
            case ops.SetCpuid(key=key, value=value):
                result = kvm_set_cpuid(vcpu, changed_cpu(vcpu.cpu, key, value))
            case ops.SetPkru(value=value):
                result = kvm_vcpu_ioctl_x86_set_xsave(vcpu, value)
            case ops.Teardown():
                self._teardown()
            case _:
                raise NotImplementedError(f"the op {type(op).__name__} is not modelled yet")
        return Outcome(OutcomeKind.HOST, result=result, dirty=dirty, ring=ring)

    def _get_dirty_ring(self, vcpu: Vcpu) -> list[tuple[int, int]]:
        if vcpu.dirty_ring is None:
            raise InputError("the VM has no dirty rings; give it some (dirtyring N)")
        return vcpu.dirty_ring.harvest()

    def _teardown(self) -> None:
        """Destroy the VM: all pages are zapped, then the vCPUs let go of their roots."""
        if self.emit is not None:
            self.emit(ev.kvm_unmap_hva_range())  # the process's last mappings, none of a slot
        kvm_mmu_zap_all(self.kvm)
        for vcpu in self.kvm.vcpus:
            kvm_mmu_unload(vcpu)  # kvm_unload_vcpu_mmus
        leave_nested = vmx_leave_nested if self.kvm.config.vendor == "intel" else svm_leave_nested
        for vcpu in self.kvm.vcpus:
            leave_nested(vcpu)
            kvm_mmu_unload(vcpu)  # kvm_mmu_destroy
        if self.kvm.config.uses_tdp_mmu:
            kvm_mmu_uninit_tdp_mmu(self.kvm)

    def _backing_frame(self, offset: int, size: int) -> int:
        """Return the frame in which `size` bytes of the backing begin.

        Raises
        ------
        InputError
            They do not all lie in it.
        """
        if not 0 <= offset <= self.config.backing_bytes - size:
            held = f"the {self.config.backing_bytes:#x} bytes of the guest's backing"
            raise InputError(f"{size:#x} bytes at {offset:#x} do not lie in {held}")
        return self.memory.backing + (offset >> 12)

    def _host_write(self, gpa: int, size: int, value: int) -> None:
        """Store into the backing at an offset, behind KVM's back."""
        frame = self._backing_frame(gpa, size)
        if not access_host_page(self.kvm, frame, write=True):
            raise InputError(f"the VMM may not write at {gpa:#x}: its mapping is protected (mprotect)")
        self.memory.write(frame << 12 | gpa & 0xFFF, size, value)

    def _set_memslot(self, op: ops.SetMemslot) -> int:
        errno = check_memory_region(op.id, op.gpa, op.size, op.flags, op.offset)
        if errno:
            return errno
        if not op.size:
            return kvm_delete_memslot(self.kvm, op.id & 0xFFFF, op.id >> 16)
        slot = KvmMemslot(
            op.id & 0xFFFF,
            op.gpa >> 12,
            op.size // FRAME_BYTES,
            self._backing_frame(op.offset, op.size),
            flags=op.flags,
            as_id=op.id >> 16,
            host_level=self._backing_level,
        )
        return kvm_set_memory_region(self.kvm, slot)

    def _set_nr_mmu_pages(self, count: int) -> int:
        if count < KVM_MIN_ALLOC_MMU_PAGES:
            return -EINVAL
        kvm_mmu_change_mmu_pages(self.kvm, count)
        self.kvm.n_requested_mmu_pages = self.kvm.n_max_mmu_pages
        return 0

    def _invalidate_hva(self, gpa: int, length: int) -> None:
        """The VMM takes write permission from a range (``mprotect``) and gives it back."""
        first, last = self._backing_range(gpa, length)
        for access in (READ_ACCESS, ALL_ACCESS):
            mprotect(self.kvm, first, last, access)
        for frame in range(first, last + 1):
            access_host_page(self.kvm, frame, write=True)  # the VMM touches each of them

    def _protect(self, gpa: int, length: int, access: int) -> int:
        """The VMM changes what it may do with a range itself.

        Raises
        ------
        InputError
            It covers the page of stubs, in which the VMM reads and writes, or pages that were swapped
            out and not written since, of which some kernels let the VMM write at once and others not.
        """
        if gpa & FRAME_BYTES - 1:
            return -EINVAL
        if not length:
            return 0
        first, last = self._range_without_stubs(gpa, length)
        was_out = self.memory.swapped | self.memory.clean
        if any(frame in was_out for frame in range(first, last + 1)):
            raise InputError(f"of {length:#x} bytes at {gpa:#x} some were swapped out; write them before")
        mprotect(self.kvm, first, last, access)
        return 0

    def _swap_out(self, gpa: int, length: int) -> int:
        """The host takes a range away.

        Raises
        ------
        InputError
            It covers the page of stubs, protected pages or huge ones.
        """
        if gpa & FRAME_BYTES - 1:
            return -EINVAL
        if not length:
            return 0
        first, last = self._range_without_stubs(gpa, length)
        for frame in range(first, last + 1):
            if frame in self.memory.protection or self._is_huge(frame):
                why = "a 2 MiB page" if self._is_huge(frame) else "protected (mprotect)"
                raise InputError(f"of {length:#x} bytes at {gpa:#x} some are {why}; swap out others")
        swap_out(self.kvm, first, last)
        return 0

    def _range_without_stubs(self, offset: int, size: int) -> tuple[int, int]:
        first, last = self._backing_range(offset, size)
        stubs = self.config.stubs
        if stubs is not None and first <= self.memory.backing + (stubs.supervisor >> 12) <= last:
            raise InputError(f"{size:#x} bytes at {offset:#x} hold the stubs, where the VMM writes")
        return first, last

    def _backing_range(self, offset: int, size: int) -> tuple[int, int]:
        """Return the first and the last frame of a range of the backing."""
        first = self._backing_frame(offset, size)
        return first, first + ((offset & FRAME_BYTES - 1) + size - 1 >> 12)

    def _age(self, gpa: int, length: int) -> int:
        """The VMM offers a range for reclaim; each page that the host has there is aged once.

        Raises
        ------
        InputError
            Part of a huge page, which the host would split.
        """
        if gpa & FRAME_BYTES - 1:
            return -EINVAL
        frame = self._backing_frame(gpa, length)
        end = frame + -(-length // FRAME_BYTES)
        while frame < end:
            pages = HUGE // FRAME_BYTES if self._is_huge(frame) else 1
            if frame % pages or frame + pages > end:
                raise InputError(f"{length:#x} bytes at {gpa:#x} are part of a 2 MiB page; age whole ones")
            kvm_age_hva(self.kvm, frame, frame + pages - 1)
            frame += pages
        return 0

    def _collapse(self, gpa: int, length: int) -> int:
        """The VMM has the host put a huge page in the place of small ones, in each whole 2 MiB of a range.

        The content moves to other frames, which nobody sees but for the
        invalidation. A backing of huge pages has ``MADV_NOHUGEPAGE`` once it is
        filled, so that the host undoes no split by itself: there it refuses.
        """
        self._backing_frame(gpa, length)
        first, end = -(-gpa // HUGE), gpa + -(-length // FRAME_BYTES) * FRAME_BYTES >> 21
        if gpa & FRAME_BYTES - 1 or self.config.thp or end < first:
            return -EINVAL
        offset = self.memory.backing
        for block in range(offset + (first << 9), offset + (end << 9), 512):
            if not self._is_huge(block):
                kvm_unmap_hva_range(self.kvm, block, block + 511)
                self.memory.page_level[block >> 9] = 2
        return 0

    def _is_huge(self, frame: int) -> bool:
        """Whether the host has the backing's frame in a 2 MiB page."""
        return self.memory.mapping_level(frame, self._backing_level) > 1

    @property
    def _backing_level(self) -> int:
        """Size of the pages that the backing was made of: 1 (4 KiB) or 2 (2 MiB)."""
        return 2 if self.config.thp else 1


def _kvm_config(host: HostConfig, kernel: Kernel) -> KvmConfig:
    return KvmConfig(
        vendor=host.vendor,
        host_phys_bits=host.phys_bits,
        kernel=kernel,
        spte_format=host.spte_format(kernel),
        tdp=host.tdp,
        tdp_mmu=host.tdp_mmu,
        eager_page_split=host.eager_page_split,
        flush_on_reuse=host.flush_on_reuse,
        mmio_caching=host.mmio_caching,
        nx_huge_pages=host.nx_huge_pages,
        eptad=host.eptad,
        pml=host.pml,
        x86_64=host.x86_64,
        la57=host.la57,
        decode_assists=host.decode_assists or host.vendor == "intel",
        nrips=host.nrips or host.vendor == "intel",
        nested=host.nested,
    )
