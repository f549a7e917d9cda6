"""Which changes explain the differences, counted as by leaving one behaviour out of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.classify import Kind
from mmulab.conform.compare import Level, compare
from mmulab.conform.diff import Run, diff_runs
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.kvm.behaviours import RELEASED
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.lab.drift.causes import Causes, find_causes

NAMES = [
    "sh/dirtylog-32",
    "sh/nonpaging",
    "sh/fuzz-32-mix-16",
    "tdp0/memslot-64",
    "tdp1/memslot-64",
    "nested48/nested-fuzz-32-04",
    "nested-ept/ept-misconfig-eptp-ad",
]


def every(_kind: Kind) -> bool:
    return True


def causes_of(
    root: Path, name: str, level: Level, kernels: tuple[Kernel, Kernel] = (LINUX_6_1, LINUX_6_12)
) -> Causes:
    ours, theirs = (
        read_recording(root / f"data/conformance/{k}/{name}.jsonl.xz") for k in ("6.1.192", "6.12.117")
    )
    _, differ = diff_runs(Run.of(ours), Run.of(theirs), level)
    return find_causes(name, theirs, differ, kernels, level, every)


@pytest.mark.parametrize("level", [Level.MMU, Level.FULL])
@pytest.mark.parametrize("name", NAMES)
def test_a_change_explains_the_ops_that_fail_without_it(root: Path, name: str, level: Level) -> None:
    recording = read_recording(root / f"data/conformance/6.12.117/{name}.jsonl.xz")
    expected = {}
    for change in RELEASED.values():
        without = LINUX_6_12.toggled(**{change.name: change.removed})
        comparison = compare(recording, level, kernel=without)
        expected[change.name] = comparison.ops - comparison.ops_agree
    found = causes_of(root, name, level)
    assert {name: diff.ops_differ for name, diff in found.changes.items()} == expected
    assert any(expected.values())
    assert found.not_modelled.ops_differ == 0


def test_two_changes_have_the_counts_that_were_measured_over_the_whole_corpus(root: Path) -> None:
    # All ops in which CR0.WP without paging and the retry show are in these recordings.
    counts = {}
    for level in (Level.MMU, Level.FULL):
        total = Causes.empty(1)
        for name in ("sh/nonpaging", "tdp0/memslot-64", "tdp1/memslot-64"):
            total.add(causes_of(root, name, level))
        for change in ("cr0_wp_needs_paging", "retry_only_if_write_protected"):
            found = total.changes[change]
            counts[change, level] = found.ops_differ, found.scenarios_differ
    assert counts == {
        ("cr0_wp_needs_paging", Level.MMU): (1, 1),
        ("cr0_wp_needs_paging", Level.FULL): (2, 1),
        ("retry_only_if_write_protected", Level.MMU): (6, 2),
        ("retry_only_if_write_protected", Level.FULL): (6, 2),
    }


def test_an_op_that_needs_two_changes_is_explained_by_none(root: Path) -> None:
    found = causes_of(root, "sh/fuzz-32-mix-16", Level.FULL)
    assert found.unexplained.smallest is not None
    assert found.unexplained.smallest.place == "sh/fuzz-32-mix-16 op 172 'invlpg ffffe000'"


def test_what_the_model_gets_wrong_is_said_and_explained_by_no_change(root: Path) -> None:
    other = LINUX_6_12.toggled(roots_all_is_four_bits=False)
    found = causes_of(root, "tdp0/memslot-64", Level.FULL, (LINUX_6_1, other))
    assert [str(kind) for kind, _ in found.not_modelled.kinds] == ["c_free_roots mask other"]
    assert "roots_all_is_four_bits" not in found.changes
    assert found.changes["retry_only_if_write_protected"].ops_differ == 3


def test_kernels_that_are_the_same_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="are the same"):
        causes_of(root, "sh/nonpaging", Level.FULL, (LINUX_6_1, LINUX_6_1))
