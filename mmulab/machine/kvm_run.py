"""How ``KVM_RUN`` ends without the guest getting to the end of its instruction.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``vcpu_run``, ``vcpu_enter_guest``),
``arch/x86/kvm/vmx/vmx.c`` (``__vmx_handle_exit``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from mmulab.kvm.dirty_ring import DirtyRingFullError
from mmulab.kvm.exits import InternalError
from mmulab.kvm.state import KvmRunError
from mmulab.machine.op import Outcome, OutcomeKind

MAX_EXITS = 64
"""Exits of one instruction; beyond, nothing that KVM does will ever let it end."""


def vm_bugged() -> Outcome:
    """Return how every call ends once the VM is dead (``KVM_BUG_ON``)."""
    return Outcome(OutcomeKind.HANG, error=errno.EIO)


def endless() -> Outcome:
    """Return how an instruction ends that faults for ever: the VMM interrupts ``KVM_RUN``.

    KVM itself has no bound. A guest's table in a read-only slot that the processor
    wants to write is an example (``PFERR_NESTED_GUEST_PAGE`` in ``kvm_mmu_page_fault``).
    """
    return Outcome(OutcomeKind.HANG, error=errno.EINTR)


def is_endless(outcome: Outcome) -> bool:
    """Whether the instruction faulted for ever, and the VMM interrupted it."""
    return outcome.kind is OutcomeKind.HANG and outcome.error == errno.EINTR


def kvm_run(run: Callable[[], Outcome]) -> Outcome:
    """Return what `run` comes to, or how ``KVM_RUN`` ends before."""
    try:
        return run()
    except DirtyRingFullError:
        return Outcome(OutcomeKind.DIRTY_RING_FULL)
    except KvmRunError as failed:
        return Outcome(OutcomeKind.HANG, error=failed.errno)
    except InternalError as failed:
        return Outcome(OutcomeKind.INTERNAL_ERROR, suberror=failed.suberror)
