"""The conformance figure: it counts what was compared, and what was not."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import find_kernel
from mmulab.lab import conformance as module
from mmulab.lab.conformance import conformance

KERNEL = find_kernel("6.1.192")


def test_counts_by_folder() -> None:
    seen = []
    table = conformance(KERNEL, "nested-nonpt/*", lambda at, of: seen.append((at, of)))
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    mine, other = rows["nested-nonpt"], rows["sh"]
    assert mine["recordings"] == mine["compared"] == mine["agree"] == len(seen) == seen[-1][1]
    assert mine["ops"] == mine["ops agree"] > 0
    assert other["recordings"] > 100
    assert other["compared"] == 0
    total = sum(row["recordings"] for row in rows.values())
    assert table.caption == f"6 of 6 recordings agree, of all {total} of Linux 6.1.192."


def test_a_model_that_differs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    compare, wrong = module.compare, KERNEL.with_(behaviours=find_kernel("6.12.117").behaviours)
    monkeypatch.setattr(module, "compare", lambda found, level: compare(found, level, kernel=wrong))
    table = conformance(KERNEL, "sh/dirtylog-32")
    row = dict(zip(table.columns, next(row for row in table.rows if row[1] == "sh"), strict=True))
    assert (row["compared"], row["agree"]) == (1, 0)
    assert row["ops agree"] < row["ops"]
    assert table.caption.startswith("0 of 1 recordings agree, ")


def test_no_such_recording() -> None:
    with pytest.raises(InputError, match=r"'nothing': no recording of 6\.1\.192 has this name; .* sh/\*"):
        conformance(KERNEL, "nothing")
