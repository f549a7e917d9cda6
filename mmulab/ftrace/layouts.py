"""What each event's line says, by kernel and by tool: data.

The first layout of an event that fits is the one that reads a line, and the first whose fields are at hand
is the one that is written; today's kernels stand first.

Source: Linux 6.1.192 and 6.12.117 ``arch/x86/kvm/mmu/mmutrace.h``, ``arch/x86/kvm/trace.h``,
``include/trace/events/kvm.h``; libtraceevent ``plugins/plugin_kvm.c``. Older kernels' layouts stand as
people pasted them, with the release as far as it is known.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmulab.ftrace.layout import PLUGIN, Layout

_ROLE = "root {root_count:d} {unsync:sync}"
_PAGE = (
    Layout("sp gen {mmu_valid_gen:d} gfn {gfn:x} {role:role} " + _ROLE, "5.4"),
    Layout("sp gfn {gfn:x} {role:role} " + _ROLE, "5.1", "5.4"),
    Layout("sp gen {mmu_valid_gen:x} gfn {gfn:x} {role:old_role} " + _ROLE, "3.11", "5.1"),
    Layout("sp gfn {gfn:x} {role:old_role} " + _ROLE, by=PLUGIN),
)
"""The last is the plugin's, and that of kernels before 3.11."""
_GET_PAGE = (
    *(Layout(f"{one.template} {{created:created}}", one.since, one.before, one.by) for one in _PAGE),
    Layout("{created:created} sp gfn {gfn:x} {role:old_role} " + _ROLE, by=PLUGIN),
)
_EXIT = (
    Layout(
        "vcpu {vcpu_id:d} reason {reason:text} rip {guest_rip:#x} info1 {info1:#018x} info2 {info2:#018x}"
        " intr_info {intr_info:#010x} error_code {error_code:#010x}",
        "5.10",
    ),
    Layout(
        "vcpu {vcpu_id:d} reason {reason:text} rip {guest_rip:#x} info1 {info1:#018x} info2 {info2:#018x}"
        " intr_info {intr_info:#010x} error_code {error_code:#010x} requests {requests:#018x}",
        "6.15",
    ),
    Layout("reason {reason:text} rip {guest_rip:#x} info {info1:x} {info2:x}", by=PLUGIN),
    Layout("vcpu {vcpu_id:d} reason {reason:text} rip {guest_rip:#x} info {info1:x} {info2:x}", by=PLUGIN),
    Layout("reason {reason:text} rip {guest_rip:#x}", before="3.1"),
)
_BIT = (Layout("gpa {gpa:x}"),)

KVMMMU: Mapping[str, tuple[Layout, ...]] = {
    "kvm_mmu_pagetable_walk": (Layout("addr {addr:x} pferr {pferr:x} {pferr:flags}"),),
    "kvm_mmu_paging_element": (Layout("pte {pte:x} level {level:d}"),),
    "kvm_mmu_set_accessed_bit": _BIT,
    "kvm_mmu_set_dirty_bit": _BIT,
    "kvm_mmu_walker_error": (Layout("pferr {pferr:x} {pferr:flags}"),),
    "kvm_mmu_get_page": _GET_PAGE,
    "kvm_mmu_sync_page": _PAGE,
    "kvm_mmu_unsync_page": _PAGE,
    "kvm_mmu_prepare_zap_page": _PAGE,
    "kvm_mmu_zap_page": _PAGE,
    "mark_mmio_spte": (
        Layout("sptep:{sptep:pointer} gfn {gfn:x} access {access:x} gen {gen:x}", "3.11"),
        Layout("sptep:{sptep:pointer} gfn {gfn:x} access {access:x}", before="3.11"),
    ),
    "handle_mmio_page_fault": (Layout("addr:{addr:x} gfn {gfn:x} access {access:x}"),),
    "fast_page_fault": (
        Layout(
            "vcpu {vcpu_id:d} gva {cr2_or_gpa:x} error_code {error_code:flags} sptep {sptep:pointer}"
            " old {old_spte:#x} new {new_spte:x} spurious {spurious:d} fixed {fixed:d}"
        ),
    ),
    "kvm_mmu_zap_all_fast": (
        Layout("kvm-mmu-valid-gen {mmu_valid_gen:d} used_pages {mmu_used_pages:x}", "5.4"),
    ),
    "kvm_mmu_invalidate_zap_all_pages": (
        Layout("kvm-mmu-valid-gen {mmu_valid_gen:x} used_pages {mmu_used_pages:x}", "3.11", "5.1"),
    ),
    "check_mmio_spte": (
        Layout("spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {valid:d}", "3.11"),
    ),
    "kvm_mmu_set_spte": (
        Layout("gfn {gfn:x} spte {spte:x} ({r:r}{w:w}{x:x_}{u:u}) level {level:d} at {sptep:x}", "5.1"),
        Layout("gfn {gfn:x} spte {spte:x} ({r:r}{w:w}{x:x_}{u:u}) level {level:d}", "5.1"),
    ),
    "kvm_mmu_spte_requested": (Layout("gfn {gfn:x} pfn {pfn:x} level {level:d}", "5.1"),),
    "kvm_tdp_mmu_spte_changed": (
        Layout(
            "as id {as_id:d} gfn {gfn:x} level {level:d} old_spte {old_spte:x} new_spte {new_spte:x}", "5.11"
        ),
    ),
    "kvm_mmu_split_huge_page": (Layout("gfn {gfn:x} spte {spte:x} level {level:d} errno {errno:d}", "5.18"),),
}
"""The group ``kvmmmu``."""

KVM: Mapping[str, tuple[Layout, ...]] = {
    "kvm_entry": (
        Layout("vcpu {vcpu_id:d}, rip {rip:#x}{immediate_exit:immediate}", "5.8"),
        Layout(
            "vcpu {vcpu_id:d}, rip {rip:#x} intr_info {intr_info:#010x} error_code {error_code:#010x}"
            "{immediate_exit:immediate}",
            "6.10",
        ),
        Layout("vcpu {vcpu_id:d}", before="5.8"),
    ),
    "kvm_exit": _EXIT,
    "kvm_page_fault": (
        Layout(
            "vcpu {vcpu_id:d} rip {guest_rip:#x} address {fault_address:#018x} error_code {error_code:#x}",
            "6.0",
        ),
        Layout("address {fault_address:x} error_code {error_code:x}", before="6.0"),
        Layout("vcpu {vcpu_id:d} address {fault_address:#x} error_code {error_code:#x}"),
    ),
    "kvm_inj_exception": (
        Layout("{exception:exception} ({error_code:#x}){reinjected:reinjected}"),
        Layout("{exception:exception}{reinjected:reinjected}"),
    ),
    "kvm_inj_virq": (
        Layout("{soft:soft} {vector:#x}{reinjected:reinjected}", "6.0"),
        Layout("irq {irq:d}", before="6.0"),
    ),
    "kvm_emulate_insn": (
        Layout("{csbase:x}:{rip:x}:{insn:bytes} ({mode:text}){failed:failed}"),
        Layout("{csbase:x}:{rip:x}:{insn:bytes}{failed:failed}"),
        Layout("{csbase:x}:{rip:x}: {insn:bytes}{failed:FAIL}", by=PLUGIN),
        Layout("{csbase:x}:{rip:x}: {assembly:text}{failed:FAIL}", by=PLUGIN),
    ),
    "kvm_mmio": (
        Layout("mmio {type:word} len {len:d} gpa {gpa:#x} val {val:#x}"),
        Layout("mmio {type:word} len {len:d} gpa {gpa:#x}"),
    ),
    "kvm_fast_mmio": (Layout("fast mmio at gpa {gpa:#x}"),),
    "kvm_pio": (
        Layout("pio_{rw:rw} at {port:#x} size {size:d} count {count:d} val {val:#x}"),
        Layout("pio_{rw:rw} at {port:#x} size {size:d} count {count:d} val {val:#x} (...)"),
        Layout("pio_{rw:rw} at {port:#x} size {size:d} count {count:d}"),
    ),
    "kvm_msr": (Layout("msr_{write:rw} {ecx:x} = {data:#x}{exception:gp}"),),
    "kvm_cr": (Layout("cr_{rw:rw} {cr:x} = {val:#x}"),),
    "kvm_cpuid": (
        Layout(
            "func {function:x} idx {index:x} rax {rax:x} rbx {rbx:x} rcx {rcx:x} rdx {rdx:x},"
            " cpuid entry {found:found}{used_max_basic:max_basic}",
            "5.7",
        ),
    ),
    "kvm_smm_transition": (Layout("vcpu {vcpu_id:d}: {entering:entering} SMM, smbase {smbase:#x}"),),
    "kvm_fpu": (Layout("{load:load}"),),
    "kvm_userspace_exit": (Layout("reason {reason:word} ({errno:d})"),),
    "kvm_pml_full": (Layout("vcpu {vcpu_id:d}: PML full"),),
    "vcpu_match_mmio": (Layout("gva {gva:#x} gpa {gpa:#x} {write:RW} {gpa_match:gpa}"),),
    "kvm_hypercall": (Layout("nr {nr:#x} a0 {a0:#x} a1 {a1:#x} a2 {a2:#x} a3 {a3:#x}"),),
    "kvm_invlpga": (Layout("rip: {rip:#018x} asid: {asid:d} address: {address:#018x}"),),
    "kvm_unmap_hva_range": (
        Layout("mmu notifier unmap range: {start:#016x} -- {end:#016x}"),
        Layout(""),
    ),
    "kvm_set_spte_hva": (Layout("mmu notifier set pte hva: {hva:#016x}"),),
    "kvm_age_hva": (Layout("mmu notifier age hva: {start:#016x} -- {end:#016x}"), Layout("")),
    "kvm_test_age_hva": (Layout("mmu notifier test age hva: {hva:#016x}"),),
    "kvm_dirty_ring_push": (
        Layout(
            "ring {ring:d}: dirty {dirty_index:#x} reset {reset_index:#x} slot {slot:d} offset {offset:#x}"
            " (used {used:d})"
        ),
    ),
    "kvm_dirty_ring_reset": (
        Layout("ring {ring:d}: dirty {dirty_index:#x} reset {reset_index:#x} (used {used:d})"),
    ),
    "kvm_dirty_ring_exit": (Layout("vcpu {vcpu_id:d}"),),
    "kvm_nested_vmenter": (
        Layout(
            "rip: {rip:#018x} {block:word}: {vmcb:#018x} nested_rip: {nested_rip:#018x}"
            " int_ctl: {int_ctl:#010x} event_inj: {event_inj:#010x} nested_{tdp:word}={tdp_enabled:yn}"
            " {pgd:word}: {guest_pgd:#018x}",
            "6.0",
        ),
        Layout(
            "rip: {rip:#018x} {block:word}: {vmcb:#018x} nrip: {nested_rip:#018x} int_ctl: {int_ctl:#010x}"
            " event_inj: {event_inj:#010x} npt: {tdp_enabled:on}",
            before="6.0",
        ),
    ),
    "kvm_nested_vmenter_failed": (Layout("failed: {msg:text} err: {err:x}"), Layout("err {err:x}")),
    "kvm_nested_vmexit": (
        *_EXIT,
        Layout(
            "rip: {guest_rip:#018x} reason: {reason:text} ext_inf1: {info1:#018x} ext_inf2: {info2:#018x}"
            " ext_int: {intr_info:#010x} ext_int_err: {error_code:#010x}",
            before="5.10",
        ),
    ),
    "kvm_nested_vmexit_inject": (
        Layout(
            "reason: {reason:text} ext_inf1: {exit_info1:#018x} ext_inf2: {exit_info2:#018x}"
            " ext_int: {exit_int_info:#010x} ext_int_err: {exit_int_info_err:#010x}"
        ),
        Layout(
            "reason {reason:text} info1 {exit_info1:x} info2 {exit_info2:x} int_info {exit_int_info:x}"
            " int_info_err {exit_int_info_err:x}",
            by=PLUGIN,
        ),
    ),
    "kvm_nested_intr_vmexit": (Layout("rip: {rip:#018x}"),),
}
"""What of the group ``kvm`` tells of the MMU and of its inputs; other events of it are counted by name."""

LAYOUTS: Mapping[str, tuple[Layout, ...]] = {**KVMMMU, **KVM}
FOREIGN: Mapping[frozenset[str], tuple[str, Mapping[str, str]]] = {
    frozenset({"gfn", "level", "old", "new"}): (
        "kvm_tdp_mmu_spte_changed",
        {"old": "old_spte", "new": "new_spte"},
    ),
}
"""Events of private programs that print ``name=value``: the fields that tell one of KVM's, and its name."""
