"""Pages: what is shown, and that nothing needs a network or a script."""

from __future__ import annotations

import nbformat
import pytest

from mmulab.report.page import WIDGET_MIME, export, remote_references

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><rect width="10" height="10"/></svg>'
VIEW = {"model_id": "abc", "version_major": 2, "version_minor": 0}


def notebook_showing(**data: object) -> nbformat.NotebookNode:
    bundle = {name.replace("_", "/", 1).replace("_", "+"): value for name, value in data.items()}
    output = nbformat.v4.new_output("display_data", bundle)
    cell = nbformat.v4.new_code_cell("secret_name = 1", outputs=[output])
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Heading *here*"), cell])


def test_picture_wins_over_widget() -> None:
    notebook = notebook_showing(image_svg_xml=SVG, text_plain="words")
    notebook.cells[1].outputs[0].data[WIDGET_MIME] = VIEW
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    html = export(notebook, "name")
    assert "<svg " in html
    assert 'rect height="10" width="10"' in html
    assert "widget" not in html
    assert "words" not in html
    assert "<title>name</title>" in html
    assert notebook.cells[1].outputs[0].data[WIDGET_MIME] == VIEW


def test_lone_control_leaves_a_word() -> None:
    notebook = notebook_showing(text_plain="IntSlider(value=0)")
    notebook.cells[1].outputs[0].data[WIDGET_MIME] = VIEW
    html = export(notebook, "name")
    assert "In JupyterLab an interactive control stands here" in html
    assert "IntSlider" not in html


def test_page_has_no_random_part() -> None:
    first, second = (notebook_showing(image_svg_xml=SVG) for _ in range(2))
    assert first.cells[1].id != second.cells[1].id
    assert export(first, "name") == export(second, "name")


def test_text_tables_and_code_are_kept() -> None:
    html = export(notebook_showing(text_html="<table><tr><td>cell</td></tr></table>"), "name")
    assert "<td>cell</td>" in html
    assert "secret_name" in html
    assert "<em>here</em>" in html


@pytest.mark.parametrize(
    "html",
    [
        '<script>alert("x")</script>',
        '<img src="https://example.org/a.png">',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<div style="background: url(https://example.org/a.png)">x</div>',
        "<style>@import 'a.css';</style>",
        "<svg><rect fill='url(a.svg#m1)'/></svg>",
        '<svg><image href="a.png"/></svg>',
        '<svg><image xlink:href="http://example.org/a.png"/></svg>',
        '<button onclick="go()">x</button>',
        '<iframe src="page.html"></iframe>',
    ],
)
def test_page_that_needs_more_is_refused(html: str) -> None:
    assert len(remote_references(html)) == 1
    with pytest.raises(ValueError, match="page 'name' is not self-contained"):
        export(notebook_showing(text_html=html), "name")


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://example.org/">link</a>',
        '<img src="data:image/png;base64,AAAA">',
        '<svg><rect fill="url(#m1)"/><use href="#m1"/></svg>',
        "<style>p { background: url('data:image/png;base64,AAAA') }</style>",
        "<p>url(https://example.org/) and &lt;script&gt; in text</p>",
    ],
)
def test_page_may_have_links_and_inline_data(html: str) -> None:
    assert remote_references(html) == []
