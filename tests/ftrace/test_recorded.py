"""Traces of real kernels, and extracts as people pasted them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmulab.errors import InputError
from mmulab.ftrace.layouts import KVMMMU
from mmulab.ftrace.reader import read_trace
from mmulab.ftrace.trace import NOT_READ

DATA = Path(__file__).parents[2] / "data/ftrace"
WHOLE = sorted(path.with_suffix("").with_suffix(".trace.gz") for path in DATA.glob("*.json"))


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_whole_boots_are_read_whole(path: Path) -> None:
    trace = read_trace(str(path))
    counted = json.loads(path.with_suffix("").with_suffix(".json").read_text("utf-8"))
    assert trace.event_counts == counted["event_counts"]
    assert len(trace) == counted["events"]
    assert not trace.counts.unread
    assert not trace.counts.unknown
    assert not trace.counts.unreadable
    for name in set(KVMMMU) & set(trace.event_counts):
        table = trace.tables[name]
        assert not (table.layout == NOT_READ).any()
        assert all(table.told(field).all() for field in table.columns), name
    reasons = trace.tables["kvm_exit"]["reason"]
    assert {reason: int((reasons == reason).sum()) for reason in counted["exit_reasons"]} == counted[
        "exit_reasons"
    ]
    codes, numbers = np.unique(trace.tables["kvm_page_fault"]["error_code"], return_counts=True)
    assert {hex(code): n for code, n in zip(codes, numbers, strict=True)} == counted["page_fault_error_codes"]


def test_part_of_a_shadow_boot() -> None:
    trace = read_trace(str(DATA / "shadow-686-nonpae-part.trace.xz"))
    assert len(trace) == 40_000
    assert not trace.counts.unread
    assert trace.counts.passed == 12
    assert (np.diff(trace.time) >= 0).all()
    assert trace.vcpu_threads == {0: [140]}


@pytest.mark.parametrize(
    ("name", "events", "frames", "joined"),
    [
        ("t02-amd-la57-npt-loop-5.x-tracecmd", {"kvm_mmu_get_page": 4, "kvm_mmu_set_spte": 4}, 0, 0),
        ("t03-tdpmmu-getpage-stack-5.x-tracepipe", {"kvm_mmu_get_page": 1}, 12, 0),
        ("t04-private-memory-2M-5.19rc-wrapped", {"kvm_tdp_mmu_spte_changed": 6, "kvm_fpu": 1}, 0, 10),
        ("t04b-the-same-quoted", {"kvm_tdp_mmu_spte_changed": 6, "kvm_fpu": 1}, 0, 10),
        ("t06-tdpmmu-teardown-6.1plus-stack", {"kvm_mmu_prepare_zap_page": 1}, 12, 0),
        ("t07-1gib-page-rsvd-4.8-tracecmd", {"kvm_exit": 1, "kvm_emulate_insn": 2}, 0, 0),
        ("t09-pfnmap-tail-6.8-noprefix", {"kvm_page_fault": 3, "kvm_mmu_set_spte": 1}, 0, 0),
        ("t10-tdx-setspte-5.x-tracepipe", {"kvm_mmu_set_spte": 1}, 0, 0),
        ("t11-bpf-spte-6.x-own-format", {"kvm_tdp_mmu_spte_changed": 9, "HVA_TO_PFN": 2}, 0, 0),
    ],
)
def test_extracts(name: str, events: dict[str, int], frames: int, joined: int) -> None:
    trace = read_trace(str(DATA / f"public/{name}.txt"))
    assert trace.event_counts | events == trace.event_counts
    assert (trace.counts.frames, trace.counts.joined) == (frames, joined)
    assert not trace.counts.unread
    assert not trace.counts.unreadable
    assert not trace.counts.unknown
    assert not any((table.layout == NOT_READ).any() for table in trace.tables.values())


def test_a_quoted_extract_says_the_same() -> None:
    plain = read_trace(str(DATA / "public/t04-private-memory-2M-5.19rc-wrapped.txt"))
    quoted = read_trace(str(DATA / "public/t04b-the-same-quoted.txt"))
    assert list(plain.events()) == list(quoted.events())
    assert plain.event(9).fields == {
        "gfn": 0x800,
        "spte": 0x100B4A00EA7,
        "r": 1,
        "w": 1,
        "x": 1,
        "u": 1,
        "level": 2,
        "sptep": 0x10052FA5020,
    }


def test_a_stack_stands_with_its_event() -> None:
    trace = read_trace(str(DATA / "public/t06-tdpmmu-teardown-6.1plus-stack.txt"))
    assert list(trace.stacks) == [1]
    assert trace.stacks[1][-1] == "exit_mmap"


def test_a_log_is_no_trace() -> None:
    with pytest.raises(InputError, match=r"no event of a trace in 29 lines, .*mmulab spte decode"):
        read_trace(str(DATA / "public/t12-dmesg-spte-hierarchies.txt"))
