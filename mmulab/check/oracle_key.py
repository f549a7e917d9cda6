"""What a watcher remembers: taken, put back, and named in a state's key.

Of the oracle's history only that counts which can still change a verdict: a value that an
entry has had, and that a processor may keep, counts until that one had to forget it. Times
count only by which comes first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mmulab.check.finding import Watcher
from mmulab.check.known import Beyond
from mmulab.check.oracle import Oracle
from mmulab.check.remembered import NEVER, Forgotten, Past, SavedHistory
from mmulab.check.state_key import digest_of, plain
from mmulab.check.world import HOST_SPACE, World
from mmulab.errors import InputError
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.state import Kvm
from mmulab.machine.machine import Machine
from mmulab.memory.host import HostMemory
from mmulab.x86.regs import X86_CR4_PCIDE, X86_CR4_PGE

_LOW, _MAY_BE_PRESENT = 0xFFFFFFFF, 7
"""P of a guest's entry; R, W and X of EPT's. An entry with none of them is kept by no processor."""


@runtime_checkable
class Memory(Protocol):
    """What a watcher remembers of the ops so far."""

    def save(self) -> Any:
        """Return it, as it is now."""

    def restore(self, saved: Any) -> None:
        """Put it back to what :meth:`save` returned; memory is back, and what changed in it is stamped."""

    def key(self) -> Hashable:
        """Return a name of what was saved or restored last, in plain values.

        What has one name says the same of whatever comes.
        """


def memory_of(watcher: Watcher) -> Memory:
    """Return what a watcher remembers.

    Raises
    ------
    InputError
        It has a state that nobody here knows to take.
    """
    if isinstance(watcher, Beyond):
        watcher = watcher.watcher
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

    def restore(self, saved: None) -> None:
        """Do nothing."""

    def key(self) -> Hashable:
        """Return the one name."""
        return None


_KNOWN = ("_history", "_log", "_machine", "_now", "_processors")


class _Processor(NamedTuple):
    """What one vCPU's processor may still know; never changed."""

    world: World
    registers: tuple[object, ...]
    forgotten: Forgotten
    guest: World | None
    doomed: bool


class _Saved(NamedTuple):
    """What the oracle remembers; never changed. States between which nothing was learnt share its parts."""

    now: int
    past: dict[int, Past]
    written: dict[int, dict[int, int]]
    named: dict[tuple[int, int], None]
    taken: dict[int, int]
    on: bool
    processors: tuple[_Processor, ...]
    slots: list[tuple[int, ...]]
    key: list[Hashable]
    """Its name, once it was asked for."""


class _OracleMemory:
    """The history of memory, what is not logged yet, and what each vCPU's processor may still know."""

    def __init__(self, oracle: Oracle) -> None:
        odd = vars(oracle).keys() ^ set(_KNOWN)
        if odd:
            raise InputError(f"the explorer cannot save {min(odd)} of the oracle")
        self._oracle: Any = oracle
        self._last: _Saved | None = None

    def save(self) -> _Saved:
        """Return it, as it is now."""
        oracle, last = self._oracle, self._last
        past, log = oracle._history._past, oracle._log
        slots = [(*_slot(slot),) for space in oracle._machine.kvm.slots for slot in space.slots]
        if last is not None and self._is(last):
            if slots != last.slots:
                self._last = last = last._replace(slots=slots)
            return last._replace(now=oracle._now)
        saved = _Saved(
            oracle._now,
            last.past if last is not None and past == last.past else dict(past),
            *self._save_log(),
            log.on,
            self._save_processors(),
            slots,
            [],
        )
        self._last = saved
        return saved

    def _save_log(self) -> tuple[Any, Any, Any]:
        log, last = self._oracle._log, self._last
        if last is not None:
            kept = last.written, last.named, last.taken
            if kept == (log._written, log._named, log._taken):
                return kept
        written = {number: dict(pages) for number, pages in log._written.items()}
        return written, dict(log._named), dict(log._taken)

    def _save_processors(self) -> tuple[_Processor, ...]:
        """Return what the processors know; what one had to forget is copied if it is more than it was."""
        processors = self._oracle._processors
        last: Sequence[_Processor | None] = self._last.processors if self._last else [None] * len(processors)
        saved = []
        for by, old in zip(processors, last, strict=True):
            same = old is not None and vars(by.forgotten) == vars(old.forgotten)
            forgotten = old.forgotten if old is not None and same else by.forgotten.copy()
            saved.append(_Processor(by.world, by.registers, forgotten, by.guest, by.doomed))
        return tuple(saved)

    def _is(self, saved: _Saved) -> bool:
        """Whether the oracle remembers what was saved, but for the time and the slots."""
        oracle = self._oracle
        log = oracle._log
        if oracle._history._past != saved.past or log.on != saved.on or log._written != saved.written:
            return False
        if log._named != saved.named or log._taken != saved.taken:
            return False
        return all(
            by.world is old.world
            and by.guest is old.guest
            and by.registers == old.registers
            and by.doomed == old.doomed
            and vars(by.forgotten) == vars(old.forgotten)
            for by, old in zip(oracle._processors, saved.processors, strict=True)
        )

    def restore(self, saved: _Saved) -> None:
        """Put it back to what :meth:`save` returned."""
        oracle, log, last = self._oracle, self._oracle._log, self._last
        oracle._now = saved.now
        oracle._history.restore(SavedHistory(saved.past))
        log.on = saved.on
        log._written = {number: dict(pages) for number, pages in saved.written.items()}
        log._named, log._taken = dict(saved.named), dict(saved.taken)
        moved = last is None or saved.slots != last.slots
        for by, old in zip(oracle._processors, saved.processors, strict=True):
            by.world, by.registers, by.guest = old.world, old.registers, old.guest
            by.doomed = old.doomed
            if vars(by.forgotten) != vars(old.forgotten):
                by.forgotten = old.forgotten.copy()
            if moved:
                by.known.clear()
        self._last = saved

    def key(self) -> Hashable:
        """Return a name of what was saved or restored last."""
        last = self._last
        assert last is not None
        if not last.key:
            last.key.append(digest_of(self._name()))
        return last.key[0]

    def _name(self) -> Hashable:
        oracle = self._oracle
        history = oracle._history
        guests = [
            (by.doomed, by.guest and (plain(by.guest.paging), by.guest.cr3)) for by in oracle._processors
        ]
        written, named, on = oracle._log._written, oracle._log._named, oracle._log.on
        log = sorted((slot, tuple(sorted(pages))) for slot, pages in written.items() if pages)
        forgotten = [by.forgotten for by in oracle._processors]
        floor = min(_floor(by.forgotten, by.world) for by in oracle._processors)
        cpu = oracle._machine.config.cpu
        values = _values(history, 0 if cpu.svm or cpu.vmx else floor)
        tables = [_tables(told) for told in forgotten]
        return tuple(guests), on, tuple(log), tuple(sorted(named)), *tables, *_times(values, forgotten)


def _slot(slot: KvmMemslot) -> tuple[int, ...]:
    return slot.as_id, slot.id, slot.base_gfn, slot.npages, slot.base_frame, slot.flags


def _tables(forgotten: Any) -> Hashable:
    """Return the forms in which nested tables were used last."""
    return tuple(
        sorted((str(tag), plain(paging)) for tag, paging in forgotten._used.items() if paging is not None)
    )


def _values(history: Any, floor: int) -> dict[tuple[int, int], int]:
    """Return the values of words that may still be used instead of today's, each with its end."""
    found: dict[tuple[int, int], int] = {}
    for hpa, values in history._past.items():
        now = history.read(hpa, 8)
        for value, until in values:
            other = value ^ now
            low, high = other & _LOW, other >> 32
            may = (other and value & _MAY_BE_PRESENT) or (high and value >> 32 & _MAY_BE_PRESENT)
            if until > floor and may and (low or high):
                found[hpa, value] = max(until, found.get((hpa, value), 0))
    return found


def _times(
    values: dict[tuple[int, int], int], processors: Sequence[Forgotten]
) -> tuple[Hashable, Hashable, Hashable]:
    """Return the values, the forms of paging and what had to be forgotten, with ranks for times."""
    known: Sequence[Any] = processors
    forms = [
        (at, str(space), until, plain(paging))
        for at, forgotten in enumerate(known)
        for space, found in forgotten._forms.items()
        for until, paging in found
        if until > forgotten._spaces.get(space, 0)
    ]
    least = min([*values.values(), *(form[2] for form in forms)], default=None)
    if least is None:
        return (), (), ()
    since = [
        (at, what, time)
        for at, forgotten in enumerate(known)
        for what, time in _since(forgotten)
        if time >= least
    ]
    times = sorted({time for *_, time in since})
    return (
        tuple(sorted((*what, _rank(times, until)) for what, until in values.items())),
        tuple(sorted((at, space, _rank(times, until), form) for at, space, until, form in forms)),
        tuple(sorted((at, what, bisect_left(times, time)) for at, what, time in since)),
    )


def _rank(times: list[int], until: int) -> int:
    return NEVER if until == NEVER else bisect_left(times, until)


_TIMES = ("_spaces", "_contexts", "_uppers", "_tables", "_pages")


def _since(forgotten: Any) -> Iterator[tuple[str, int]]:
    for name in _TIMES:
        for what, time in getattr(forgotten, name).items():
            yield f"{name} {what}", time
    yield "_all_tables", forgotten._all_tables


def _floor(forgotten: Any, world: World) -> int:
    """Return a time up to which a guest without guests of its own surely keeps nothing."""
    if world.control[1] & (X86_CR4_PGE | X86_CR4_PCIDE):
        return 0
    spaces: dict[Hashable, int] = forgotten._spaces
    contexts: dict[Hashable, int] = forgotten._contexts
    return max(spaces.get(HOST_SPACE, 0), contexts.get(HOST_SPACE, 0), contexts.get((HOST_SPACE, 0), 0))
