"""Events as lines of a trace: a model's run, or a trace that was read, in any of the three texts.

A function without a tracepoint stands as a kprobe with named arguments. In the texts of trace-cmd and perf
the events of which libtraceevent has a plugin stand in the plugin's words, which tell less than the
kernel's.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmutrace.h``, ``arch/x86/kvm/trace.h``, ``kernel/trace/trace_output.c``;
trace-cmd ``tracecmd/trace-read.c``; perf ``builtin-script.c``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from mmulab import events as ev
from mmulab.ftrace.kernel_fields import kernel_fields
from mmulab.ftrace.layout import PLUGIN, UNPARSED, Layout
from mmulab.ftrace.layouts import KVM, KVMMMU, LAYOUTS
from mmulab.ftrace.lines import Place
from mmulab.ftrace.trace import TracedEvent
from mmulab.ftrace.wording import event_text
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.decoders import PLUGIN_KVM
from mmulab.trace.recording import Recording

TEXTS = ("trace", "trace-cmd", "perf")
"""``trace_pipe``, ``trace-cmd report``, ``perf script``."""
_PROBE = "probe"
"""The field of a probe's event that says where it stands; its arguments follow."""


def format_event(event: ev.Event, kernel: Kernel, *, vendor: str = "amd", vcpu: int = 0) -> str:
    """Return an event as the kernel of `vendor`'s host prints it, its name first.

    Examples
    --------
    >>> from mmulab.kvm.kernels import LINUX_6_1
    >>> format_event(ev.kvm_mmu_load(), LINUX_6_1)
    'kvm_mmu_load: (kvm_mmu_load+0x0)'
    """
    if isinstance(event, ev.CONSOLE):
        return event_text(event, kernel)
    name, fields = traced(event, kernel, vendor, vcpu)
    return f"{name}: {line_of(name, fields)}"


def traced(event: ev.Event, kernel: Kernel, vendor: str, vcpu: int) -> tuple[str, dict[str, Any]]:
    """Return a model's event by the kernel's name and fields: only those that its line tells."""
    name = kernel.events.name(type(event))
    if isinstance(event, ev.FUNCTIONS):
        return name, {_PROBE: f"{name}+0x0", **event._asdict()}
    fields = kernel_fields(event, kernel, vendor, vcpu)
    layout = _layout(name, fields, by_plugin=False)
    told = fields if layout is None else layout.forms  # a design of a user's own may have roles of no kernel
    return name, {
        field: int(value) if isinstance(value, bool) else value
        for field, value in fields.items()
        if field in told
    }


def line_of(name: str, fields: Mapping[str, Any], *, by_plugin: bool = False) -> str:
    """Return what an event's line says after its name.

    Parameters
    ----------
    name : str
    fields : mapping
        By the layouts' names.
    by_plugin : bool
        Whether libtraceevent prints it; its plugin then tells a part of the fields.
    """
    layout = None if _PROBE in fields else _layout(name, fields, by_plugin=by_plugin)
    if layout is not None and (layout.by == PLUGIN or layout.forms.keys() == fields.keys()):
        return layout.write(fields)
    begin = f"({fields[_PROBE]})" if _PROBE in fields else UNPARSED if name in LAYOUTS else ""
    return " ".join([begin, *(_pair(*pair) for pair in fields.items() if pair[0] != _PROBE)]).strip()


def _pair(name: str, value: Any) -> str:
    return f"{name}={value:#x}" if isinstance(value, int) and value >= 0 else f"{name}={value}"


def _layout(name: str, fields: Mapping[str, Any], *, by_plugin: bool) -> Layout | None:
    """Return the layout that tells the most of the fields, among the plugin's if it has one."""
    fitting = [one for one in LAYOUTS.get(name, ()) if one.fits(fields)]
    if by_plugin:
        fitting = [one for one in fitting if one.by == PLUGIN] or fitting
    return max(fitting, key=lambda one: len(one.forms), default=None)


def format_line(event: TracedEvent, text: str = "trace") -> str:
    """Return an event's whole line in one of the :data:`TEXTS`.

    Examples
    --------
    >>> place = Place("vcpu", 0, -1, 0, ".....")
    >>> format_line(TracedEvent(5000, place, "kvm_mmu_paging_element", {"pte": 0x67, "level": 2}))[31:]
    '.....     0.000005: kvm_mmu_paging_element: pte 67 level 2'
    """
    task, pid, _, cpu, flags = event.place
    said = line_of(event.name, event.fields, by_plugin=text != "trace")
    seconds, part = divmod(event.time, 10**9)
    time = f"{seconds:5}.{part // 1000:06}" if part % 1000 == 0 else f"{seconds:5}.{part:09}"
    if event.time < 0:
        return f"{event.name}{':' if event.name in LAYOUTS or _PROBE in event.fields else ''} {said}"
    if text == "trace":
        return f"{task:>16}-{pid:<7} [{cpu:03}] {flags or '.....'} {time:>12}: {event.name}: {said}"
    if text == "trace-cmd":
        return f"{task:>16}-{pid:<5} [{cpu:03}] {time:>12}: {event.name + ':':21} {said}"
    group = "kvmmmu" if event.name in KVMMMU else "kvm" if event.name in KVM else "probe"
    return f"{task:>16} {pid:>5} [{cpu:03}] {time:>12}: {group + ':' + event.name:>30}: {said}"


def format_trace(events: Iterable[TracedEvent], text: str = "trace") -> Iterator[str]:
    """Yield the lines of many events."""
    return (format_line(event, text) for event in events)


def model_events(
    ops: Iterable[tuple[int, Iterable[ev.Event]]], kernel: Kernel, vendor: str, text: str = "trace"
) -> Iterator[TracedEvent]:
    """Yield a model's events as a trace has them; the time counts events, in microseconds.

    In the texts of tools a role is as libtraceevent's plugin reads it, which knows old layouts only.

    Parameters
    ----------
    ops : iterable of (int, iterable of Event)
        The vCPU of each op, and the op's events.
    kernel : Kernel
    vendor : str
        The host's.
    text : str
    """
    rip = number = 0
    for vcpu, events in ops:
        place = Place("vcpu", vcpu, -1, vcpu, ".....")
        for event in events:
            number += 1
            if isinstance(event, ev.CONSOLE):
                continue
            name, fields = traced(event, kernel, vendor, vcpu)
            if text != "trace" and "role" in fields:
                fields["role"] = PLUGIN_KVM.said(cast("ev.PageEvent", event).role)
            rip = fields["guest_rip"] if name == "kvm_exit" else rip
            if name == "kvm_nested_vmexit":  # of the exit that was just traced (``__vmx_handle_exit``)
                fields["guest_rip"] = rip
            yield TracedEvent((number - 1) * 1000, place, name, fields)


def recorded_events(recording: Recording, text: str = "trace") -> Iterator[TracedEvent]:
    """Yield a recording's events as :func:`model_events` does."""
    firsts = [recording.first_event(op) for op in range(len(recording.ops))]
    ops = (
        (recording.op(op).vcpu, (recording.events[at] for at in range(first, int(recording.ends[op]))))
        for op, first in enumerate(firsts)
    )
    return model_events(ops, recording.config.kernel, recording.config.host.vendor, text)


def format_recording(recording: Recording, text: str = "trace") -> Iterator[str]:
    """Yield a recording's events as lines of one of the :data:`TEXTS`."""
    return format_trace(recorded_events(recording, text), text)
