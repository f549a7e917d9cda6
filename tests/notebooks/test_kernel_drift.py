"""notebooks/kernel_drift.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import pytest

from mmulab.kvm.behaviours import RELEASED
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import Table, harvest
from tests.notebooks.conftest import Papermill, Refusal

SMALL = {"works": "sh/dirtylog-32,ept0-host-noad/roots3-pae", "boots": "-"}


def checked(tables: dict[str, Table]) -> dict[str, tuple[object, ...]]:
    """Return what each change does alone, after checking that the sums are sums."""
    found = {}
    for title in ("left_out", "alone"):
        found = {str(row[0]): tuple(row[1:]) for row in tables[title].rows}
        assert list(found) == [*RELEASED, "sum", "all at once", "missed by the sum"]
        for column in range(1, 6):
            total = sum(int(str(found[name][column])) for name in RELEASED)
            assert found["sum"][column] == total
            assert found["missed by the sum"][column] == int(str(found["all at once"][column])) - total
    return found


@pytest.mark.slow
def test_defaults(papermill: Papermill) -> None:
    done = papermill("kernel_drift")
    assert done.returncode == 0, done.stderr
    tables = {table.name: table for table in harvest(done.notebook)}
    checked(tables)
    nowhere = [row[0] for row in tables["first"].rows if row[2] == "nowhere in this work"]
    assert nowhere == [
        "nx_recovery_spares_logged",
        "nonpaging_counts_nx",
        "nx_huge_page_is_tagged",
        "zap_leafs_skips_invalid_roots",
        "pageout_ignores_references",
        "swapin_is_writable",
        "pte_list_keeps_tail_full",
        "smm_needs_smram",
        "sregs_check_efer",
    ]
    assert {row[0] for row in tables["boots"].rows} == {"stream/boot-686-nonpae", "stream/boot-amd64-4l"}
    page = export(done.notebook, "kernel_drift")
    assert remote_references(page) == []
    assert "In JupyterLab an interactive control stands here" not in page


def test_a_small_part_of_the_work(papermill: Papermill) -> None:
    done = papermill("kernel_drift", **SMALL, change="pdpte_violation_is_no_guest_page", jobs=2)
    assert done.returncode == 0, done.stderr
    rows = checked({table.name: table for table in harvest(done.notebook)})
    assert rows["sync_keeps_clean_sptes"][:2] == (1, 3)
    assert done.last_line.startswith(f"works: 2, changes: {len(RELEASED)}, shown: ")
    assert done.last_line.endswith("all at once: faults +4")
    assert result.harvest(done.notebook).sentence == (
        f"{sum(rows[name][0] > 0 for name in RELEASED)} of {len(RELEASED)} changes from 6.1.192 to 6.12.117 "
        "show "
        f"in 2 works; page faults all at once: {rows['all at once'][1]:+,}"
    )
    page = export(done.notebook, "kernel_drift")
    assert "6.12.117-pdpte_violation_is_no_guest_page" in page


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kernel": "5.0.1"}, "parameter 'kernel' is '5.0.1'; it must be one of 6.1.192, 6.12.117, "),
        ({"other_kernel": "6.1.192"}, "kernels 6.1.192 and 6.1.192 are the same; name two that differ"),
        ({"change": "none"}, "parameter 'change' is 'none'; it must be one of invalidate_syncs_in_place, "),
        ({"works": "sh/none"}, "case 'conformance/6.1.192/sh/none': unknown"),
        ({"seed": 1}, "unknown parameter 'seed'; the notebook has kernel, other_kernel, works, boots, "),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert refusal("kernel_drift", **given).startswith(says)
