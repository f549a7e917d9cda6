"""What real files contain beside plain events."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.ftrace import source
from mmulab.ftrace.lines import Lost, Place
from mmulab.ftrace.reader import read_text, read_trace
from mmulab.ftrace.trace import Trace

HEAD = " qemu-system-x86-140     [000] .....    16.309345: "
ELEMENT = "kvm_mmu_paging_element: pte 67 level 2"
SPTE = "kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (rwxu) level 2 at 10052fa5020"


def only(text: str) -> Trace:
    """Read a text of which every line is known."""
    trace = read_text(text)
    assert not trace.counts.unread, trace.counts.samples
    assert not trace.counts.unreadable
    return trace


@pytest.mark.parametrize(
    ("head", "place", "time"),
    [
        (HEAD, Place("qemu-system-x86", 140, -1, 0, "....."), 16309345000),
        (
            "   tdxvm-13694-13714   [065] ....   807.856265: ",
            Place("tdxvm-13694", 13714, -1, 65, "...."),
            807856265000,
        ),
        ("  CPU 0/KVM-1018505 [025] 57120.030891: ", Place("CPU 0/KVM", 1018505, -1, 25, ""), 57120030891000),
        (
            "  CPU 0/KVM  1018505 [025] 57120.030891123: kvmmmu:",
            Place("CPU 0/KVM", 1018505, -1, 25, ""),
            57120030891123,
        ),
        ("  <...>-77  (   70) [001] d..2. 1.000001: ", Place("<...>", 77, 70, 1, "d..2."), 1000001000),
        ("  a: b-9  [001] ..... 1.000001: ", Place("a: b", 9, -1, 1, "....."), 1000001000),
        ("  idle-9  [001] ..... 4711: ", Place("idle", 9, -1, 1, "....."), 4711),
        (
            "[   99.5] qemu-sys-140     3d..2 16309345us : ",
            Place("qemu-sys", 140, -1, 3, "d..2"),
            16309345000,
        ),
        ("", Place("", -1, -1, -1, ""), -1),
        ("   ", Place("", -1, -1, -1, ""), -1),
    ],
)
def test_heads(head: str, place: Place, time: int) -> None:
    event = only(head + ELEMENT).event(0)
    assert event == (time, place, "kvm_mmu_paging_element", {"pte": 0x67, "level": 2})


@pytest.mark.parametrize(
    "text",
    [
        HEAD + SPTE,
        HEAD + SPTE + "\r\n",
        "> > " + HEAD + SPTE,
        " >" + HEAD + SPTE,
        f"\x1b[31m{HEAD}\x1b[0mkvm_mmu_set_spte\x1b[1m:{SPTE[17:]}\x1b[K",
        HEAD + "kvm_mmu_set_spte: gfn 800\nspte 100b4a00ea7 (rwxu)\nlevel 2 at 10052fa5020",
        HEAD + "kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (rwxu) level 2\n  at 10052fa5020",
        HEAD + "kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (rwxu) level 2 at\n  10052fa5020",
        HEAD.rstrip() + "\n" + SPTE,
        " qemu-system-x86-140     [000]\n.....    16.309345: " + SPTE,
        HEAD + SPTE.replace(": ", ":       "),
        HEAD + SPTE.replace("spte 100", "spte 0x100") + "   ",
        (HEAD + SPTE).replace(" ", "\u00a0"),
        "&gt; " + (HEAD + SPTE).replace(" gfn ", "\tgfn\t"),
        "\ufeff" + HEAD + SPTE,
        f"```text\n{HEAD}{SPTE}\n```\n-- snip --\n\u2026\n(...)\n=====",
    ],
    ids=[
        "plain",
        "cr",
        "quoted",
        "quoted-once",
        "colour",
        "wrapped",
        "wrapped-late",
        "wrapped-last",
        "head",
        "head-cut",
        "padded",
        "0x",
        "nbsp",
        "page",
        "bom",
        "fenced",
    ],
)
def test_what_mailers_and_terminals_do(text: str) -> None:
    trace = only(text)
    assert trace.event(0).fields["sptep"] == 0x10052FA5020
    assert trace.event(0).time == 16309345000
    assert len(trace) == 1


def test_lines_between_events() -> None:
    text = f"""# tracer: nop
{HEAD}{ELEMENT}
{HEAD}<stack trace>
 => kvm_mmu_page_fault
 => vmx_handle_exit+0x10/0x20
CPU:3 [LOST 123 EVENTS]
{HEAD}{ELEMENT}
CPU 2: [7 EVENTS DROPPED]
CPU:1 [EVENTS DROPPED]
--
cpus=4
CPU 3 is empty
[...]

{HEAD}{ELEMENT}
	ffffffffc0a1b2c3 kvm_mmu_load+0x3 ([kvm])
"""
    trace = only(text)
    assert trace.event_counts == {"kvm_mmu_paging_element": 3}
    assert trace.lost == [Lost(1, 3, 123), Lost(2, 2, 7), Lost(2, 1, -1)]
    assert trace.stacks == {0: ["kvm_mmu_page_fault", "vmx_handle_exit+0x10/0x20"], 2: ["kvm_mmu_load+0x3"]}
    assert trace.counts.passed == 6


def test_unknown_events_are_counted_by_name() -> None:
    trace = read_text(f"{HEAD}sched_switch: prev_comm=a b\n{HEAD}sched:sched_switch: x\n{HEAD}{ELEMENT}")
    assert trace.counts.unknown == {"sched_switch": 2}
    assert [event.name for event in trace.events()] == [
        "sched_switch",
        "sched_switch",
        "kvm_mmu_paging_element",
    ]


def test_a_cut_line_is_counted_and_the_rest_read() -> None:
    trace = read_text(f"{HEAD}{ELEMENT}\n{HEAD}{ELEMENT}\n{HEAD}kvm_mmu_paging_element: pte 6")
    assert trace.counts.unreadable == {"kvm_mmu_paging_element": 1}
    assert trace.counts.samples == ["kvm_mmu_paging_element: pte 6"]
    assert [event.fields for event in trace.events()] == [{"pte": 0x67, "level": 2}] * 2 + [{}]


def test_probes_say_their_own_fields() -> None:
    text = f"""{HEAD}kvm_mmu_pte_write: (kvm_mmu_pte_write+0x0/0x370 [kvm]) gpa=0x6f48 new=0x3 bytes=4
{HEAD}kvm_mmu_page_fault_ret: (kvm_arch_vcpu_ioctl_run+0x9e9/0x1720 [kvm] <- kvm_mmu_page_fault) ret=1
{HEAD}kvm_mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])"""
    events = [event.fields for event in only(text).events()]
    assert events[0] == {"probe": "kvm_mmu_pte_write+0x0/0x370 [kvm]", "gpa": 0x6F48, "new": 3, "bytes": 4}
    assert events[1]["ret"] == 1
    assert list(events[2]) == ["probe"]


def test_fields_one_by_one() -> None:
    text = "[FAILED TO PARSE] mmu_valid_gen=0x1 gfn=256 role=1809 root_count=0 unsync=0 created=1"
    event = only(f"  CPU 0/KVM-5 [000] 1.000001: kvm_mmu_get_page:     {text}").event(0)
    assert event.fields == {
        "mmu_valid_gen": 1, "gfn": 256, "role": 1809, "root_count": 0, "unsync": 0, "created": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("kvm_exit: reason EPT_MISCONFIG rip 0x133025 info 0 f", {"reason": "EPT_MISCONFIG", "info2": 15}),
        ("kvm_page_fault: address 84d000 error_code 4", {"fault_address": 0x84D000, "error_code": 4}),
        ("kvm_mmu_get_page: sp gen a gfn 1 4 pae q0 direct wux nxe root 0 sync new", {"mmu_valid_gen": 10}),
        ("kvm_mmu_get_page: sp gen 10 gfn 1 l1 4-byte q0 wux nxe ad root 0 sync new", {"mmu_valid_gen": 10}),
        (
            "kvm_mmu_get_page: existing sp gfn 1 1/4 q0 wux !pge nxe root 2 unsync",
            {"unsync": 1, "created": 0},
        ),
        ("kvm_mmu_pagetable_walk: addr 8c26f6 pferr 0", {"pferr": 0}),
        ("kvm_inj_exception: #PF (0x7) [reinjected]", {"exception": 14, "error_code": 7, "reinjected": 1}),
        (
            "kvm_emulate_insn: f0000:ec2f:0f 20 c1 (real) failed",
            {"insn": "0f 20 c1", "mode": "real", "failed": 1},
        ),
        ("mark_mmio_spte: sptep:(____ptrval____) gfn fee00 access 7 gen 3a", {"sptep": 0, "gen": 0x3A}),
        (
            "kvm_mmu_set_spte: gfn 1151b spte 86000080a5669b37 (rwx) level 1 at 80b34fc8d8",
            {"spte": 0x86000080A5669B37, "u": -1},
        ),
    ],
)
def test_layouts_of_kernels_and_tools(line: str, fields: dict[str, object]) -> None:
    found = only(HEAD + line).event(0).fields
    assert dict(found) | fields == found


def test_many_blocks_are_read_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [
        HEAD + ELEMENT,
        HEAD + "kvm_mmu_set_spte: gfn 800",
        "spte 100b4a00ea7 (rwxu)",
        "level 2 at 10052fa5020",
        HEAD + "kvm_mmu_load: (kvm_mmu_load+0x0/0x890 [kvm])",
    ]
    path = tmp_path / "trace"
    path.write_text("\n".join(lines * 50))
    whole = list(read_trace(str(path)).events())
    monkeypatch.setattr(source, "BLOCK", 700)
    parts = read_trace(str(path))
    assert list(parts.events()) == whole
    assert parts.counts.joined == 100


def _gz(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no event of a trace in 0 lines"),
        (b"hello\nworld\n", "no event of a trace in 2 lines, as 'hello'"),
        (bytes(range(256)) * 100, "binary, no text of a trace"),
        (b"\x17\x08\x44tracing6\0\0", "trace-cmd's own file.*trace-cmd report"),
        (b"PERFILE2" + bytes(100), "perf's own file.*perf script"),
        (_gz(b"x" * 90000)[:40], "cut when packed, and no event"),
        (b"\x1f\x8b" + bytes(100), "damaged when packed"),
        (b"x" * 60_000, "no event of a trace in 1 lines"),
    ],
)
def test_what_is_no_trace_is_said(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_trace(str(path))
    with pytest.raises(InputError, match="standard input: "):
        read_trace("-", io.BytesIO(data))


def test_a_cut_archive_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    text = "".join(f"{HEAD}kvm_mmu_paging_element: pte {number * 7919:x} level 2\n" for number in range(5000))
    path = tmp_path / "trace.gz"
    whole = _gz(text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    trace = read_trace(str(path))
    assert trace.counts.ended == "cut when packed"
    assert 1000 < len(trace) < 4999
    assert trace.tables["kvm_mmu_paging_element"]["pte"][999] == 999 * 7919
    path.write_bytes(_gz(text[:9000].encode()) + _gz(text[9000:].encode()))
    assert len(read_trace(str(path))) == 5000


def test_a_long_line_is_passed_over() -> None:
    trace = read_text(
        f"{HEAD}{ELEMENT}\n{'x' * 60_000}\n{HEAD}kvm_exit: reason {' ' * 60_000}\n{HEAD}{ELEMENT}"
    )
    assert (len(trace), trace.counts.long, trace.counts.unread) == (2, 2, 0)


def test_two_machines_show_by_their_threads() -> None:
    exits = "kvm_entry: vcpu 0, rip 0x1000"
    trace = only(
        f" a-140 [000] 1.000001: {exits}\n b-150 [001] 1.000002: {exits}\n a-140 [001] 1.000003: {exits}"
    )
    assert trace.vcpu_threads == {0: [140, 150]}
