"""A real live migration under the TDP MMU, and the same one in the model, event for event.

A trace of Linux 6.1.176 (``data/ftrace-dirtylog``) says which page each fault of the guest
was at and what KVM did; what QEMU asked for follows from it: dirty logging is turned on for every slot,
all pages counting as dirty, and all are cleared twice, each clear ending with a run of entries that lose
their right to write. The model gets the slots, the sizes of the host's pages, the
faults and the clears, and its events are compared with the trace, word for word but for frames and
addresses that only the host knows, and for bits 32 and 33 of an error code: the processor's own access
to a guest table is here a plain one.
"""

from __future__ import annotations

import lzma
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab import events as ev
from mmulab import paths
from mmulab.errors import InputError
from mmulab.ftrace.writer import format_event
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_ET, X86_CR0_PE

__all__ = ["Migration", "Reached", "compare", "read_migration", "read_phases"]

MIGRATION = "ftrace-dirtylog/npt-amd64-tdpmmu-dirtylog.trace.xz"
SHADOW = "ftrace-dirtylog/shadow-amd64-dirtylog.trace.xz"
COMPARED = (
    ev.kvm_page_fault,
    ev.fast_page_fault,
    ev.kvm_mmu_get_page,
    ev.kvm_tdp_mmu_spte_changed,
    ev.kvm_mmu_set_spte,
    ev.kvm_mmu_split_huge_page,
    ev.mark_mmio_spte,
    ev.handle_mmio_page_fault,
)
"""Events that the trace holds, by type."""
KVM_DIRTY_LOG_MANUAL_CAPS = 3
"""``KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`` and ``KVM_DIRTY_LOG_INITIALLY_SET``, as QEMU 7.2 asks."""
_PAGE, _BLOCK = 12, 9
_LINE = re.compile(r"\] \S+ +[\d.]+: ((\w+): .*)")
_REGION = re.compile(r"slot=(\d+) flags=0x(\w+) gpa=0x(\w+) size=0x(\w+) hva=0x(\w+)")
_FAULT = re.compile(r"address 0x(\w+) error_code 0x(\w+)")
_SET = re.compile(r"gfn (\w+) spte \w+ \S+ level (\d)")
_SMM = 1 << 16
_FRAME = (1 << 52) - (1 << 12)
_SPTE = re.compile(r"\b((?:old_|new_)?spte|old|new) (?:0x)?([0-9a-f]+)")
_HOSTS_OWN = re.compile(
    r"^(\w+: )vcpu \d |rip 0x\w+ |(?<=error_code 0x)[12](?=[0-9a-f]{8}$)| at [0-9a-f]+$|sptep[: ]\S+ ?"
)


@dataclass(slots=True)
class Migration:
    """What the guest and the VMM did, and what KVM told of it.

    Attributes
    ----------
    slots : dict of int to SlotConfig
        Address space 0, by number, without dirty logging.
    backing : int
        Bytes of the VMM's memory that the slots show.
    small : set of int
        2 MiB blocks (gfn >> 9) that the host had as small pages.
    generation : int
        Of the memslots, when the first MMIO spte was made.
    logged : bool
        Dirty logging was turned on.
    ops : list of Op
    lines : list of str
        The compared events, as :func:`shape` leaves them.
    """

    slots: dict[int, SlotConfig] = field(default_factory=dict)
    backing: int = 0
    small: set[int] = field(default_factory=set)
    generation: int = 0
    logged: bool = False
    ops: list[Op] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Reached(NamedTuple):
    """How often an event is in the trace and in the model's run.

    Attributes
    ----------
    event : str
    recorded, model : int
    equal : bool
        All of them with the same words in the same order.
    """

    event: str
    recorded: int
    model: int
    equal: bool


def shape(text: str) -> str:
    """Return an event's words without what only its host knows: frames, places of sptes, instructions.

    Examples
    --------
    >>> shape("kvm_mmu_set_spte: gfn e9 spte 2f2e9e67 (rwxu) level 1 at 2e90f748")
    'kvm_mmu_set_spte: gfn e9 spte e67 (rwxu) level 1'
    """
    text = _HOSTS_OWN.sub(lambda found: found[1] or "", text)
    return _SPTE.sub(lambda found: f"{found[1]} {int(found[2], 16) & ~_FRAME:x}", text)


def _lines(name: str) -> Iterator[tuple[str, str]]:
    """Yield name and words of each event of a trace."""
    path = paths.data(name)
    with lzma.open(path, "rt", encoding="ascii") as text:
        for number, line in enumerate(text, 1):
            found = _LINE.search(line)
            if found is None:
                raise InputError(f"{path}: line {number} is no event; restore the file")
            yield found[2], found[1]


def read_migration() -> Migration:
    """Return the recorded migration.

    Raises
    ------
    InputError
        The file is damaged.
    """
    migration = Migration()
    compared = {kind.__name__ for kind in COMPARED}
    base, losing = 0, False
    for name, text in _lines(MIGRATION):
        if name == "__kvm_set_memory_region":
            base = base or _hva(text)
            _add_region(migration, text, base)
            continue
        if name == "kvm_page_fault":
            migration.ops.append(_fault(text))
            losing = False
        elif name == "kvm_tdp_mmu_spte_changed" and migration.logged and not losing:
            migration.ops += _clear_all(migration)
            losing = True
        elif name == "kvm_mmu_set_spte" and not migration.logged:
            _note_small(migration, text)
        elif name == "mark_mmio_spte":
            migration.generation = migration.generation or int(text.rpartition(" ")[2], 16)
        if name in compared:
            migration.lines.append(shape(text))
    return migration


def _hva(text: str) -> int:
    found = _REGION.search(text)
    assert found is not None
    return int(found[5], 16)


def _add_region(migration: Migration, text: str, base: int) -> None:
    """Note a change of slots: before the first fault it is the layout, later on dirty logging."""
    found = _REGION.search(text)
    assert found is not None
    id, (flags, gpa, size, hva) = int(found[1]), (int(word, 16) for word in found.groups()[1:])
    if id >= _SMM:
        return  # the guest never enters SMM again
    if not size:
        migration.slots.pop(id, None)
        return
    old = migration.slots.get(id)
    if old is not None and old.size == size and flags & KVM_MEM_LOG_DIRTY_PAGES:
        migration.ops.append(ops.SetMemslot(id, gpa, size, flags, old.offset))
        migration.logged = True
        return
    offset = hva - base
    migration.slots[id] = SlotConfig(id, gpa, size, flags, offset)
    migration.backing = max(migration.backing, offset + size)


def _clear_all(migration: Migration) -> list[Op]:
    slots = sorted(migration.slots.values(), key=lambda slot: slot.gpa)
    return [ops.ClearDirtyLog(slot.id, 0, slot.size >> _PAGE) for slot in slots]


def _fault(text: str) -> Op:
    found = _FAULT.search(text)
    assert found is not None
    address, code = int(found[1], 16), int(found[2], 16)
    return ops.Touch(
        Mode.SUPERVISOR, address, write=bool(code & PFERR_WRITE_MASK), fetch=bool(code & PFERR_FETCH_MASK)
    )


def _note_small(migration: Migration, text: str) -> None:
    found = _SET.search(text)
    if found is not None and found[2] == "1":
        migration.small.add(int(found[1], 16) >> _BLOCK)


def machine_of(migration: Migration, kernel: Kernel = LINUX_6_1) -> Machine:
    """Return a machine with the recording's host and slots, before the first fault."""
    config = MachineConfig(
        host=HostConfig(tdp=True, tdp_mmu=True, rsvd_without_p=True),
        backing_bytes=migration.backing,
        thp=True,
        manual_dirty=KVM_DIRTY_LOG_MANUAL_CAPS,
        slots=tuple(migration.slots.values()),
        kernel=kernel,
    )
    machine = Machine(config)
    machine.kvm.slots[0].generation = migration.generation
    for slot in migration.slots.values():
        first = machine.memory.backing + (slot.offset >> _PAGE)
        for gfn in range(slot.gpa >> _PAGE, slot.gpa + slot.size >> _PAGE, 1 << _BLOCK):
            if gfn >> _BLOCK in migration.small:
                machine.memory.page_level[first + gfn - (slot.gpa >> _PAGE) >> _BLOCK] = 1
    machine.execute(ops.SetSregs(X86_CR0_PE | X86_CR0_ET, 0, 0, 0))
    return machine


def model_lines(migration: Migration, kernel: Kernel = LINUX_6_1) -> list[str]:
    """Return the model's events for what the recording's guest and VMM did."""
    machine = machine_of(migration, kernel)
    events: list[ev.Event] = []
    machine.emit = events.append
    for op in migration.ops:
        machine.execute(op)
    return [shape(format_event(event, kernel)) for event in events if isinstance(event, COMPARED)]


def compare(recorded: list[str], model: list[str]) -> list[Reached]:
    """Compare two lists of events: each kind's number and words, and all together in their order."""
    names = [kind.__name__ for kind in COMPARED]
    theirs, ours = (_by_name(lines, names) for lines in (recorded, model))
    rows = [Reached(name, len(theirs[name]), len(ours[name]), theirs[name] == ours[name]) for name in names]
    return [*rows, Reached("all, in their order", len(recorded), len(model), recorded == model)]


def _by_name(lines: list[str], names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in names}
    for line in lines:
        found[line.partition(":")[0]].append(line)
    return found


class Phase(NamedTuple):
    """Large sptes that shadow paging made in one part of a migration.

    Attributes
    ----------
    name : {"before", "while logging", "after"}
    large : int
        Entries of level 2.
    splits : int
    """

    name: str
    large: int
    splits: int


def read_phases() -> list[Phase]:
    """Return what a host with shadow paging did before, during and after dirty logging."""
    found: Counter[tuple[str, str]] = Counter()
    phase = "before"
    for name, text in _lines(SHADOW):
        if name == "__kvm_set_memory_region":
            flags = int(_REGION.search(text)[2], 16)  # type: ignore[index]  # _lines has checked it
            logged = bool(flags & KVM_MEM_LOG_DIRTY_PAGES)
            phase = "while logging" if logged else "before" if phase == "before" else "after"
        else:
            found[phase, name] += 1
    return [
        Phase(name, found[name, "kvm_mmu_set_spte"], found[name, "kvm_mmu_split_huge_page"])
        for name in ("before", "while logging", "after")
    ]
