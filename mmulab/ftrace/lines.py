"""What a line of a trace is, where it is no plain event.

An event's line has who, where and when before its name; around events stand headings, losses, stacks and
the marks of whoever cut the text.

Source: Linux 6.1 ``kernel/trace/trace_output.c`` (``trace_print_context``), ``kernel/trace/trace.c``;
trace-cmd ``tracecmd/trace-read.c``; perf ``builtin-script.c``
"""

from __future__ import annotations

import re
from typing import NamedTuple

STACK = "<stack trace>"
HEADER = re.compile(
    r"(?P<place>[^\n]*?\[\d{1,4}\](?: +[^\s:]{4,7})?) +(?P<time>\d+(?:\.\d+)?): +(?P<rest>\S.*)|"
    r"(?P<other>.*?)(?<!\S)(?P<seconds>\d+\.\d{6,9}): +(?P<what>\S.*)"
)
HEADER_ONLY = re.compile(
    r"\s*\S.{0,40}[- ]\d+\s+(?:\(\s*[-\d]+\) )?\[\d{1,4}\](?:\s+\S{4,7})?(?:\s+\d+\.\d+:)?\s*"
)
NAMED = re.compile(r"\s*([A-Za-z_][\w:]*): *(.*)")
PRIVATE = re.compile(r"\s*([A-Za-z_]\w*)((?: +\w+=\S+)+)\s*")
_DUMPED = re.compile(
    r"(?:\[ *\d+\.\d+\] ?)?\s*(?P<who>\S.{0,15}-\d+) +(?P<cpu>\d{1,4})(?P<flags>[.\w]{4,5}) +"
    r"(?P<us>\d{1,15})us[ :!+#*$@]*: (?P<rest>\S.*)"
)
HIERARCHY = re.compile(r"------ spte\b.* level\b")
"""A line of a log that shows a shadow entry (``get_mmio_spte``)."""
_PASSED = re.compile(
    r"\s*(?:#.*|[-=`~*]{2,}\w*|[\[(<]?(?:\.{2,}|\u2026)[\])>]?|[-\[(<8 ]*\bsnip\b[->\]) 8]*|"
    r"cpus=\d+|CPU:? ?\d+ is empty|version = \d+|trace-cmd .*|\d+ (?:events|entries).*|)\s*",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"\s*CPU:? ?(?P<cpu>\d+):? \[(?:LOST )?(?P<count>\d+)? ?EVENTS(?: DROPPED)?\]\s*|"
    r".*PERF_RECORD_LOST lost (?P<perf>\d+).*|.*\bLOST (?P<script>\d+) events!?.*",
    re.IGNORECASE,
)
_FRAME = re.compile(r"\s*=> ?(?P<function>\S+).*|\s+[0-9a-f]{8,16} (?P<symbol>\S+)(?: \(.*\))?\s*")
_PLACE = re.compile(
    r"\s*(?P<task>\S.*?|)(?:-(?P<dashed>\d+)|\s+(?P<pid>\d+)(?:/(?P<tid>\d+))?)\s+"
    r"(?:\(\s*(?P<tgid>\d+|-+)\)\s+)?\[(?P<cpu>\d+)\](?:\s+(?P<flags>\S+))?\s*"
)


class Place(NamedTuple):
    """Who an event's line names: the task and its thread, and the CPU; -1 and "" where it does not."""

    task: str
    pid: int
    tgid: int
    cpu: int
    flags: str


UNKNOWN_PLACE = Place("", -1, -1, -1, "")


class Lost(NamedTuple):
    """Events that the kernel or the tool could not keep; `events` is -1 where it is not said."""

    before: int
    cpu: int
    events: int


def read_place(text: str) -> Place | None:
    """Read what stands before an event's time.

    Examples
    --------
    >>> read_place("        tdxvm-13694-13714   [065] .... ")
    Place(task='tdxvm-13694', pid=13714, tgid=-1, cpu=65, flags='....')
    >>> read_place("       CPU 0/KVM  1018505/1018510 [025] ").pid
    1018510
    """
    if not text:
        return UNKNOWN_PLACE
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    pid = found["dashed"] or found["tid"] or found["pid"]
    tgid = found["tgid"] or (found["pid"] if found["tid"] else "") or ""
    return Place(
        found["task"],
        int(pid),
        int(tgid) if tgid.isdigit() else -1,
        int(found["cpu"]),
        found["flags"] or "",
    )


def read_time(text: str) -> int:
    """Return a time in nanoseconds; one without a point counts the ticks of the trace's clock.

    >>> read_time("57120.030891"), read_time("1.5"), read_time("812")
    (57120030891000, 1500000000, 812)
    """
    seconds, point, part = text.partition(".")
    return int(seconds) * 10**9 + int(part[:9].ljust(9, "0")) if point else int(seconds)


def read_header(line: str) -> tuple[str, str, str] | None:
    """Return the place, the time and the rest of an event's line, each as text.

    >>> read_header("[   12.5] qemu-sys-140     3d..2 16309345us : kvm_mmu_load: (kvm_mmu_load+0x0)")
    ('qemu-sys-140 [3] d..2', '16.309345', 'kvm_mmu_load: (kvm_mmu_load+0x0)')
    """
    found = HEADER.fullmatch(line)
    if found is None:
        return _read_dumped(line)
    if found["time"]:
        return found["place"], found["time"], found["rest"]
    return found["other"].rstrip(), found["seconds"], found["what"]


def _read_dumped(line: str) -> tuple[str, str, str] | None:
    """Read a line of the buffer that an oops dumps to the log (``ftrace_dump_on_oops``)."""
    found = _DUMPED.fullmatch(line)
    if found is None:
        return None
    seconds, micro = divmod(int(found["us"]), 10**6)
    return f"{found['who']} [{found['cpu']}] {found['flags']}", f"{seconds}.{micro:06}", found["rest"]


def names_cpu(line: str) -> bool:
    """Whether a line is an event's that says its CPU, and so a head that is whole."""
    found = HEADER.fullmatch(line)
    return found is not None and found["time"] is not None


def is_passed(line: str) -> bool:
    """Whether a line is a heading, a mark of a cut, or empty."""
    return _PASSED.fullmatch(line) is not None


def lost(line: str) -> Lost | None:
    """Return what a line says of lost events, before which event left open."""
    found = _LOST.fullmatch(line)
    if found is None:
        return None
    count = found["count"] or found["perf"] or found["script"]
    return Lost(-1, int(found["cpu"] or -1), int(count or -1))


def frame(line: str) -> str | None:
    """Return the function that a line of a stack names."""
    found = _FRAME.fullmatch(line)
    return None if found is None else (found["function"] or found["symbol"])
