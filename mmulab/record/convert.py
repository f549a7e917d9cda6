"""What a host said of a scenario as the lines of a recording.

A scenario during which the host died has the ops that were finished, then the
one that was not, with the outcome ``host_died`` and the kernel's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmulab.conform.codec import encode_event
from mmulab.conform.outcome import HOST_DIED
from mmulab.conform.record import helper_record, json_line
from mmulab.record.emulator import Corrected, as_it_is
from mmulab.record.host import HostFacts
from mmulab.record.take import Take, TakenOp
from mmulab.record.tracepoints import RawReader
from mmulab.record.work import Work, features

__all__ = ["recorded_lines"]

_NOT_KVMS_OWN = re.compile("halt|exits|signal|host_state|preempt|blocking|guest_mode")
"""Statistics that depend on time, or count what the events say."""
_OF_THE_HOST = ("fpu_reload", "req_event")
"""Statistics that count what the host's own tasks cause."""
_NUMBERS = ("ret", "vec", "cf", "zf", "errno", "sub", "l1db")
"""Keys of an outcome that are JSON numbers; others are hexadecimal text."""
_TEXTS = ("out", "dirty", "ring")


def recorded_lines(
    work: Work,
    take: Take,
    facts: HostFacts,
    words: Sequence[str] = (),
    corrected: Corrected = as_it_is,
) -> list[str]:
    """Return the lines of a recording.

    Parameters
    ----------
    work : Work
    take : Take
    facts : HostFacts
    words : sequence of str
        What the kernel said when it died; empty: it did not.
    corrected : callable
        Leaves out what is the emulator's own doing.

    Raises
    ------
    InputError
        The trace has gaps, or events that are unknown.
    """
    vendor = work.scenario.header.vendor
    reader = RawReader(vendor, facts.formats, facts.words(), facts.phys_bits)
    for frames in take.frames:
        reader.add_frames(frames)
    records = []
    before = take.frames[0] if take.frames else ()
    for op in take.ops:
        if op.frames:
            reader.frames_now(before, op.frames)
            before = op.frames
        told, _, counted = (op.outcome or "").partition("|")
        events, out = corrected(list(reader.events(op.pages)), outcome(told.split()))
        if op.outcome is None:
            out = {"out": HOST_DIED, "words": list(words)}
        record = _op(op, out, [encode_event(event, vendor) for event in events], _stats(counted.split()))
        records.append(record)
    header = (
        work.described
        | helper_record()
        | facts.header(vendor, features(work.scenario.header.cpuid, facts.supported))
    )
    if work.scenario.vcpus > 1:
        header["vcpus"] = work.scenario.vcpus
    if work.nolock:
        header["nolock"] = 1
    header["n_ops"] = work.n_ops
    header["n_ran"] = sum(record["i"] >= 0 and record["op"] != "teardown" for record in records)
    header["n_events"] = sum(len(record["ev"]) for record in records)
    if reader.unknown:
        header["unknown_host_frames"] = len(reader.unknown)
    total = {k: v for k, v in _stats(take.total.split()).items() if k not in _OF_THE_HOST}
    return [json_line(record) for record in (header, *records, {"end": 1, "stats_total": total})]


def _op(
    op: TakenOp, out: dict[str, Any], events: list[dict[str, Any]], stats: dict[str, int]
) -> dict[str, Any]:
    record: dict[str, Any] = {"i": op.index, "op": op.text, "out": out, "ev": events}
    if stats:
        record["stats"] = {key: value for key, value in stats.items() if key not in _OF_THE_HOST}
    return record


def outcome(words: Iterable[str]) -> dict[str, Any]:
    """Return an outcome as recordings have it from the VMM's words.

    >>> outcome(["out=exc", "vec=14", "err=2", "rip=1810", "cr2=40000000"])
    {'out': 'exc', 'vec': 14, 'err': '0x2', 'rip': '0x1810', 'cr2': '0x40000000'}
    """
    found: dict[str, Any] = {}
    exits = []
    for key, _, value in (word.partition("=") for word in words):
        if key == "mmio":
            rw, gpa, length, data = value.split(":")
            exits.append({"rw": rw, "gpa": f"0x{gpa}", "len": int(length), "data": f"0x{data}"})
        elif key in _TEXTS:
            found[key] = value
        else:
            found[key] = int(value) if key in _NUMBERS else f"0x{value}"
    return found | ({"mmio": exits} if exits else {})


def _stats(words: Iterable[str]) -> dict[str, int]:
    """Return statistics by name, the VM's and all vCPUs' together."""
    found: dict[str, int] = {}
    for name, _, value in (word.partition("=") for word in words):
        if not _NOT_KVMS_OWN.search(name):
            found[name] = found.get(name, 0) + int(value)
    return found
