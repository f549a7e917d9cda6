"""Events in words for a reader of the model.

:func:`event_text` is the tracepoint's own text as far as the event has its fields; the bits of a role that
the trace hides follow in brackets, and of an exit only what it has is said. The kernel's very line is
:func:`mmulab.ftrace.writer.format_event`.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmutrace.h``, ``arch/x86/kvm/trace.h``,
``include/trace/events/kvm.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmulab import events as ev
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.trace_text import OWN_NAMES
from mmulab.kvm.spte import is_writable_pte
from mmulab.x86.exceptions import EXCEPTIONS
from mmulab.x86.pferr import pferr_str

Wording = Callable[[Any, RoleDesign], str]


def event_text(event: ev.Event, kernel: Kernel = LINUX_6_1) -> str:
    """Word one event.

    Parameters
    ----------
    event : Event
    kernel : Kernel
        Reads the role words, and names functions as it does.

    Examples
    --------
    >>> event_text(ev.kvm_mmu_pagetable_walk(0x40000000, 6))
    'kvm_mmu_pagetable_walk: addr 40000000 pferr 6 W|U'
    """
    kind = type(event)
    wording = _WORDINGS.get(kind)
    text = _arguments(event) if wording is None else wording(event, kernel.design)
    return f"{kernel.events.name(kind)}: {text}".rstrip(": ")


def role_text(role: int, design: RoleDesign) -> str:
    """Word a role as the trace does, and what the trace hides in brackets."""
    facts = design.facts(role)
    hidden = [name for name, fact in OWN_NAMES.items() if getattr(facts, fact)]
    return facts.trace_str() + (f" [{' '.join(hidden)}]" if hidden else "")


def _arguments(event: Any) -> str:
    return " ".join(f"{name} {value:x}" for name, value in event._asdict().items())


def _page(e: Any, design: RoleDesign) -> str:
    state = "unsync" if e.unsync else "sync"
    role = role_text(e.role, design)
    return f"sp gen {e.mmu_valid_gen} gfn {e.gfn:x} {role} root {e.root_count} {state}"


def _get_page(e: ev.kvm_mmu_get_page, design: RoleDesign) -> str:
    return f"{_page(e, design)} {'new' if e.created else 'existing'}"


def _walk(e: ev.kvm_mmu_pagetable_walk, design: RoleDesign) -> str:
    return f"addr {e.addr:x} {_walker_error(e, design)}"


def _walker_error(e: Any, design: RoleDesign) -> str:
    return f"pferr {e.pferr:x} {pferr_str(e.pferr)}"


def _set_spte(e: ev.kvm_mmu_set_spte, design: RoleDesign) -> str:
    rights = f"{'r' if e.r else '-'}{'w' if is_writable_pte(e.spte) else '-'}{'x' if e.x else '-'}"
    user = "" if e.u == -1 else "u" if e.u else "-"
    return f"gfn {e.gfn:x} spte {e.spte:x} ({rights}{user}) level {e.level} at {e.sptep:x}"


def _fast_page_fault(e: ev.fast_page_fault, design: RoleDesign) -> str:
    sptep = "(null)" if e.sptep == -1 else f"{e.sptep:x}"
    return (
        f"gva {e.cr2_or_gpa:x} error_code {pferr_str(e.error_code)} sptep {sptep}"
        f" old {e.old_spte:#x} new {e.new_spte:x}"
        f" spurious {int(e.ret == RetPf.SPURIOUS)} fixed {int(e.ret == RetPf.FIXED)}"
    )


def _mark_mmio_spte(e: ev.mark_mmio_spte, design: RoleDesign) -> str:
    return f"sptep:{e.sptep:x} gfn {e.gfn:x} access {e.access:x} gen {e.gen:x}"


def _check_mmio_spte(e: ev.check_mmio_spte, design: RoleDesign) -> str:
    valid = int(e.kvm_gen == e.spte_gen)
    return f"spte {e.spte:x} kvm_gen {e.kvm_gen:x} spte-gen {e.spte_gen:x} valid {valid}"


def _handle_mmio_page_fault(e: ev.handle_mmio_page_fault, design: RoleDesign) -> str:
    return f"addr:{e.addr:x} gfn {e.gfn:x} access {e.access:x}"


def _zap_all_fast(e: ev.kvm_mmu_zap_all_fast, design: RoleDesign) -> str:
    return f"kvm-mmu-valid-gen {e.mmu_valid_gen} used_pages {e.mmu_used_pages:x}"


def _tdp_spte(e: ev.kvm_tdp_mmu_spte_changed, design: RoleDesign) -> str:
    where = f"as id {e.as_id} gfn {e.gfn:x} level {e.level}"
    return f"{where} old_spte {e.old_spte:x} new_spte {e.new_spte:x}"


def _split(e: ev.kvm_mmu_split_huge_page, design: RoleDesign) -> str:
    return f"gfn {e.gfn:x} spte {e.spte:x} level {e.level} errno {e.errno}"


def _exit(e: ev.kvm_exit, design: RoleDesign) -> str:
    rest = (
        ("info1", e.qualification),
        ("address", e.address),
        ("error_code", e.error_code),
        ("idt_vectoring", e.idt_vectoring),
    )
    known = "".join(f" {name} {value:#x}" for name, value in rest if value is not None)
    return f"reason {e.reason} rip {e.guest_rip:#x}{known}"


def _page_fault(e: ev.kvm_page_fault, design: RoleDesign) -> str:
    return f"rip {e.guest_rip:#x} address {e.fault_address:#018x} error_code {e.error_code:#x}"


def _inj_exception(e: ev.kvm_inj_exception, design: RoleDesign) -> str:
    code = "" if e.error_code is None else f" ({e.error_code:#x})"
    name = EXCEPTIONS.get(e.exception, f"{e.exception:#x}")
    return f"{name}{code}{' [reinjected]' if e.reinjected else ''}"


def _emulate_insn(e: ev.kvm_emulate_insn, design: RoleDesign) -> str:
    insn = " ".join(e.insn[i : i + 2] for i in range(0, len(e.insn), 2))
    return f"0:{e.rip:x}:{insn}{' failed' if e.failed else ''}"


def _mmio(e: ev.kvm_mmio, design: RoleDesign) -> str:
    return f"mmio {e.type} len {e.len} gpa {e.gpa:#x}"


def _msr(e: ev.kvm_msr, design: RoleDesign) -> str:
    way = "write" if e.write else "read"
    return f"msr_{way} {e.ecx:x} = {e.data:#x}{' (#GP)' if e.exception else ''}"


def _cr(e: ev.kvm_cr, design: RoleDesign) -> str:
    return f"cr_{'write' if e.rw else 'read'} {e.cr:x} = {e.val:#x}"


def _smm_transition(e: ev.kvm_smm_transition, design: RoleDesign) -> str:
    return f"{'entering' if e.entering else 'leaving'} SMM, smbase {e.smbase:#x}"


def _ring_counts(e: Any) -> str:
    return f"ring {e.ring}: dirty {e.dirty_index:#x} reset {e.reset_index:#x}"


def _ring_push(e: ev.kvm_dirty_ring_push, design: RoleDesign) -> str:
    used = e.dirty_index - e.reset_index
    return f"{_ring_counts(e)} slot {e.slot} offset {e.offset:#x} (used {used})"


def _ring_reset(e: ev.kvm_dirty_ring_reset, design: RoleDesign) -> str:
    return f"{_ring_counts(e)} (used {e.dirty_index - e.reset_index})"


def _ring_exit(e: ev.kvm_dirty_ring_exit, design: RoleDesign) -> str:
    return f"vcpu {e.vcpu_id}"


def _nested_exit(e: Any, design: RoleDesign) -> str:
    rest = "".join(
        f" {name}: {value:#010x}"
        for name, value in (("ext_int", e.exit_int_info), ("ext_int_err", e.exit_int_info_err))
        if value is not None
    )
    return f"reason: {e.reason} ext_inf1: {e.exit_info1:#018x} ext_inf2: {e.exit_info2:#018x}{rest}"


def _assertion(e: ev.kvm_assertion, design: RoleDesign) -> str:
    return f"{e.severity}({e.condition}) in {e.name.rpartition(':')[0]}"


_WORDINGS: dict[type, Wording] = {
    ev.kvm_mmu_pagetable_walk: _walk,
    ev.kvm_mmu_walker_error: _walker_error,
    ev.kvm_mmu_get_page: _get_page,
    ev.kvm_mmu_sync_page: _page,
    ev.kvm_mmu_unsync_page: _page,
    ev.kvm_mmu_prepare_zap_page: _page,
    ev.mark_mmio_spte: _mark_mmio_spte,
    ev.check_mmio_spte: _check_mmio_spte,
    ev.handle_mmio_page_fault: _handle_mmio_page_fault,
    ev.fast_page_fault: _fast_page_fault,
    ev.kvm_mmu_zap_all_fast: _zap_all_fast,
    ev.kvm_mmu_set_spte: _set_spte,
    ev.kvm_tdp_mmu_spte_changed: _tdp_spte,
    ev.kvm_mmu_split_huge_page: _split,
    ev.kvm_exit: _exit,
    ev.kvm_page_fault: _page_fault,
    ev.kvm_inj_exception: _inj_exception,
    ev.kvm_emulate_insn: _emulate_insn,
    ev.kvm_mmio: _mmio,
    ev.kvm_msr: _msr,
    ev.kvm_cr: _cr,
    ev.kvm_smm_transition: _smm_transition,
    ev.kvm_dirty_ring_push: _ring_push,
    ev.kvm_dirty_ring_reset: _ring_reset,
    ev.kvm_dirty_ring_exit: _ring_exit,
    ev.kvm_nested_vmexit: _nested_exit,
    ev.kvm_nested_vmexit_inject: _nested_exit,
    ev.kvm_assertion: _assertion,
}
"""Events whose wording is more than the names of the fields with their values in hex."""
