"""notebooks/sync_policies.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

from typing import Any

import pytest

from mmulab.events import kvm_mmu_pte_write, kvm_mmu_sync_page
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.find import find_sync
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.view import record_work
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import Table, harvest
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import Reports

POLICIES = ["write_protect", "oos_2008", "unsync_children"]


def tables(notebook: Any) -> dict[str, Table]:
    return {table.name: table for table in harvest(notebook)}


def rows_by(table: Table, *columns: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows as dicts, by some of their columns."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {tuple(row[column] for column in columns): row for row in rows}


def emulated_by_hand(work: str, policy: str) -> int:
    """Count the emulated writes from a run's events: writes that KVM executed to a table that it shadows."""
    (case,) = find_works([work])
    recording = record_work(case, LINUX_6_1.with_(sync=find_sync(policy)))
    found = 0
    for at in range(len(recording.events)):
        event = recording.events[at]
        if isinstance(event, kvm_mmu_pte_write):
            pages = recording.at(at).machine.kvm.pages.values()
            found += any(page.has_gptes and page.gfn == event.gpa >> 12 for page in pages)
    return found


def entries_by_hand(work: str, policy: str) -> int:
    """Count what is present in each page at its sync event; of a workload that uses no INVLPG."""
    (case,) = find_works([work])
    recording = record_work(case, LINUX_6_1.with_(sync=find_sync(policy)))
    found = 0
    for at in range(len(recording.events)):
        event = recording.events[at]
        if isinstance(event, kvm_mmu_sync_page):
            kvm = recording.at(at).machine.kvm
            (page,) = (
                page for page in kvm.pages.values() if (page.gfn, page.role) == (event.gfn, event.role)
            )
            found += sum(bool(spte) for spte in kvm.memory.words[page.frame * 512 : page.frame * 512 + 512])
    return found


@pytest.mark.slow
def test_defaults(papermill: Papermill) -> None:
    done = papermill("sync_policies")
    assert done.returncode == 0, done.stderr
    found = tables(done.notebook)
    counts = rows_by(found["counts"], "work", "policy")
    assert len(counts) == 6 * 3
    outcomes = rows_by(found["outcomes"], "work", "policy")
    assert all(row["wrong accesses"] == 0 for row in outcomes.values())
    for (work, _), row in counts.items():
        merged, protected = (counts[work, name] for name in ("unsync_children", "write_protect"))
        assert merged["emulated writes"] <= row["emulated writes"] or row is protected
        assert protected["idle ones"] == protected["CR3 loads"] == row["CR3 loads"]
    asked = [name for name in found if name.startswith("question_")]
    assert len(asked) == 7
    wrong = rows_by(found["wrong"], "work", "policy")
    assert {policy for _, policy in wrong} == {"oos_2008"}
    assert all(row["foretold"] for row in wrong.values())
    page = export(done.notebook, "sync_policies")
    assert remote_references(page) == []
    assert "class='live-only'" not in page, "everything interactive has a still picture"
    assert "In JupyterLab an interactive control stands here" not in page
    assert len(page) < 4_000_000


def test_two_cells_counted_another_way(reported: Reports) -> None:
    done = reported("sync_policies")
    found = done.tables
    counts = rows_by(found["counts"], "work", "policy")
    assert [policy for _, policy in counts] == POLICIES * 2
    for policy in POLICIES:
        emulated = counts["fork-exec/64", policy]["emulated writes"]
        assert emulated == emulated_by_hand("workload/fork-exec/64/shadow", policy) > 0
        entries = counts["text-patching/64", policy]["entries compared"]
        assert entries == entries_by_hand("workload/text-patching/64/shadow", policy)
    assert counts["text-patching/64", "oos_2008"]["entries compared"] > 0
    verdicts = {row[1]: row[-1] for row in found["question_on_change"].rows}
    mended = ["sync/global-lost-pae", "sync/global-lost-64"]
    assert [verdicts[name] for name in mended] == ["mends"] * 2
    assert done.last_line.endswith("wrong on 0 of 2")
    emulated = {
        name: sum(row["emulated writes"] for (_, p), row in counts.items() if p == name) for name in POLICIES
    }
    most, least = max(emulated.values()), min(emulated.values())
    assert result.harvest(done.notebook).sentence == (
        f"0 of {len(counts)} runs wrong; emulated writes: {most:,} (write_protect) "
        f"to {least:,} (unsync_children)"
    )
    said = "".join(str(cell.outputs) for cell in done.notebook.cells if cell.cell_type == "code")
    assert "it mends sync/global-lost-pae, sync/global-lost-64" in said


def test_other_prices_another_seed_and_a_boot(papermill: Papermill) -> None:
    given = {"workloads": "fork-exec", "mode": "32", "boots": "boot-686-nonpae", "records": 9000, "seed": 3}
    more = {"policies": "oos_2008+index=lru,unsync_children", "across": "fault", "up": "emulation"}
    other = {"variations": "-", "prices": "fault=2,exit=1"}
    done = papermill("sync_policies", **given, **more, **other)
    assert done.returncode == 0, done.stderr
    found = tables(done.notebook)
    assert [row[0] for row in found["counts"].rows] == ["fork-exec/32"] * 2 + ["boot-686-nonpae"] * 2
    assert [row[0] for row in found["policies"].rows] == ["oos_2008+index=lru", "unsync_children"]
    prices = rows_by(found["prices"], "parameter")
    assert (prices["fault",]["low"], prices["fault",]["high"]) == (2, 2)
    assert not [name for name in found if name.startswith("question_")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"policies": "none"}, "sync policy 'none'"),
        ({"workloads": "none"}, "case 'workload/none/64/shadow': unknown"),
        ({"mode": 16}, "case 'workload/fork-exec/16/shadow': unknown"),
        ({"variations": "size"}, "variation 'size': unknown; they are globals, index, "),
        ({"across": "sync_entry"}, "parameters 'across' and 'up' are both 'sync_entry'; plot two prices"),
        ({"up": "luck"}, "parameter 'up' is 'luck'; it must be one of exit, fault, emulation, walk_level, "),
        ({"prices": "luck=1"}, "cost 'luck': unknown; the parameters are exit, fault, "),
        ({"resyncs": 0}, "parameter 'resyncs' is 0; it must be an integer of at least 1 and at most 100"),
        ({"limit": 1}, "unknown parameter 'limit'; the notebook has policies, workloads, mode, "),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert refusal("sync_policies", **given).startswith(says)
