"""Tracepoints and probes: an event is made only if someone listens.

Source: Linux 6.1 ``arch/x86/kvm/trace.h``, ``mmu/mmutrace.h`` (``KVM_MMU_PAGE_FIELDS``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVarTuple

from mmulab.event import Event
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm

Fields = TypeVarTuple("Fields")


def trace(kvm: Kvm, event: Callable[[*Fields], Event], *fields: *Fields) -> None:
    """Emit an event with these fields.

    They are worked out even if nobody listens; where that costs, the caller asks for ``kvm.emit`` first.
    """
    emit = kvm.emit
    if emit is not None:
        emit(event(*fields))


def trace_page(
    kvm: Kvm, event: Callable[[int, int, int, int, bool, *Fields], Event], sp: ShadowPage, *fields: *Fields
) -> None:
    """Emit an event whose fields are a shadow page as it is now, then `fields`."""
    emit = kvm.emit
    if emit is not None:
        emit(event(sp.gfn, sp.role, sp.mmu_valid_gen, sp.root_count, sp.unsync, *fields))
