"""``make reference``: the manual's pages and each module's, without network, all reachable from the first."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mmulab.cli.doc import PAGES, page_path
from mmulab.errors import InputError
from mmulab.report import reference
from mmulab.report.page import remote_references


def links(html: str) -> list[str]:
    """Return where a page's links lead, those within pages left out."""
    return re.findall(r'<a href="([^"#]+)"', html)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_manual_has_what_its_text_has(name: str) -> None:
    html = reference._manual_page(page_path(name))
    assert remote_references(html) == []
    for heading in re.findall(r"^#+ (.*)$", page_path(name).read_text("utf-8"), re.M):
        assert f">{heading}<" in html.replace('<a class="anchor-link"', "<a")
    assert ("index.html" in links(html)) == (name != "index")


def test_the_first_page_leads_to_all_pages_and_modules() -> None:
    html = reference._manual_page(page_path("index"))
    found = links(html)
    assert {f"{name}.html" for name in PAGES if name != "index"} <= set(found)
    modules = [f"{name.replace('.', '/')}.html" for name in reference.modules()]
    assert [one for one in found if one.startswith("mmulab")] == modules
    assert "mmulab/kvm/roles/design.html" in modules
    assert ":mod:" not in html


def test_a_file_that_the_manual_names_is_a_link_to_its_module() -> None:
    html = reference._manual_page(page_path("architecture"))
    assert '<a href="mmulab/x86/walk.html"><code>mmulab/x86/walk.py</code></a>' in html
    modules = {f"{name.replace('.', '/')}.html" for name in reference.modules()}
    assert {one for one in links(html) if one.startswith("mmulab")} <= modules


def test_without_pdoc_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pdoc", None)
    with pytest.raises(InputError, match=r"^pdoc: .*; pip install -e '\.\[dev\]'$"):
        reference.build(tmp_path / "reference")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_reference_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rooms that this test looks into; all modules take more than a minute."""
    pytest.importorskip("pdoc")
    rooms = ("mmulab.machine", "mmulab.x86", "mmulab.scenario")
    some = [name for name in reference.modules() if name == "mmulab" or name.startswith(rooms)]
    monkeypatch.setattr(reference, "modules", lambda: some)
    first = reference.build(tmp_path / "reference")
    assert first == tmp_path / "reference" / "index.html"
    there = {path.relative_to(first.parent).as_posix() for path in first.parent.rglob("*.html")}
    modules = {f"{name.replace('.', '/')}.html" for name in reference.modules()}
    assert there == modules | {f"{name}.html" for name in PAGES}
    for name in there:
        html = (first.parent / name).read_text("utf-8")
        assert set(remote_references(html)) <= {"<script>"}, name  # its own, in the page
    machine = (first.parent / "mmulab/machine/machine.html").read_text("utf-8")
    assert 'id="Machine.check"' in machine
    assert "Ask every invariant" in machine
