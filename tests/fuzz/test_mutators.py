"""Mutators: the same seed gives the same bytes, whatever became of the input before; packed stays packed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.fuzz import mutators
from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_can_be_changed_further(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = seeds(name)[0]

    def chain(seed: int) -> list[bytes]:
        rng, found = Random(seed), [first]
        for _ in range(60):
            found.append(TARGETS[name].mutate(rng, found[-1] if len(found[-1]) < 200_000 else first))
        return found

    found = chain(1)
    assert found == chain(1)
    assert len(set(found)) > 30
    for data in (b"", b"\n", b"\xff\x00", b"PK\x03\x04", b"[" * 5000):
        assert isinstance(TARGETS[name].mutate(Random(2), data), bytes)


def test_json_stays_json() -> None:
    data = json.dumps({"a": [1, {"b": "c"}], "d": True}).encode()
    changed = {mutators.change_json(Random(seed), data) for seed in range(200)}
    whole = [text for text in changed if _is_json(text)]
    assert len(whole) > len(changed) // 2 > 50


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def test_packed_lines_are_changed_inside() -> None:
    mutate = mutators.packed(lambda rng, data: data.upper())
    found = {mutators.unpacked(mutate(Random(seed), b"one\ntwo")) for seed in range(50)}
    assert b"ONE\nTWO" in found


def test_archive_stays_an_archive() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, gfn=np.arange(4, dtype=np.uint64))
    changed = {mutators.change_zip(Random(seed), buffer.getvalue()) for seed in range(100)}
    archives = [zipfile.ZipFile(io.BytesIO(data)) for data in changed if zipfile.is_zipfile(io.BytesIO(data))]
    assert len(archives) > len(changed) // 2 > 25
