"""Results tables: what they take, how they are written, how a run finds them."""

from __future__ import annotations

import csv
import io
import re

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.report.results import TABLE_MIME, Table, harvest

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


def test_csv_bytes() -> None:
    table = Table(
        "t", ["kind", "n"], [["a,b", np.int64(2**62)], ['say "x"', 0.1], [None, np.float32(0.5)], [True, -1]]
    )
    assert table.csv() == 'kind,n\n"a,b",4611686018427387904\n"say ""x""",0.1\n,0.5\nTrue,-1\n'


@given(st.lists(st.tuples(TEXT, st.integers()), max_size=5))
def test_csv_keeps_every_value(rows: list[tuple[str, int]]) -> None:
    text = Table("t", ["a", "b"], rows).csv()
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [[a, str(b)] for a, b in rows]


def test_shape_is_checked() -> None:
    with pytest.raises(ValueError, match="table t: row 1 has 1 values, not 2"):
        Table("t", ["a", "b"], [[1, 2], [3]])


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b"])
def test_name_must_be_a_file_name(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a table's file"):
        Table(name, ["a"], [])


def test_values_must_be_plain() -> None:
    with pytest.raises(TypeError, match="cannot be kept in a results table"):
        Table("t", ["a"], [[object()]])


def test_html_escapes_and_groups() -> None:
    html = Table("t", ["<a>"], [["<b>"], [1234567]], caption="<c>")._repr_html_()
    assert "<a>" not in html
    assert "&lt;b&gt;" in html
    assert "1,234,567" in html


def test_folds_by_a_column_and_counts_those_after_it() -> None:
    rows = [
        ["a", "odd", "wrong", 1],
        ["b", "<even>", "right", 2],
        ["c", "odd", "right", 1234],
        ["d", "odd", "right", 9],
        ["e", "odd", "right", 3],
    ]
    table = Table("t", ["name", "kind", "verdict", "n"], rows, "Words.", fold="kind")
    html = table._repr_html_()
    assert re.findall("<summary>(.*?)</summary>", html) == [
        "odd: 4; verdict: 1 wrong, 3 right",
        "&lt;even&gt;: 1; verdict: 1 right",
    ]
    assert re.findall('<(tr|details)(?: class="(.*?)")?>', html) == [
        ("details", "c2v0 c2v1"),
        ("tr", ""),
        ("tr", "c2v0"),
        *[("tr", "c2v1")] * 3,
        ("details", "c2v1"),
        ("tr", ""),
        ("tr", "c2v1"),
    ]
    assert re.findall(r"<legend>(.*?)</legend>", html) == ["verdict"], "n has too many values"
    assert re.findall(r"> (\w+)</label>", html) == ["all", "wrong", "right"], "the rarest first"
    assert html.count("<table>") == 2
    assert "<p>Words.</p>" in html
    assert '<th scope="col">kind</th>' not in html
    assert "1,234" in html
    assert table.csv().splitlines()[0] == "name,kind,verdict,n"
    assert harvest(notebook_with(table)) == [table]


def test_columns_differ_and_fold_names_one() -> None:
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        Table("t", ["a", "a"], [])
    with pytest.raises(ValueError, match="folds by 'b', which is none of its columns"):
        Table("t", ["a"], [], fold="b")


def notebook_with(*tables: Table) -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("display_data", table._repr_mimebundle_()) for table in tables]
    cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("code", outputs=outputs)]
    return nbformat.reads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), 4)


def test_harvest_returns_what_was_shown() -> None:
    tables = [Table("one", ["a"], [[1], [None]], caption="c"), Table("two", ["b"], [["x"]])]
    notebook = notebook_with(*tables)
    assert TABLE_MIME in notebook.cells[1].outputs[0].data
    assert harvest(notebook) == tables


def test_harvest_refuses_two_of_one_name() -> None:
    with pytest.raises(ValueError, match="two results tables named 'one'"):
        harvest(notebook_with(Table("one", ["a"], []), Table("one", ["b"], [])))


def test_only_long_words_may_wrap() -> None:
    long = "mmu.c:kvm_flush_remote_tlbs_with_address"
    html = Table("t", ["a"], [[f"{long} of unprotect_on_reinjection"]])._repr_html_()
    assert f">{long.replace('_', '_<wbr>')} of unprotect_on_reinjection</td>" in html
