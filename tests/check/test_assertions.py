"""Counts of the kernel's assertions, and the comparison of the table with sources."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from mmulab.check.assertions import CHOSEN_FILES, Counts, Reached, count_recording, differences
from mmulab.check.kernel_source import KVM, Place
from mmulab.errors import InputError
from mmulab.kvm.assertions import assertions

LINUX = "MMULAB_LINUX"
"""Variable that names the sources of Linux 6.1.192, for the one test that needs them."""
PENDING = ("nested.c:nested_vmx_vmexit:run_pending", "vmx.c:__vmx_handle_exit:run_pending")
MODELLED = [a.name for a in assertions().values() if a.modelled]


def recording(root: Path, name: str) -> Path:
    return root / f"data/conformance/6.1.192/{name}.jsonl.xz"


# Counts ---------------------------------------------------------------------------------


def test_a_recording_that_ends_with_a_dead_vm_holds_both_assertions(root: Path) -> None:
    counts = count_recording(recording(root, "nested-ept/ept-misconfig-eptp-ad"))
    assert counts.recordings == 1
    assert {name for name in counts.by_name if counts.of(name).held} == {*PENDING}
    for name in PENDING:
        assert counts.of(name) == Reached(counts.of(name).reached, 1, 1)


def test_no_assertion_holds_in_a_recording_in_which_nothing_is_wrong(root: Path) -> None:
    counts = count_recording(recording(root, "nested-nonpt/nested-nonpt-64-l2-np"))
    assert counts.ops > 10
    assert counts.by_name
    assert set(counts.by_name) <= set(MODELLED)
    assert not any(reached.held for reached in counts.by_name.values())


def test_counts_add_up() -> None:
    total = Counts(1, 10, {"a": Reached(5, 1, 1)})
    total.add(Counts(2, 20, {"a": Reached(2, 0, 2), "b": Reached(1, 1, 1)}))
    assert total == Counts(3, 30, {"a": Reached(7, 1, 3), "b": Reached(1, 1, 1)})
    assert total.of("c") == Reached(0, 0, 0)


def test_what_is_written_has_a_row_for_each_modelled_one(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    Counts(3, 30, {MODELLED[0]: Reached(7, 1, 3)}).write(path)
    first, head, *rows = path.read_text("ascii").splitlines()
    assert first == "# 3 recordings, 30 ops"
    assert head == "name,reached,held,recordings"
    assert rows[0] == f"{MODELLED[0]},7,1,3"
    assert [row.split(",")[0] for row in rows] == MODELLED


def test_the_shipped_counts_are_of_the_table() -> None:
    shipped = Counts.shipped()
    assert list(shipped.by_name) == MODELLED, "count anew: mmulab assertions data/conformance .. --out"
    assert shipped.recordings > 0
    assert all(r.held <= r.reached and r.recordings <= shipped.recordings for r in shipped.by_name.values())


def test_what_is_shipped_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    Counts.shipped().write(path)
    here = Path(__file__).parents[2] / "mmulab/check/assertion_counts.csv"
    assert path.read_text("ascii") == here.read_text("ascii")


# Sources --------------------------------------------------------------------------------


def fake(folder: Path, **changes: int) -> Path:
    """Write sources that have the table's assertions, each macro as often as `changes` or the table says."""
    table = Counter(Place(a.file, a.function, str(a.severity)) for a in assertions().values())
    texts: dict[str, str] = {}
    for place, number in table.items():
        times = changes.get(f"{place.function}__{place.macro}", number)
        body = "".join(f"\t{place.macro}(x);\n" for _ in range(times))
        texts[place.file] = texts.get(place.file, "") + f"void {place.function}(void)\n{{\n{body}}}\n"
    for file, text in texts.items():
        path = folder / KVM / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_sources_with_the_tables_assertions_do_not_differ(tmp_path: Path) -> None:
    assert not any(differences(fake(tmp_path)))


def test_what_is_gone_and_what_is_new(tmp_path: Path) -> None:
    found = differences(fake(tmp_path, pte_list_remove__BUG=1, mmu_spte_set__WARN_ON=2))
    assert found.gone == {Place("mmu/mmu.c", "pte_list_remove", "BUG"): 2}
    assert found.new == {Place("mmu/mmu.c", "mmu_spte_set", "WARN_ON"): 1}
    assert not found.changed


def test_another_macro_in_the_same_function_is_a_change(tmp_path: Path) -> None:
    path = fake(tmp_path) / KVM / "mmu/spte.h"
    path.write_text(path.read_text().replace("MMU_WARN_ON", "KVM_MMU_WARN_ON", 1))
    found = differences(tmp_path)
    assert found.changed == {(Place("mmu/spte.h", "spte_ad_enabled", "MMU_WARN_ON"), "KVM_MMU_WARN_ON"): 1}
    assert not found.new
    assert not found.gone


def test_a_new_file_of_the_mmu_is_read_and_new_ones_elsewhere_are_none_of_the_tables(tmp_path: Path) -> None:
    more = "void f(void)\n{\n\tBUG();\n}\n"
    (fake(tmp_path) / KVM / "mmu/new.h").write_text(more)
    for file in CHOSEN_FILES:
        path = tmp_path / KVM / file
        path.write_text(path.read_text() + more)
    found = differences(tmp_path)
    assert found.new == {Place("mmu/new.h", "f", "BUG"): 1}


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernel sources"):
        differences(tmp_path)


@pytest.mark.skipif(LINUX not in os.environ, reason=f"{LINUX} does not name the sources of Linux 6.1.192")
def test_the_table_is_that_of_the_kernel() -> None:
    source = Path(os.environ[LINUX])
    assert not any(differences(source))
    for row in assertions().values():
        line = (source / KVM / row.file).read_text("utf-8").splitlines()[row.line - 1]
        assert f"{row.severity}(" in line, f"{row.name}: line {row.line}: {line}"
