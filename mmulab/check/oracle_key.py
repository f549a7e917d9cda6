"""What a watcher remembers: taken, put back, and named in a state's key.

Of the oracle's history only that counts which can still change a verdict: a value that an
entry has had, and that a processor may keep, counts until that one had to forget it. Times
count only by which comes first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any, Protocol, runtime_checkable

from mmulab.check.finding import Watcher
from mmulab.check.oracle import Oracle
from mmulab.check.remembered import NEVER, Forgotten, TableHistory
from mmulab.check.state_key import plain
from mmulab.check.world import HOST_SPACE, World
from mmulab.errors import InputError
from mmulab.kvm.state import Kvm
from mmulab.machine.machine import Machine
from mmulab.memory.host import HostMemory
from mmulab.x86.regs import X86_CR4_PCIDE, X86_CR4_PGE

_MAY_BE_PRESENT = 7
"""P of a guest's entry; R, W and X of EPT's. An entry with none of them is kept by no processor."""


@runtime_checkable
class Memory(Protocol):
    """What a watcher remembers of the ops so far."""

    def save(self) -> Any:
        """Return it, as it is now."""

    def restore(self, saved: Any, frames: Iterable[int]) -> None:
        """Put it back to what :meth:`save` returned; `frames` are those whose content has changed."""

    def key(self) -> Hashable:
        """Return a name of it in plain values: what has one name says the same of whatever comes."""


def memory_of(watcher: Watcher) -> Memory:
    """Return what a watcher remembers.

    Raises
    ------
    InputError
        It has a state that nobody here knows to take.
    """
    if isinstance(watcher, Oracle):
        return _OracleMemory(watcher)
    if isinstance(watcher, Memory):
        return watcher
    for name, value in vars(watcher).items():
        if not isinstance(value, Machine | Kvm | HostMemory | int | str | tuple | frozenset):
            kind = type(watcher).__name__
            raise InputError(f"the explorer cannot save {name} of {kind}, which needs save, restore and key")
    return _Nothing()


class _Nothing:
    """Of a watcher that only looks at what is there."""

    def save(self) -> None:
        """Return nothing."""

    def restore(self, saved: None, frames: Iterable[int]) -> None:
        """Do nothing."""

    def key(self) -> Hashable:
        """Return the one name."""
        return None


_KNOWN = ("_before", "_forgotten", "_guest", "_history", "_machine", "_now")


class _OracleMemory:

    def __init__(self, oracle: Oracle) -> None:
        odd = vars(oracle).keys() ^ set(_KNOWN)
        if odd:
            raise InputError(f"the explorer cannot save {min(odd)} of the oracle")
        self._oracle: Any = oracle

    def save(self) -> Any:
        oracle = self._oracle
        history, forgotten = oracle._history, oracle._forgotten
        past = {hpa: list(values) for hpa, values in history._past.items()}
        return oracle._now, oracle._before, oracle._guest, past, _saved_forgotten(forgotten)

    def restore(self, saved: Any, frames: Iterable[int]) -> None:
        oracle = self._oracle
        oracle._now, oracle._before, oracle._guest, past, forgotten = saved
        _restore_history(oracle._history, past, frames)
        _restore_forgotten(oracle._forgotten, forgotten)

    def key(self) -> Hashable:
        oracle = self._oracle
        guest = oracle._guest
        kept = () if guest is None else (plain(guest.paging), guest.cr3, guest.pcid, plain(guest.space))
        cpu = oracle._machine.config.cpu
        floor = 0 if cpu.svm or cpu.vmx else _floor(oracle._forgotten, oracle._before)
        return kept, *_key(oracle._history, oracle._forgotten, floor)


def _restore_history(history: Any, past: dict[int, list[tuple[int, int]]], frames: Iterable[int]) -> None:
    history._past = defaultdict(list, {hpa: list(values) for hpa, values in past.items()})
    first, memory = history._first, history._memory
    for frame in frames:
        if frame >= first:
            history._held[frame - first] = memory.frames[frame]


_TIMES = ("_spaces", "_contexts", "_uppers", "_tables")


def _saved_forgotten(forgotten: Any) -> Any:
    times = tuple([dict(getattr(forgotten, name)) for name in _TIMES])
    forms = {space: list(found) for space, found in forgotten._forms.items()}
    return times, list(forgotten._pages), forgotten._all_tables, forms


def _restore_forgotten(forgotten: Any, saved: Any) -> None:
    times, pages, forgotten._all_tables, forms = saved
    for name, found in zip(_TIMES, times, strict=True):
        setattr(forgotten, name, dict(found))
    forgotten._pages = list(pages)
    forgotten._forms = defaultdict(list, {space: list(found) for space, found in forms.items()})


def _key(history: TableHistory, forgotten: Forgotten, floor: int) -> tuple[Hashable, Hashable]:
    """Return the values that may still be used, and the times that decide of them, as ranks."""
    known: Any = forgotten
    past: dict[tuple[int, int], int] = {}
    for hpa, values in history._past.items():
        now = history.read(hpa, 8)
        for value, until in values:
            low, high = (value ^ now) & 0xFFFFFFFF, (value ^ now) >> 32
            may = (low and value & _MAY_BE_PRESENT) or (high and value >> 32 & _MAY_BE_PRESENT) or (
                high and value & _MAY_BE_PRESENT
            )
            if may and until > floor:
                past[hpa, value] = max(until, past.get((hpa, value), 0))
    forms = [(space, until, paging) for space, found in known._forms.items() for until, paging in found]
    forms = [form for form in forms if form[1] > known._spaces.get(form[0], 0)]
    least = min([*past.values(), *(until for _, until, _ in forms)], default=NEVER)
    if least == NEVER and not past:
        return (), ()
    since = _since(known, least)
    times = sorted({time for _, time in since})
    ranks = tuple(sorted((str(what), bisect_left(times, time)) for what, time in since))
    values = tuple(sorted((*what, _rank(times, until)) for what, until in past.items()))
    old = tuple(sorted((str(space), _rank(times, until), plain(paging)) for space, until, paging in forms))
    return (values, old), ranks


def _rank(times: list[int], until: int) -> int:
    return NEVER if until == NEVER else bisect_left(times, until)


def _since(known: Any, least: int) -> list[tuple[Hashable, int]]:
    """Return what had to be forgotten when, from the earliest value on that it could touch."""
    found: dict[Hashable, int] = {}
    for name in _TIMES:
        for what, time in getattr(known, name).items():
            found[name, what] = time
    for time, *what in known._pages:
        found["_pages", *what] = max(time, found.get(("_pages", *what), 0))
    found["_all_tables",] = known._all_tables
    return [(what, time) for what, time in found.items() if time >= least]


def _floor(known: Any, world: World) -> int:
    """Return a time up to which a guest without guests of its own surely keeps nothing."""
    if world.nested_guest or world.control[1] & (X86_CR4_PGE | X86_CR4_PCIDE):
        return 0
    if any(space != HOST_SPACE for space in known._spaces):
        return 0
    contexts = known._contexts
    found = (known._spaces.get(HOST_SPACE, 0), contexts.get(HOST_SPACE, 0), contexts.get((HOST_SPACE, 0), 0))
    return max(found)
