"""notebooks/eager_split.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

from typing import Any

import pytest

from mmulab.kvm.memory_region import kvm_set_memory_region
from mmulab.kvm.memslot import KvmMemslot
from mmulab.lab.cases.build import VMCB_GPA
from mmulab.lab.eager_split.guest import HUGE, MEMORY, huge_guest
from mmulab.machine import op as ops
from mmulab.machine.op import Mode
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import Table, harvest
from mmulab.scenario.runner import Runner
from tests.notebooks.conftest import Papermill, Refusal

SMALL = {"tables": "nested", "percents": "5", "vcpus": "1", "passes": 1}
PAGES = 512


def rows_by(table: Table, *columns: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows as dicts, by some of their columns."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {tuple(row[column] for column in columns): row for row in rows}


def l2_by_hand(percent: int, *, eager: bool) -> tuple[int, int]:
    """Go over L2's memory once while it is logged; return the faults, and the pages in the log.

    Nothing of the notebook's counting is used: logging is turned on in KVM's own function, a
    fault is an increment of ``pf_taken``, and the log is the slot's bitmap.
    """
    builder, _ = huge_guest(1, host={"eager_page_split": int(eager)})
    runner = Runner(builder.op(ops.Vmrun(VMCB_GPA)).build())
    for done in runner.results():
        if isinstance(done.op, ops.Vmrun):
            break
    machine, kvm = runner.machine, runner.machine.kvm
    touch = [ops.Touch(Mode.SUPERVISOR, MEMORY + page * 4096, write=True) for page in range(PAGES)]
    machine.execute(touch[0])
    old = kvm.slots[0].by_id(0)
    assert old is not None
    new = KvmMemslot(0, 0, old.npages, old.base_frame, flags=1, host_level=2)
    assert kvm_set_memory_region(kvm, new) == 0
    before = machine.stats["pf_taken"]
    for page, op in enumerate(touch):
        written = (page + 1) * percent // 100 > page * percent // 100
        machine.execute(op if written else ops.Touch(Mode.SUPERVISOR, op.gva))
    logged = kvm.slots[0].by_id(0)
    assert logged is not None
    assert logged.dirty_bitmap is not None
    return machine.stats["pf_taken"] - before, sum(logged.dirty_bitmap[MEMORY >> 12 :])


def check_shape(tables: dict[str, Table]) -> None:
    """The published shape, in counts."""
    for row in rows_by(tables["causes"], "tables", "written %", "eager", "pass").values():
        assert row["pages touched"] == PAGES
        if row["eager"] == "on":
            assert (row["huge write-protected"], row["lower level missing"]) == (0, 0)
    for row in rows_by(tables["fourth_version"], "written %", "vCPUs").values():
        if row["written %"] == 5:
            assert row["on / off"] <= 0.1
        if row["written %"] == 100:
            assert row["on / off"] >= 0.9
        assert row["enabling, on"] == row["clear iter 1, on"] == row["vCPUs"]
    assert all(row["equal"] for row in rows_by(tables["recorded"], "event").values())


@pytest.mark.slow
def test_defaults(papermill: Papermill) -> None:
    done = papermill("eager_split")
    assert done.returncode == 0, done.stderr
    tables = {table.name: table for table in harvest(done.notebook)}
    check_shape(tables)
    causes = rows_by(tables["causes"], "tables", "written %", "eager", "pass")
    assert len(causes) == 3 * 3 * 2 * 2
    for percent in (5, 50, 100):
        off, on = (causes["nested", percent, eager, 1]["faults"] for eager in ("off", "on"))
        assert on / off <= 0.1 if percent == 5 else on / off >= 0.45
    page = export(done.notebook, "eager_split")
    assert remote_references(page) == []
    assert "In JupyterLab an interactive control stands here" not in page


def test_two_cells_counted_another_way(papermill: Papermill) -> None:
    done = papermill("eager_split", **SMALL)
    assert done.returncode == 0, done.stderr
    tables = {table.name: table for table in harvest(done.notebook)}
    check_shape(tables)
    causes = rows_by(tables["causes"], "eager")
    for eager in (False, True):
        row = causes["on" if eager else "off",]
        assert (row["faults"], row["dirty"]) == l2_by_hand(5, eager=eager)
    assert rows_by(tables["limits"], "lacking")["nothing",]["splits"] == 6
    assert done.last_line == "first-pass faults at 5 % written, on / off: nested 0.051"
    off, on = (causes[eager,]["faults"] for eager in ("off", "on"))
    assert result.harvest(done.notebook).sentence == (
        f"Eager splitting leaves {on} of {off} first-pass faults (nested, 5 % written)"
    )


def test_another_kernel_splits_on_the_fault(papermill: Papermill) -> None:
    done = papermill(
        "eager_split", **{**SMALL, "tables": "tdp_mmu"}, kernel="6.12.117", prices="fault=2,split=40"
    )
    assert done.returncode == 0, done.stderr
    tables = {table.name: table for table in harvest(done.notebook)}
    lazy = rows_by(tables["causes"], "eager")["off",]
    assert (lazy["huge write-protected"], lazy["lower level missing"], lazy["4K write-protected"]) == (
        1,
        0,
        24,
    )
    prices = rows_by(tables["prices"], "contention", "parameter")
    assert prices["2 vCPUs", "split"]["low"] == prices["2 vCPUs", "split"]["high"] == 40


def test_faults_by_hand_see_huge_pages() -> None:
    """The oracle itself: 512 or 511 faults if all is written, and both ways all are dirty."""
    assert HUGE == PAGES * 4096
    assert l2_by_hand(100, eager=True) == (PAGES, PAGES)
    assert l2_by_hand(100, eager=False) == (PAGES, PAGES)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tables": "none"}, "setup 'none': unknown; the setups are tdp_mmu, nested, "),
        ({"percents": "200"}, "parameter 'percents' is '200', expected numbers of 0 to 100"),
        ({"vcpus": "2,2"}, "parameter 'vcpus' is '2,2', expected each number once"),
        ({"passes": 0}, "parameter 'passes' is 0; it must be an integer of at least 1 and at most 20"),
        ({"prices": "luck=1"}, "cost 'luck': unknown; the parameters are exit, fault, "),
        ({"seed": 1}, "unknown parameter 'seed'; the notebook has kernel, tables, percents, vcpus, "),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert refusal("eager_split", **given).startswith(says)
