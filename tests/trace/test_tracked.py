"""Tracked dictionaries are dictionaries, over whatever source."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.trace.tracked import Tracked

KEYS = st.integers(0, 6)


class Held:
    """A source over a dictionary; it hands out lists, so that the table's are its own."""

    def __init__(self, entries: dict[int, list[int]]) -> None:
        self.entries = entries

    def load(self, key: int) -> list[int] | None:
        found = self.entries.get(key)
        return None if found is None else list(found)

    def present(self) -> list[int]:
        return list(self.entries)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["get", "item", "set", "pop", "del", "setdefault", "in", "append", "len", "keys", "items", "bool"]
        ),
        KEYS,
    )
)


def act(table: dict[int, list[int]], action: str, key: int) -> Any:
    """Do one thing to a dictionary and return what came of it."""
    match action:
        case "get":
            return table.get(key, "none")
        case "item":
            return list(table[key])
        case "set":
            table[key] = [key]
        case "pop":
            return table.pop(key, None)
        case "del":
            del table[key]
        case "setdefault":
            return list(table.setdefault(key, [9]))
        case "in":
            return key in table
        case "append":
            table[key].append(1)
        case "len":
            return len(table)
        case "keys":
            return sorted(table)
        case "items":
            return sorted(table.items())
        case "bool":
            return bool(table)
    return None


@given(st.dictionaries(KEYS, st.lists(st.integers(0, 3))), STEPS)
def test_it_is_a_dictionary(entries: dict[int, list[int]], steps: list[tuple[str, int]]) -> None:
    plain = {key: list(value) for key, value in entries.items()}
    tracked: Tracked[list[int]] = Tracked(Held(entries))
    before = {key: list(value) for key, value in plain.items()}
    for action, key in steps:
        results = []
        for table in (plain, tracked):
            try:
                results.append(act(table, action, key))
            except KeyError:
                results.append(KeyError)
        assert results[0] == results[1], (action, key)
    changed = {key for key in {**before, **plain} if before.get(key) != plain.get(key)}
    assert changed <= set(tracked.touched)
    assert dict(tracked) == plain
    assert tracked == plain
    assert Held(entries).entries == entries


def test_nothing_is_read_that_nobody_asks_for() -> None:
    asked: list[int] = []

    class Watched(Held):
        def load(self, key: int) -> list[int] | None:
            asked.append(key)
            return super().load(key)

    table: Tracked[list[int]] = Tracked(Watched({1: [1], 2: [2]}))
    assert table.get(2) is table.get(2)
    assert asked == [2]
    table.settle()
    assert table.touched == {}
    with pytest.raises(KeyError):
        table[5]
    assert list(table.touched) == [5]
