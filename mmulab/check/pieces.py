"""A record's attributes, taken and put back: the pieces that savepoints are made of."""

from __future__ import annotations

import marshal
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from typing import Any

from mmulab.kvm.state import Emulation

KNOWN_PIECES = 1 << 13
"""Pieces of each class of records that are kept, so that equal ones are one."""
_PLAIN = (int, bool, str, bytes, type(None))


def names_of(kind: type) -> tuple[str, ...]:
    """Return the names of a slotted class's attributes, its bases' included, sorted."""
    return tuple(sorted({name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}))


class Piece:
    """The attributes of one record, as they were.

    Attributes
    ----------
    values : tuple
        With copies of what can change.
    changing : tuple of int
        Which of the values can.
    digest : bytes
        Kept here by :mod:`mmulab.check.state_key`; b"" before it was asked for.
    """

    __slots__ = ("changing", "digest", "values")

    def __init__(self, values: tuple[Any, ...], changing: tuple[int, ...] = ()) -> None:
        self.values = values
        self.changing = changing
        self.digest = b""


_CHANGING = (list, dict, bytearray)
_CONSTANTS = (int, str, bytes, tuple, type(None), Enum, Emulation)
"""What is never changed in place; :class:`Emulation` is made anew for each instruction."""


_known_types: dict[type, bool] = dict.fromkeys(_CHANGING, True)


def _changes(kind: type) -> bool:
    """Whether values of a type can change in place.

    Raises
    ------
    TypeError
        Nobody here knows how to copy it.
    """
    if kind not in _known_types:
        parameters = getattr(kind, "__dataclass_params__", None)
        if not issubclass(kind, _CONSTANTS) and (parameters is None or not parameters.frozen):
            raise TypeError(f"no savepoint can hold a {kind.__name__}")
        _known_types[kind] = False
    return _known_types[kind]


def copied(value: Any) -> Any:
    """Copy lists, dicts and what they hold of them, all of one type; everything else never changes."""
    kind = type(value)
    if kind is list:
        return [copied(item) for item in value] if value and type(value[0]) in _CHANGING else value.copy()
    if kind is dict:
        nested = type(next(iter(value.values()), None)) in _CHANGING
        return {key: copied(item) for key, item in value.items()} if nested else value.copy()
    return bytearray(value) if kind is bytearray else value


def _copies(values: tuple[Any, ...], changing: tuple[int, ...], before: Piece | None) -> tuple[Any, ...]:
    """Return the values, with copies of those that can change; of equal ones the copy that there is."""
    copies = list(values)
    for at in changing:
        old = None if before is None else before.values[at]
        copies[at] = old if values[at] == old else copied(values[at])
    return tuple(copies)


class Fields:
    """How the records of one class are taken and put back.

    Parameters
    ----------
    names : tuple of str
    records : tuple of str
        Those of lists of NamedTuples, which :mod:`marshal` does not take.
    """

    def __init__(self, names: tuple[str, ...], records: tuple[str, ...] = ()) -> None:
        self.names = names
        self._records = [names.index(name) for name in records]
        self._get: Callable[[Any], tuple[Any, ...]] = attrgetter(*names)
        self._plans: dict[tuple[type, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._known: dict[bytes, Piece] = {}

    def take(self, thing: object, before: Piece | None) -> Piece:
        """Return a piece of the record: `before`, if that is equal, or else an equal one that is known."""
        values = self._get(thing)
        if before is not None and values == before.values:
            return before
        kinds = tuple(map(type, values))
        changing, odd = self._plans.get(kinds) or self._plan(kinds)
        written: list[Any] = list(values)
        for at in odd:
            written[at] = id(values[at])  # a known piece keeps it alive, so that it is no other's
        for at in self._records:
            written[at] = [tuple(record) for record in values[at]]
        try:
            name = marshal.dumps(written, 2)
        except ValueError:  # something odd in a list
            return Piece(_copies(values, changing, before), changing)
        piece = self._known.get(name)
        if piece is None:
            if len(self._known) >= KNOWN_PIECES:
                self._known.clear()
            piece = self._known[name] = Piece(_copies(values, changing, before), changing)
        return piece

    def _plan(self, kinds: tuple[type, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which values of these types can change, and which of the others are no plain ones."""
        changing = tuple([at for at, kind in enumerate(kinds) if _changes(kind)])
        odd = tuple([at for at, kind in enumerate(kinds) if kind not in _PLAIN and at not in changing])
        self._plans[kinds] = changing, odd
        return changing, odd

    def put(self, thing: object, piece: Piece, now: Piece | None = None) -> None:
        """Give a record the values of a piece; `now`: what it has, as far as that is known."""
        names, values = self.names, piece.values
        if now is None:
            for name, value in zip(names, values, strict=True):
                setattr(thing, name, value)
        else:
            for name, value, old in zip(names, values, now.values, strict=True):
                if value is not old:
                    setattr(thing, name, value)
        for at in piece.changing:
            value = values[at]
            if now is None or value is not now.values[at]:
                setattr(thing, names[at], copied(value))
