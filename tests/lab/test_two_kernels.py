"""A scenario on two kernels: the differences by kind, and the commits behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.lab.two_kernels import TwoKernels, two_kernels

NAME = "sh/shared-pt-32.jsonl.xz"


@pytest.fixture(scope="module")
def apart(root: Path) -> TwoKernels:
    both = (read_recording(root / f"data/conformance/{k}/{NAME}") for k in ("6.1.192", "6.12.117"))
    return two_kernels("ops", *both, at="most")


def test_each_commit_is_named_with_its_ops(apart: TwoKernels) -> None:
    assert apart.both.sides == ("the model of 6.1.192", "Linux 6.12.117")
    rows = {row[0]: row for row in apart.changes.rows}
    assert {name: row[3] for name, row in rows.items()} == {
        "invalidate_syncs_in_place": 2,
        "sync_keeps_clean_sptes": 3,
        "roots_all_is_four_bits": 2,
        "ranged_flushes_are_calls": 2,
        "sregs_flush_guest": 1,
    }
    assert rows["sync_keeps_clean_sptes"][1] == "e6722d9211b2"
    assert apart.changes.caption.endswith("explains alone: 0.")


def test_kinds_count_what_stands_side_by_side(apart: TwoKernels) -> None:
    assert len(apart.both.differing) == apart.diff.ops_differ == 8
    assert apart.kinds.rows[0] == ("c_drop_spte s other", 2, 5, "20 rd s 4 40002000")
    times = sum(row[2] for row in apart.kinds.rows if not row[0].startswith(("statistic", "outcome")))
    assert times == sum(op.event_differences for op in apart.both.ops)


def test_the_first_kernel_is_stepped_in_the_op_that_stands_open(apart: TwoKernels) -> None:
    side = apart.side()
    assert str(side.kernel) == "6.1.192"
    assert side.texts == ["kvm_exit: reason db rip 0x1802"]


def test_one_kernel_is_not_two(root: Path) -> None:
    recording = read_recording(root / f"data/conformance/6.1.192/{NAME}")
    with pytest.raises(InputError, match=r"kernels 6.1.192 and 6.1.192 are the same; name two that differ"):
        two_kernels("ops", recording, recording, at="most")
