"""Versions by checkpoint: what was put is what is found, against a plain model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.trace.versions import KEY_BITS, Versions

KEYS = st.sampled_from([0, 1, 7, 2**31, 2**KEY_BITS - 1])
HISTORY = st.lists(st.dictionaries(KEYS, st.sampled_from([b"", b"a", b"bc"])), min_size=1, max_size=8)


def build(history: list[dict[int, bytes]]) -> tuple[Versions, list[dict[int, bytes]]]:
    """Return the table and what there was at each checkpoint."""
    versions, now, states = Versions(), {}, []
    for checkpoint, changes in enumerate(history):
        for key, data in changes.items():
            versions.put(key, checkpoint, data)
        now = {key: data for key, data in {**now, **changes}.items() if data}
        states.append(now)
    versions.freeze()
    return versions, states


@given(HISTORY)
def test_found_as_put(history: list[dict[int, bytes]]) -> None:
    versions, states = build(history)
    copy = Versions.of_arrays(*(array.copy() for array in versions.arrays().values()))
    keys = [0, 1, 7, 2**31, 2**KEY_BITS - 1]
    for found in (versions, copy):
        for checkpoint, state in enumerate(states):
            assert {key: data for key in keys if (data := found.get(key, checkpoint))} == state
            assert found.get_all(keys, checkpoint) == [state.get(key, b"") for key in keys]
            assert found.keys(checkpoint) == sorted(state)


@given(HISTORY, st.data())
def test_changed_holds_every_difference(history: list[dict[int, bytes]], data: st.DataObject) -> None:
    versions, states = build(history)
    before = data.draw(st.integers(-1, len(states) - 1))
    after = data.draw(st.integers(0, len(states) - 1))
    old = states[before] if before >= 0 else {}
    differing = {key for key in {**old, **states[after]} if old.get(key) != states[after].get(key)}
    assert differing <= set(versions.changed(before, after))


def test_no_room() -> None:
    versions = Versions()
    with pytest.raises(OverflowError):
        versions.put(1 << KEY_BITS, 0, b"a")
    versions.freeze()
    assert versions.get(1 << KEY_BITS, 0) == b""
    assert versions.get(-1, 0) == b""
