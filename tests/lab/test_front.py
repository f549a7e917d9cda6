"""``import mmulab``: the front is lazy, typed, and shows itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmulab
from mmulab.errors import InputError
from mmulab.lab.designs.compare import Comparison
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.record import record

ROOT = Path(__file__).parents[2]
READ_ONLY = 0x65
GVA, GPA = 0x40000000, 0x100000


def printed(*arguments: str) -> str:
    """Run Python and return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def forgets_wp() -> ScenarioBuilder:
    """A guest that writes to a read-only page with CR0.WP=0, and again with CR0.WP=1."""
    guest = mmulab.guest("64").map(GVA, GPA, flags=READ_ONLY).op("cr0 80000031")
    return guest.op(f"wr s {GVA:x} 1").op("cr0 80010031").op(f"wr s {GVA:x} 2")


def test_every_name_is_there_and_listed() -> None:
    assert set(mmulab.__all__) <= set(dir(mmulab))
    assert all(getattr(mmulab, name) is not None for name in mmulab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(mmulab, "nothing")  # noqa: B009 - mypy knows that it is not there


def test_the_front_imports_no_notebook_package() -> None:
    names = ", ".join(name for name in mmulab.__all__ if name != "__version__")
    script = f"from mmulab import {names}; import sys; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in printed("-c", script).split()}
    assert "mmulab" in loaded
    assert not loaded & {"IPython", "bqplot", "ipywidgets", "nbconvert", "numba", "pandas", "papermill"}


def test_module_is_the_command_line() -> None:
    assert printed("-m", "mmulab", "--version") == f"mmulab {mmulab.__version__}\n"


def test_a_design_without_cr0_wp_goes_wrong() -> None:
    guest = forgets_wp()
    right, wrong = mmulab.run(guest), mmulab.run(guest.build(), "D7")
    assert right.wrong is None
    assert right.results[-1].outcome.error_code == 0x3
    assert wrong.wrong is not None
    assert wrong.wrong.op == 3
    assert wrong.wrong.reached == GPA
    assert repr(right).endswith("right>")
    assert f"wrong in op 3 'wr s 4 {GVA:x} 2'" in repr(wrong)


def test_pages_walk_and_check() -> None:
    run = mmulab.run(forgets_wp().op(f"rd s {GVA:x}"))
    pages = run.pages()
    assert [(sp.level, sp.gfn) for sp in pages if sp.root_count] == [(4, 0x10)]
    root = "<ShadowPage gfn 0x10 role 0x3704: l4 8-byte q0 wux, sync, held as root 1x>"
    assert repr(pages).splitlines()[0] == root
    walks = run.walk(GVA + 0x123)
    assert walks.guest.gpa == walks.reached == GPA + 0x123
    assert [step.level for step in walks.shadow] == [4, 3, 2, 1]
    assert f"{GVA + 0x123:#x} (4level paging, CR3 0x10000) -> gpa {GPA + 0x123:#x}" in repr(walks)
    nowhere = run.walk(0x7000_0000)
    assert nowhere.reached is None
    assert "page fault, error 0x0" in repr(nowhere)
    assert run.check()
    run.pages()[0].gfn += 1
    assert not run.check()


def test_walk_of_a_guest_under_npt_goes_by_guest_physical_addresses() -> None:
    run = mmulab.run(mmulab.guest("32", host={"npt": 1}).map(GVA, GPA).op(f"rd s {GVA:x}"))
    assert run.walk(GVA).reached == GPA
    assert run.walk(GVA).shadow[-1].gfn == GPA >> 12
    assert run.walk(0x7000_0000).shadow == ()


def test_walk_of_l2_under_nested_paging_is_refused() -> None:
    run = mmulab.run("npt-64-l2-64-l0-4")
    run.machine.kvm.vcpus[0].walk_mmu = run.machine.kvm.vcpus[0].nested_mmu
    with pytest.raises(InputError, match="walks_of"):
        run.walk(GVA)


def test_run_takes_names_and_kernels() -> None:
    assert mmulab.run("la57-switch-npt-4to5-l0-5", "D0").wrong is not None
    assert mmulab.run("mixed-wp-64", kernel="6.12").machine.config.kernel.name.startswith("6.12")
    with pytest.raises(InputError, match="3 have this name"):
        mmulab.run("mixed-wp-*")
    with pytest.raises(InputError, match="recorded boot"):
        mmulab.run("stream/boot-686-nonpae")


def test_compare_takes_a_guest_of_ones_own() -> None:
    found = mmulab.compare(["D4", "D7"], [forgets_wp(), "mixed-halves-32"])
    assert isinstance(found, Comparison)
    assert [cell.verdict for cell in found.cells] == ["correct", "wrong", "correct", "correct"]
    collision = found.cell("glevels", "guest-0").collision
    assert collision is not None
    assert "cr0_wp" in str(collision)


def test_cases_by_pattern() -> None:
    names = [case.name for case in mmulab.cases("mixed-wp-*")]
    assert names == ["mixed-wp-32", "mixed-wp-pae", "mixed-wp-64"]
    assert len(mmulab.cases()) > 100


def test_each_shows_itself_short_and_in_hexadecimal() -> None:
    guest = forgets_wp()
    run = mmulab.run(guest)
    outcome = run.results[-1].outcome
    assert repr(guest) == "<ScenarioBuilder: 64 guest, CR3 0x10000, amd host, 4 ops>"
    assert repr(guest.build()) == "<Scenario <built>: 64 guest, CR3 0x10000, amd host, 4 ops>"
    assert repr(run.machine) == "<Machine amd tdp=0 on 6.1.192, passthrough: 1 vCPUs, 10 shadow pages>"
    assert repr(outcome) == "<Outcome kind=exc rip=0x1810 vector=0xe error_code=0x3 cr2=0x40000000>"
    recorded = record(guest.build())
    assert repr(recorded) == "<Recording of <built>: 6 ops, 99 events, 1 checkpoints>"
    assert recorded._repr_html_().startswith("<table>")
    assert repr(run.machine.check()) == repr(run.check()) == "<Check VALID, 0 violations>"
    everything = guest, guest.build(), run, run.machine, run.pages(), run.pages()[0], outcome, run.walk(GVA)
    for shown in everything:
        assert len(repr(shown).splitlines()[0]) < 130
        html = shown._repr_html_()  # type: ignore[attr-defined]
        assert html.startswith("<table>")
        assert "40000000" in html or "0x10" in html
