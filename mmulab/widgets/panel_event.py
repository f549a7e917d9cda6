"""One event as HTML: what it means, how the kernel's trace words it, its word bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmulab import events as ev
from mmulab.ftrace.wording import event_text
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.spte import SpteFormat
from mmulab.machine.machine import Machine
from mmulab.trace.sentence import event_sentence
from mmulab.widgets.bitfield import strip
from mmulab.widgets.scene_svg import Svg
from mmulab.widgets.steps import Step, Steps
from mmulab.widgets.words import gpte_cells, role_cells, spte_cells

WITH_ROLE = (
    ev.kvm_mmu_get_page,
    ev.kvm_mmu_sync_page,
    ev.kvm_mmu_unsync_page,
    ev.kvm_mmu_prepare_zap_page,
)
"""Events about a shadow page."""


def event_html(event: ev.Event, kernel: Kernel, fmt: SpteFormat, entry_bytes: int = 8) -> str:
    """Return an event's panel.

    Parameters
    ----------
    event : Event
    kernel : Kernel
        Reads role words, names functions.
    fmt : SpteFormat
        Reads shadow entries.
    entry_bytes : int
        Width of the guest's entries.
    """
    picture = event_picture(event, kernel.design, fmt, entry_bytes)
    return (
        f'<p class="sentence">{escape(event_sentence(event, kernel.design))}</p>'
        f'<p class="wording"><code>{escape(event_text(event, kernel))}</code></p>{picture or ""}'
    )


def event_picture(event: ev.Event, design: RoleDesign, fmt: SpteFormat, entry_bytes: int = 8) -> Svg | None:
    """Return the strip of the word that an event is about, None if it is about none."""
    if isinstance(event, WITH_ROLE):
        return strip(role_cells(design.layout, event.role), title=f"the role {event.role:#x}")
    if isinstance(event, ev.kvm_mmu_set_spte):
        return strip(spte_cells(fmt, event.spte, level=event.level), title=f"the spte {event.spte:#x}")
    if isinstance(event, ev.kvm_mmu_paging_element):
        title = f"the guest's entry {event.pte:#x}, level {event.level}"
        return strip(gpte_cells(event.pte, entry_bytes), title=title)
    if isinstance(event, ev.drop_spte):
        return strip(spte_cells(fmt, 0, event.old_spte), title=f"the spte {event.old_spte:#x} goes")
    return None


def event_steps(events: Sequence[ev.Event], machine: Machine, *, name: str, vcpu: int = 0) -> Steps:
    """Return a run of events to step through.

    Parameters
    ----------
    events : sequence of Event
    machine : Machine
        The one that they came from.
    name : str
        What they are the events of.
    vcpu : int
    """
    kvm = machine.kvm
    paging = kvm.vcpus[vcpu].walk_mmu.paging
    width = 8 if paging is None else paging.mode.entry_bytes
    kernel = kvm.config.kernel
    steps = [
        Step(kernel.events.name(type(event)), event_html(event, kernel, kvm.fmt, width)) for event in events
    ]
    return Steps(steps, name=name)
