"""Pages beside an exported one: kept in the notebook's output, linked, written out."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from mmulab.report.beside import MIME, Beside, pages_of, stepper_beside
from mmulab.report.page import export
from mmulab.scenario.record import record
from mmulab.workload.tour import tour

PAGE = "<!doctype html><p>more & more</p>"


def notebook_with(page: Beside) -> object:
    output = nbformat.v4.new_output("display_data", page._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("page", outputs=[output])
    return nbformat.v4.new_notebook(cells=[cell])


def test_page_comes_out_as_it_went_in_and_is_linked() -> None:
    notebook = notebook_with(Beside("more", "All <of> it", PAGE))
    assert dict(pages_of(notebook, "small")) == {"small-more.html": PAGE}
    html = export(notebook, "small")
    assert '<a href="small-more.html">All &lt;of&gt; it</a>' in html
    assert "In a report" not in html


def test_in_jupyterlab_a_line_says_where_the_link_is() -> None:
    bundle = Beside("more", "All of it", PAGE)._repr_mimebundle_()
    assert set(bundle) == {MIME, "text/html", "text/plain"}
    assert bundle["text/html"] == "<p>In a report a link stands here: All of it.</p>"


@pytest.mark.parametrize("name", ["", "../more", "More", "a b", "a.html"])
def test_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="a name has lower-case letters"):
        Beside(name, "All of it", PAGE)


def test_name_in_a_strange_notebook_is_refused() -> None:
    notebook = notebook_with(Beside("more", "All of it", PAGE))
    notebook.cells[0].outputs[0]["data"][MIME]["name"] = "../more"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has no plain name"):
        list(pages_of(notebook, "small"))
    with pytest.raises(ValueError, match="has no plain name"):
        export(notebook, "small")


def test_stepper_opens_at_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmulab.report.beside.MOST", 5)
    recording = record(tour("32-bit").scenario)
    page = stepper_beside(recording, "stepper", "Step it", at=20)
    assert '"first":16' in page.html
    assert '"at":4' in page.html
    assert len(recording) > 20
