"""First pages: what they say of each run, and that nothing of a run gets into their markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.report.index import write_index
from mmulab.report.reading import reading
from mmulab.report.results import Table
from tests.report.folders import Made, make_folder

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><rect width="60" height="40"/></svg>'
ERROR = {"type": "ValueError", "message": "line 1\nline 2", "cell": 4, "traceback": "Traceback\n  at x"}


def report(tmp_path: Path) -> str:
    """The page of a report: one notebook done, one failed, one not run."""
    done = Made(
        "real_boot",
        [Table("counts", ["a"], [[1]])],
        target="notebooks/real_boot.ipynb",
        title="A real boot",
        result="0 of 12 accesses wrong",
        picture=SVG,
        seconds=83,
    )
    failed = Made("bad", target="notebooks/bad.ipynb", state="failed", error=ERROR)
    missing = Made("later", target="notebooks/later.ipynb", state="missing")
    out = make_folder(tmp_path / "out", done, failed, missing, title="mmulab report")
    return write_index(out).read_text("utf-8")


def article(html: str, name: str) -> str:
    found = re.search(rf'<li id="{name}">.*?</li>', html, re.DOTALL)
    assert found
    return found[0]


class Links(HTMLParser):
    """Collects what a page leads to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name == "href"]


def test_report_says_the_results(tmp_path: Path) -> None:
    html = report(tmp_path)
    first = article(html, "real_boot")
    assert '1. <a href="real_boot/real_boot.html">A real boot</a>' in first
    assert "How far the model can be trusted" in html
    assert "0 of 12 accesses wrong" in first
    assert "1 min 23 s" in first
    assert "data:image/svg+xml;base64," in first
    assert "mmulab report --notebook real_boot" in first
    assert '3 notebooks, <span class="failed">1 failed</span>, <span class="missing">1 not run</span>' in html
    assert "<script" not in html


def test_report_is_a_page_to_start_from(tmp_path: Path) -> None:
    """The order is that of reading, whatever the order in which the notebooks ran."""
    columns = ["kernel", "host", "recordings", "compared", "agree"]
    columns += ["ops", "ops agree", "events", "events agree"]
    rows = [["6.1.192", "sh", 143, 3, 2, 70, 69, 1000, 990], ["6.1.192", "tdp0", 10, 0, 0, 0, 0, 0, 0]]
    names = ["record_and_compare", "mine", "known_bugs", "step_a_fault"]
    runs = [
        Made(
            name,
            [Table("conformance", columns, rows)] if name == "record_and_compare" else [],
            target=f"notebooks/{name}.ipynb",
            title=f"The {name}",
            package={"version": "0.1.0", "commit": "12345678abcd" + "0" * 28 + "-modified"},
        )
        for name in names
    ]
    html = write_index(make_folder(tmp_path / "out", *runs, title="mmulab report")).read_text("utf-8")
    heads = re.findall(r"<h[23]>(?:<a[^>]*>)?(.*?)<", html)
    assert [head for head in heads if head[0].isalpha()] == [
        "Start here",
        "How far the model can be trusted",
        "Kernels and their bugs",
        "Other notebooks",
    ]
    order = ["step_a_fault", "record_and_compare", "known_bugs", "mine"]
    assert re.findall(r'<li id="(\w+)">', html) == order
    assert reading()["step_a_fault"].about in article(html, "step_a_fault")
    assert reading()["step_a_fault"].why in article(html, "step_a_fault")
    assert '<strong class="failed">2 of 3 recordings of Linux 6.1.192 agree</strong>' in html
    assert "69 of 70 ops, 990 of 1,000 events. Those are the recordings of sh; there are 153" in html
    assert '<a href="#record_and_compare">The record_and_compare</a>' in html
    assert "Run by mmulab 0.1.0, commit <code>12345678abcd</code>, with changes." in html


def test_no_figure_without_a_measurement(tmp_path: Path) -> None:
    html = report(tmp_path)
    assert "Conformance was not measured here: <code>mmulab conform data/" in html
    assert "recordings of Linux" not in html


def test_failed_notebook_shows_its_cell(tmp_path: Path) -> None:
    html = report(tmp_path)
    failed = article(html, "bad")
    assert "failed in cell 4" in failed
    assert "ValueError<pre>line 1\nline 2</pre>" in failed.replace("</strong>: ", "")
    assert "bad/bad.html" not in failed, "it has no page"
    assert "bad/bad.ipynb" in failed
    assert "Not run." in article(html, "later")


def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    links = [link for link in Links(report(tmp_path)).found if not link.startswith("#")]
    assert "real_boot/tables/counts.csv" in links
    assert [link for link in links if not (tmp_path / "out" / link).exists()] == []
    runs = [Made(f"r{n}", [Table("t", ["a"], [[n]])], {"n": n}) for n in range(3)]
    links = Links(write_index(make_folder(tmp_path / "sweep", *runs)).read_text("utf-8")).found
    assert len(links) > 9
    assert [link for link in links if not (tmp_path / "sweep" / link).exists()] == []


def test_sweep_has_a_row_for_each_run(tmp_path: Path) -> None:
    runs = [
        Made("r0", parameters={"design": "D0", "mode": "64"}, result="2 wrong"),
        Made("r1", parameters={"design": "D1", "mode": "64"}, state="failed", error=ERROR, seed=3),
        Made("r2", parameters={"design": "D2", "mode": "64"}, state="missing"),
    ]
    html = write_index(make_folder(tmp_path / "out", *runs)).read_text("utf-8")
    assert "The same in all runs: mode = <code>64</code>." in html
    table = html.partition('<table class="runs">')[2].partition("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert heads == ["run", "design", "seed", "state", "seconds", "result", "files"]
    rows = [re.findall(r'data-value="([^"]*)"', row) for row in re.findall("<tr>.*</tr>", table)[1:]]
    assert rows == [
        ["r0", "D0", "", "done", "1.5", "2 wrong", ""],
        ["r1", "D1", "3", "failed", "1.5", "", ""],
        ["r2", "D2", "", "missing", "", "", ""],
    ]
    assert '<h3 id="failed-r1">r1</h3>' in html


def test_joined_tables_are_capped_and_say_so(tmp_path: Path) -> None:
    runs = [Made(f"r{n}", [Table("t", ["a"], [[f"v{n}-{row}"] for row in range(150)])]) for n in range(2)]
    html = write_index(make_folder(tmp_path / "out", *runs)).read_text("utf-8")
    assert "t: 300 rows of 2 runs" in html
    assert "The first 200 of 300 rows" in html
    assert len(re.findall(r"v\d-\d+<", html)) == 200


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    bad = "<b id='x'>\"&"
    tables = [Table("t", [bad], [[bad]], caption=bad)]
    error = dict.fromkeys(("type", "message", "traceback"), bad) | {"cell": None}
    for name, target in (("sweep", "notebooks/small.ipynb"), ("report", "notebooks/r.ipynb")):
        runs = [
            Made("r", tables, {bad: bad}, result=bad, title=bad, target=target, state="failed", error=error),
            Made("r2", parameters={bad: "other"}, target=target.replace("/r.", "/r2.")),
        ]
        html = write_index(make_folder(tmp_path / name, *runs, title=bad)).read_text("utf-8")
        assert "b" not in Links(html).tags
        assert "<b " not in html.partition("<script>")[0]


def test_page_forbids_itself_every_request(tmp_path: Path) -> None:
    html = report(tmp_path)
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    sweep = write_index(make_folder(tmp_path / "sweep", Made("a"), Made("b"))).read_text("utf-8")
    assert "script-src 'sha256-" in sweep
    assert sweep.count("<script") == 1


def test_same_folder_same_page(tmp_path: Path) -> None:
    assert report(tmp_path / "a") == report(tmp_path / "b")


def test_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep or report"):
        write_index(tmp_path)
