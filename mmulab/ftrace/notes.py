"""What a reader of a trace must know of it besides: what was not read, lost, or of several machines."""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.errors import quoted
from mmulab.ftrace.layouts import KVM, KVMMMU
from mmulab.ftrace.trace import Trace


def notes(trace: Trace) -> Iterator[str]:
    """Yield a sentence for each thing that the text had beside events that were read."""
    counts = trace.counts
    if counts.ended:
        yield f"the file is {counts.ended}: {len(trace)} events before that"
    for name, count in sorted(counts.unreadable.items()):
        yield f"{count} {name}: not in a form that is known"
    if counts.unknown:
        most = sorted(counts.unknown.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{name} {count}" for name, count in most[:8]) + (" .." if len(most) > 8 else "")
        yield f"{sum(counts.unknown.values())} events of names that are not read: {shown}"
    if counts.unread:
        yield f"{_lines(counts.unread)} not read"
    if counts.long:
        yield f"{_lines(counts.long)} too long to be an event's, passed over"
    if counts.samples:
        yield f"the first that was not read: '{quoted(counts.samples[0], 100)}'"
    if trace.lost:
        told = sum(max(gap.events, 0) for gap in trace.lost)
        more = " or more" if any(gap.events < 0 for gap in trace.lost) else ""
        yield f"{told}{more} events lost by the kernel, at {len(trace.lost)} places: what follows may not fit"
    machines = max(map(len, trace.vcpu_threads.values()), default=0)
    if machines > 1:
        threads = next(pids for pids in trace.vcpu_threads.values() if len(pids) == machines)
        counted = ", ".join(f"{pid} with {trace.thread_counts[pid]} events" for pid in threads)
        yield f"{machines} virtual machines, by the threads of one vCPU ({counted}); all are counted"
    if not set(KVMMMU) & set(trace.event_counts):
        yield "no event of the group kvmmmu; record with -e kvmmmu -e kvm"


def _lines(number: int) -> str:
    return f"{number} line{'s' if number != 1 else ''}"


def has_kvm(trace: Trace) -> bool:
    """Whether there is any event of KVM's in a trace."""
    return any(name in KVM or name in KVMMMU for name in trace.event_counts)
