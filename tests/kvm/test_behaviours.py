"""Behaviours: each shows where it says, on a recording of the kernel that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.compare import Level, compare
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.kvm.behaviours import CHANGES, Behaviours, Change, with_behaviours
from mmulab.kvm.kernels import LINUX_6_12

DATA = Path(__file__).parents[2] / "data"
RECORDED = (DATA / "conformance/6.12.117", DATA / "conformance-more/6.12.117")
SHOWN = [change for change in CHANGES.values() if change.shows]


@pytest.mark.parametrize("change", SHOWN, ids=lambda change: change.name)
def test_without_it_a_recording_differs_there(change: Change) -> None:
    name, _, index = change.shows.partition(" op ")
    (path,) = (path for folder in RECORDED if (path := folder / f"{name}.jsonl.xz").exists())
    recording = read_recording(path)
    assert compare(recording, Level.FULL).agrees
    without = LINUX_6_12.toggled(**{change.name: change.removed})
    found = compare(recording, Level.FULL, kernel=without)
    assert found.difference is not None
    op = recording.ops[found.difference.number]
    assert str(op.index if op.index >= 0 else "init") == index


def test_what_no_recording_shows_is_known() -> None:
    assert [change.name for change in CHANGES.values() if not change.shows] == [
        "zap_leafs_skips_invalid_roots",
        "pte_list_keeps_tail_full",
        "svm_vmexit_restores_cr4",
    ]


def test_turned_on_and_off() -> None:
    base = Behaviours()
    assert base.names() == ("unprotect_on_reinjection", "is_self_change_mapping")
    changed = with_behaviours(base, {"dummy_root": True, "is_self_change_mapping": False})
    assert changed.names() == ("unprotect_on_reinjection", "dummy_root")
    for wanted, says in (({"dummy": True}, "'dummy': unknown"), ({"dummy_root": False}, "is off already")):
        with pytest.raises(InputError, match=says):
            with_behaviours(base, wanted)


def test_it_says_where_it_comes_from() -> None:
    change = CHANGES["unprotect_on_reinjection"]
    assert str(change).endswith("(until 6.12, b299c273c06f)")
    assert all(change.summary and change.source for change in CHANGES.values())
    assert [change.name for change in CHANGES.values() if len(change.commit) != 12] == [
        "svm_vmexit_restores_cr4"
    ]
    assert str(CHANGES["svm_vmexit_restores_cr4"]).endswith("(in no release)")
