"""Dictionaries that know which of their values may have changed, and read the others when asked.

The tables of a recorded machine are such dictionaries. KVM reaches a shadow page
or a reverse map only through its table, so whatever was not fetched since the
last checkpoint is as it was: a checkpoint looks at the fetched ones only. When a
recording is looked at, a table is filled from the checkpoint entry by entry, as
the run asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

V = TypeVar("V")
_NOTHING: Any = object()


class Source(Protocol):
    """Where a table's entries come from."""

    def load(self, key: int) -> Any:
        """Return the entry of `key`, None if there is none."""

    def present(self) -> list[int]:
        """Return the keys of all entries, in order."""


class Empty:
    """A source without entries."""

    def load(self, key: int) -> None:
        """Return None."""

    def present(self) -> list[int]:
        """Return no key."""
        return []


EMPTY = Empty()


class Tracked(dict[int, V]):
    """A dictionary over a source.

    Parameters
    ----------
    source : Source
        Asked once for each key, or for all when someone goes through the table.

    Attributes
    ----------
    touched : dict of int to None
        Keys whose entry was fetched, set or deleted since :meth:`settle`.
    """

    __slots__ = ("_asked", "_source", "touched")

    def __init__(self, source: Source = EMPTY) -> None:
        super().__init__()
        self._source = source
        self._asked: dict[int, None] | None = {}
        self.touched: dict[int, None] = {}

    def settle(self) -> None:
        """Forget what was touched."""
        self.touched = {}

    def _fetch(self, key: int) -> Any:
        """Return the entry of `key` or `_NOTHING`, and remember that it was fetched."""
        found = dict.get(self, key, _NOTHING)
        if found is _NOTHING and self._asked is not None and key not in self._asked:
            self._asked[key] = None
            loaded = self._source.load(key)
            if loaded is not None:
                dict.__setitem__(self, key, loaded)
                found = loaded
        self.touched[key] = None
        return found

    def _fill(self) -> None:
        """Take everything that the source still has."""
        if self._asked is None:
            return
        asked, self._asked = self._asked, None
        own = dict(dict.items(self))
        dict.clear(self)
        # The source's order comes first, as it did in the table that was copied.
        for key in self._source.present():
            value = own.pop(key, None) if key in asked else self._source.load(key)
            if value is not None:
                dict.__setitem__(self, key, value)
        for key, value in own.items():
            dict.__setitem__(self, key, value)

    def __getitem__(self, key: int) -> V:
        found = self._fetch(key)
        if found is _NOTHING:
            raise KeyError(key)
        result: V = found
        return result

    def get(self, key: int, default: Any = None) -> Any:
        """Return the entry of `key`, or `default`."""
        found = self._fetch(key)
        return default if found is _NOTHING else found

    def setdefault(self, key: int, default: Any = None) -> Any:
        """Return the entry of `key`, which becomes `default` if there is none."""
        found = self._fetch(key)
        if found is _NOTHING:
            dict.__setitem__(self, key, default)
            return default
        return found

    def pop(self, key: int, *default: Any) -> Any:
        """Take the entry of `key` out and return it."""
        found = self._fetch(key)
        if found is _NOTHING:
            if default:
                return default[0]
            raise KeyError(key)
        dict.__delitem__(self, key)
        return found

    def __setitem__(self, key: int, value: V) -> None:
        if self._asked is not None:
            self._asked[key] = None
        self.touched[key] = None
        dict.__setitem__(self, key, value)

    def __delitem__(self, key: int) -> None:
        self.pop(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self._fetch(key) is not _NOTHING

    def __iter__(self) -> Iterator[int]:
        self._fill()
        return dict.__iter__(self)

    def __len__(self) -> int:
        self._fill()
        return dict.__len__(self)

    def __bool__(self) -> bool:
        return len(self) > 0

    def keys(self) -> Any:
        """Return all keys."""
        self._fill()
        return dict.keys(self)

    def values(self) -> Any:
        """Return all entries; each counts as touched."""
        self._fill()
        self.touched.update(dict.fromkeys(dict.keys(self)))
        return dict.values(self)

    def items(self) -> Any:
        """Return all keys with their entries; each counts as touched."""
        self._fill()
        self.touched.update(dict.fromkeys(dict.keys(self)))
        return dict.items(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and dict(self.items()) == dict(other.items())

    __hash__ = dict.__hash__
