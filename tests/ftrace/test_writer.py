"""Events as the kernel's trace prints them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.ftrace.wording import event_text
from mmulab.ftrace.writer import format_event, format_recording
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.scenario.record import record
from mmulab.scenario.runner import run
from mmulab.scenario.text import read_scenario

EXAMPLE = Path(__file__).parents[1] / "scenario/examples/first_fault.mmu"
ROLE = 0x3711
PAGE = (0x20, ROLE, 1, 2)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (ev.kvm_mmu_pagetable_walk(0x40000000, 0x16), "addr 40000000 pferr 16 W|U|F"),
        (ev.kvm_mmu_paging_element(0x20067, 2), "pte 20067 level 2"),
        (ev.kvm_mmu_walker_error(0xD), "pferr d P|U|RSVD"),
        (
            ev.kvm_mmu_get_page(*PAGE, unsync=False, created=True),
            "sp gen 1 gfn 20 l1 4-byte q0 wux nxe ad [wp] root 2 sync new",
        ),
        (
            ev.kvm_mmu_prepare_zap_page(0x20, ROLE & ~0x3000 | 0x800, 0, 0, unsync=True),
            "sp gen 0 gfn 20 l1 4-byte q0 wux invalid !nxe ad root 0 unsync",
        ),
        (
            ev.kvm_mmu_set_spte(0x100, 0x8300A25, 1, 0x7008, r=True, x=True, u=1),
            "gfn 100 spte 8300a25 (r-xu) level 1 at 7008",
        ),
        (
            ev.kvm_mmu_set_spte(0x100, 0x8300A27, 1, 0x7008, r=True, x=False, u=-1),
            "gfn 100 spte 8300a27 (rw-) level 1 at 7008",
        ),
        (
            ev.fast_page_fault(0x1000, 7, -1, 0, 0, 3),
            "gva 1000 error_code P|W|U sptep (null) old 0x0 new 0 spurious 0 fixed 0",
        ),
        (
            ev.fast_page_fault(0x1000, 7, 0x6010, 0x5, 0x7, 4),
            "gva 1000 error_code P|W|U sptep 6010 old 0x5 new 7 spurious 0 fixed 1",
        ),
        (
            ev.kvm_dirty_ring_push(1, 3, 1, 0x10002, 0x20),
            "ring 1: dirty 0x3 reset 0x1 slot 65538 offset 0x20 (used 2)",
        ),
        (ev.kvm_dirty_ring_reset(1, 3, 3), "ring 1: dirty 0x3 reset 0x3 (used 0)"),
        (ev.kvm_dirty_ring_exit(1), "vcpu 1"),
        (ev.check_mmio_spte(0x17, 4, 2), "spte 17 kvm_gen 4 spte-gen 2 valid 0"),
        (ev.mark_mmio_spte(0x6010, 0x2000, 7, 2), "sptep:6010 gfn 2000 access 7 gen 2"),
        (ev.handle_mmio_page_fault(0, 0x2000, 6), "addr:0 gfn 2000 access 6"),
        (ev.kvm_mmu_zap_all_fast(1, 0x24), "kvm-mmu-valid-gen 1 used_pages 24"),
        (
            ev.kvm_exit("pf", 0x1800, error_code=0x10, address=0x1800),
            "reason pf rip 0x1800 address 0x1800 error_code 0x10",
        ),
        (ev.kvm_page_fault(0x1800, 0x40000000, 2), "rip 0x1800 address 0x0000000040000000 error_code 0x2"),
        (ev.kvm_inj_exception(14, 7, reinjected=True), "#PF (0x7) [reinjected]"),
        (ev.kvm_inj_exception(6, None, reinjected=False), "#UD"),
        (ev.kvm_emulate_insn(0x1810, 2, "8903", failed=False), "0:1810:89 03"),
        (ev.kvm_mmio("write", 4, 0x3000008), "mmio write len 4 gpa 0x3000008"),
        (ev.kvm_msr(True, 0xC0000080, 0x500, False), "msr_write c0000080 = 0x500"),
        (ev.kvm_cr(True, 4, 0xA0), "cr_write 4 = 0xa0"),
        (ev.kvm_mmu_new_pgd(0x10000), "new_pgd 10000"),
    ],
)
def test_wordings(event: ev.Event, text: str) -> None:
    assert event_text(event) == f"{type(event).__name__}: {text}"


def test_an_event_without_fields_is_its_name() -> None:
    assert event_text(ev.kvm_mmu_load()) == "kvm_mmu_load"


def test_every_event_of_a_run_is_one_line() -> None:
    for result in run(read_scenario(EXAMPLE)):
        for event in result.events:
            assert "\n" not in event_text(event)


@pytest.mark.parametrize(
    ("event", "vendor", "text"),
    [
        # Lines of real traces of 6.1, hosts with SVM; events that this project's model makes too.
        (
            ev.kvm_exit("pf", 0xEFF5B7E, error_code=8, address=0xFEE00030),
            "amd",
            "kvm_exit: vcpu 0 reason PF excp rip 0xeff5b7e info1 0x0000000000000008 "
            "info2 0x00000000fee00030 intr_info 0x00000000 error_code 0x00000000",
        ),
        (
            ev.kvm_exit("npf", 0xFFF0, error_code=0x100000014, address=0xFFFFFFF0),
            "amd",
            "kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x0000000100000014 "
            "info2 0x00000000fffffff0 intr_info 0x00000000 error_code 0x00000000",
        ),
        (
            ev.kvm_page_fault(0xEFF5B7E, 0xFEE00030, 8),
            "amd",
            "kvm_page_fault: vcpu 0 rip 0xeff5b7e address 0x00000000fee00030 error_code 0x8",
        ),
        (
            ev.kvm_exit("pf", 0x1800, error_code=0x14, address=0x2000),
            "intel",
            "kvm_exit: vcpu 0 reason EXCEPTION_NMI rip 0x1800 info1 0x0000000000002000 "
            "info2 0x0000000000000000 intr_info 0x80000b0e error_code 0x00000014",
        ),
        (ev.kvm_mmu_free_roots(1), "amd", "kvm_mmu_free_roots: (kvm_mmu_free_roots+0x0) roots_to_free=0x1"),
        (
            ev.kvm_mmu_get_page(*PAGE, unsync=False, created=False),
            "amd",
            "kvm_mmu_get_page: sp gen 1 gfn 20 l1 4-byte q0 wux nxe ad root 2 sync existing",
        ),
        (ev.kvm_mmu_pagetable_walk(0x1000, 4), "amd", "kvm_mmu_pagetable_walk: addr 1000 pferr 4 U"),
        (
            ev.fast_page_fault(0x61D0FE0, 7, 0xE5EFF22B, 0x361D0E65, 0x361D0E67, 4),
            "amd",
            "fast_page_fault: vcpu 0 gva 61d0fe0 error_code P|W|U sptep 00000000e5eff22b old 0x361d0e65 "
            "new 361d0e67 spurious 0 fixed 1",
        ),
        (
            ev.mark_mmio_spte(0x2B4F687A, 0xFEE00, 7, 0x3A),
            "amd",
            "mark_mmio_spte: sptep:000000002b4f687a gfn fee00 access 7 gen 3a",
        ),
        (
            ev.kvm_nested_vmexit("npf", 0x200000006, 0x5000),
            "amd",
            "kvm_nested_vmexit: vcpu 0 reason npf rip 0x0 info1 0x0000000200000006 "
            "info2 0x0000000000005000 intr_info 0x00000000 error_code 0x00000000",
        ),
        (
            ev.kvm_nested_vmexit("pf", 0x2000, 0, 0x80000B0E, 0x14),
            "intel",
            "kvm_nested_vmexit: vcpu 0 reason EXCEPTION_NMI rip 0x0 info1 0x0000000000002000 "
            "info2 0x0000000000000000 intr_info 0x80000b0e error_code 0x00000014",
        ),
        (
            ev.kvm_nested_vmexit_inject("ept_violation", 0x81, 0),
            "intel",
            "kvm_nested_vmexit_inject: reason: EPT_VIOLATION ext_inf1: 0x0000000000000081 "
            "ext_inf2: 0x0000000000000000 ext_int: 0x00000000 ext_int_err: 0x00000000",
        ),
        (
            ev.kvm_nested_vmenter(0xD000, 0x1800, True, 0xE01E),
            "intel",
            "kvm_nested_vmenter: rip: 0x0000000000000000 vmcs: 0x000000000000d000 "
            "nested_rip: 0x0000000000001800 int_ctl: 0x00000000 event_inj: 0x00000000 nested_ept=y "
            "nested_eptp: 0x000000000000e01e",
        ),
        (
            ev.kvm_nested_vmenter(0xD000, 0x1800, False, 0xE000),
            "amd",
            "kvm_nested_vmenter: rip: 0x0000000000000000 vmcb: 0x000000000000d000 "
            "nested_rip: 0x0000000000001800 int_ctl: 0x00000000 event_inj: 0x00000000 nested_npt=n "
            "guest_cr3: 0x000000000000e000",
        ),
    ],
)
def test_kernel_text(event: ev.Event, vendor: str, text: str) -> None:
    assert format_event(event, LINUX_6_1, vendor=vendor) == text


@pytest.mark.parametrize(
    ("reason", "vendor", "printed"),
    [
        ("cr", "intel", "CR_ACCESS"),
        ("vmxon", "intel", "VMON"),
        ("vmcall", "intel", "VMCALL"),
        ("wrmsr", "intel", "MSR_WRITE"),
        ("ioio", "intel", "IO_INSTRUCTION"),
        ("ept_misconfig", "intel", "EPT_MISCONFIG"),
        ("vmmcall", "amd", "hypercall"),
        ("ud", "amd", "UD excp"),
        ("ioio", "amd", "io"),
        ("vmrun", "amd", "vmrun"),
    ],
)
def test_reasons_are_the_kernels(reason: str, vendor: str, printed: str) -> None:
    text = format_event(ev.kvm_exit(reason, 0x10), LINUX_6_1, vendor=vendor, vcpu=3)
    assert text.startswith(f"kvm_exit: vcpu 3 reason {printed} rip 0x10 info1 ")


def test_recording_is_lines_of_trace_pipe() -> None:
    recording = record(read_scenario(EXAMPLE))
    lines = list(format_recording(recording))
    assert len(lines) == len(recording.events)
    pattern = re.compile(r" +vcpu-(\d) +\[\d{3}\] \.{5} +(\d+\.\d{6}): (\w+)(: |$)")
    found = [pattern.match(line) for line in lines]
    assert all(found)
    names = [match[3] for match in found if match]
    assert names == [type(event).__name__ for event in recording.events]
    times = [float(match[2]) for match in found if match]
    assert times == sorted(set(times))


def test_a_function_goes_by_the_kernels_own_name() -> None:
    event = ev.kvm_flush_remote_tlbs_with_address(0x200, 512)
    assert event_text(event) == "kvm_flush_remote_tlbs_with_address: start_gfn 200 pages 200"
    assert event_text(event, LINUX_6_12) == "kvm_flush_remote_tlbs_range: start_gfn 200 pages 200"
    name = "kvm_flush_remote_tlbs_range"
    assert format_event(event, LINUX_6_12) == f"{name}: ({name}+0x0) start_gfn=0x200 pages=0x200"
