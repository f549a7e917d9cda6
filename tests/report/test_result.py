"""Results in a sentence: what a notebook may declare, how it shows, how a run finds it."""

from __future__ import annotations

import nbformat
import pytest

from mmulab.report.page import export
from mmulab.report.result import RESULT_MIME, Result, harvest
from mmulab.widgets import scene
from mmulab.widgets.figure import bar_chart

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><rect width="10" height="10"/></svg>'


def notebook_with(*results: Result) -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("display_data", result._repr_mimebundle_()) for result in results]
    cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("code", outputs=outputs)]
    return nbformat.reads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), 4)


@pytest.mark.parametrize("result", [Result("0 of 12 wrong"), Result("<b> & more", SVG)])
def test_harvest_returns_what_was_shown(result: Result) -> None:
    notebook = notebook_with(result)
    assert notebook.cells[1].outputs[0].data[RESULT_MIME]["sentence"] == result.sentence
    assert harvest(notebook) == result


def test_notebook_may_have_none_but_not_two() -> None:
    assert harvest(notebook_with()) is None
    with pytest.raises(ValueError, match="two results"):
        harvest(notebook_with(Result("one"), Result("two")))


def test_page_has_the_sentence_and_not_the_picture_again() -> None:
    html = export(notebook_with(Result("<b> wrong", SVG)), "name")
    assert "&lt;b&gt; wrong" in html
    assert "<svg" not in html


def test_figures_are_pictures() -> None:
    drawn = scene.bar_chart(["a"], [1], title="t")
    assert Result("one", drawn).picture == drawn.markup
    assert Result("one", bar_chart(["a"], [1], title="t")).picture == drawn.markup


@pytest.mark.parametrize("sentence", ["", "  ", "two\nlines", "a\x1b[31m", "x" * 201])
def test_sentence_is_one_line(sentence: str) -> None:
    with pytest.raises(ValueError, match="a result is one line of at most 200 characters"):
        Result(sentence)


@pytest.mark.parametrize("picture", ["", "<svg/>", "<p>x</p>", "<svg", 3])
def test_picture_is_an_svg(picture: object) -> None:
    with pytest.raises(ValueError, match="a result's picture is"):
        Result("one", picture)  # type: ignore[arg-type]


def test_large_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="has 400000 characters at most"):
        Result("one", SVG.replace("<rect", "<title>" + "x" * 400_000 + "</title><rect"))
