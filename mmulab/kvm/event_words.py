"""Names and numbers in which kernels report the same event in other words.

The model has one vocabulary (:mod:`mmulab.events`), that of Linux 6.1, so that
two kernels' runs can be laid side by side. What a kernel itself calls a function
at whose entry an event is seen, and which number its enum gives a return code,
is said here: for the text that its trace would have, for probes and for raw
traces.

Source: Linux 6.1.192 and 6.12.117, ``arch/x86/kvm/mmu/mmu.c``,
``arch/x86/kvm/mmu/mmu_internal.h`` (``RET_PF_*``), ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.errors import InputError, quoted
from mmulab.events import EVENT_TYPES, FUNCTIONS, Event

__all__ = ["EVENTS_6_1", "EVENTS_6_12", "EventWords"]


@dataclass(frozen=True, slots=True)
class EventWords:
    """A kernel's own words for events.

    Attributes
    ----------
    ret_pf : tuple of str
        Names of ``RET_PF_*`` in the order of their numbers.
    functions : tuple of (str, str)
        Events of functions, by name, and the function that is this kernel's;
        left out: the function is called as the event is.
    unprobed : tuple of str
        Those of them whose function has other arguments than the event: no recording has them.
    """

    ret_pf: tuple[str, ...]
    functions: tuple[tuple[str, str], ...] = ()
    unprobed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for event, function in self.functions:
            if EVENT_TYPES.get(event) not in FUNCTIONS:
                raise InputError(f"event '{quoted(event)}': it is no function's entry, so it keeps its name")
            if not (function.isidentifier() and function.isascii()):
                raise InputError(f"event {event}: '{quoted(function)}' is no name of a function")

    def not_recorded(self) -> tuple[type[Event], ...]:
        """Return the events that no recording of this kernel has."""
        return tuple(EVENT_TYPES[name] for name in self.unprobed)

    def name(self, kind: type[Event]) -> str:
        """Return what this kernel calls an event: its tracepoint, or the function entered."""
        name = kind.__name__
        return next((function for event, function in self.functions if event == name), name)


EVENTS_6_1 = EventWords(("CONTINUE", "RETRY", "EMULATE", "INVALID", "FIXED", "SPURIOUS"))
EVENTS_6_12 = EventWords(
    ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS"),
    (
        ("kvm_flush_remote_tlbs_with_address", "kvm_flush_remote_tlbs_range"),
        ("kvm_mmu_pte_write", "kvm_mmu_track_write"),
        ("kvm_mmu_unprotect_page", "__kvm_mmu_unprotect_gfn_and_retry"),
    ),
    unprobed=("kvm_mmu_unprotect_page",),
)
"""``kvm_mmu_unprotect_page`` is part of the last function now, which has an address and no gfn."""
