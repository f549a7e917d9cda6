"""Links to commits and mails: what is one, where they may stand, and that no other word is taken for one."""

from __future__ import annotations

import re

import nbformat
import pytest

from mmulab import paths
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.bugs import BUGS
from mmulab.report.links import commits_in, linked
from mmulab.report.page import export, remote_references

LORE, GIT = "https://lore.kernel.org/r/", "https://git.kernel.org/linus/"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("20220330132152.4568-3", f"{LORE}20220330132152.4568-3-jiangshanlai@gmail.com"),
        ("20220204115718.14934-4-pbonzini@redhat.com", f"{LORE}20220204115718.14934-4-pbonzini@redhat.com"),
        ("YlXvtMqWpyM9Bjox@google.com", f"{LORE}YlXvtMqWpyM9Bjox@google.com"),
        (
            "a7cc6ead-c30b-4d21-c92c-faf37d9023b7@redhat.com",
            f"{LORE}a7cc6ead-c30b-4d21-c92c-faf37d9023b7@redhat.com",
        ),
        ("84e5ffd045f3", f"{GIT}84e5ffd045f3"),
    ],
)
def test_what_is_cited_leads_there(text: str, address: str) -> None:
    assert linked(f"<p>See ({text}), or {text}.</p>") == (
        f'<p>See (<a href="{address}">{text}</a>), or <a href="{address}">{text}</a>.</p>'
    )


@pytest.mark.parametrize(
    "html",
    [
        "<p>rd u 4 6c8000188000 and 0x84e5ffd045f3</p>",
        "<p>084e5ffd045f3 84e5ffd045f31 84e5ffd045f3.jsonl x-84e5ffd045f3</p>",
        "<p>123456789012 of 20220330132152</p>",
        "<p>20010203040506.1-2: nobody knows who sent it</p>",
        "<p>jiangshanlai@gmail.com</p>",
        '<p title="84e5ffd045f3 > 0">x</p>',
        "<style>.a84e5ffd045f3 {} /* 84e5ffd045f3 */</style>",
        "<svg><g><text>84e5ffd045f3</text></g></svg>",
        '<a href="https://example.org/">84e5ffd045f3</a>',
        "<!-- 84e5ffd045f3 -->",
    ],
)
def test_nothing_else_is_touched(html: str) -> None:
    assert linked(html) == html


def test_a_link_may_stand_after_what_holds_none() -> None:
    html = "<svg><svg><text>84e5ffd045f3</text></svg></svg><p>84e5ffd045f3</p>"
    assert linked(html).count("<a ") == 1
    assert linked("<svg/><p>84e5ffd045f3</p>").count("<a ") == 1


def test_other_commits_must_be_known() -> None:
    assert linked("<p>5731d4c7a077</p>") == "<p>5731d4c7a077</p>"
    assert f'"{GIT}5731d4c7a077"' in linked("<p>5731d4c7a077</p>", {"5731d4c7a077"})
    assert commits_in("(5731d4c7a077, 2.6.28) 123456789012") == {"5731d4c7a077"}


def test_every_change_and_bug_is_linked() -> None:
    commits = [found.commit for found in (*CHANGES.values(), *BUGS.values()) if found.commit]
    html = linked(f"<p>{' '.join(commits)}</p>")
    assert [commit for commit in commits if f'"{GIT}{commit}"' not in html] == []


def test_prose_of_every_notebook_cites_what_is_linked() -> None:
    for path in paths.notebooks():
        cells = nbformat.read(path, 4).cells
        notebook = nbformat.v4.new_notebook(cells=[cell for cell in cells if cell.cell_type == "markdown"])
        html = export(notebook, path.stem)
        prose = " ".join(cell.source for cell in notebook.cells)
        cited = set(re.findall(r"(?<!-)\b[0-9a-f]{12}\b", prose))
        cited |= set(re.findall(r"\b20\d{12}\.\d+-\d+", prose))
        assert [text for text in cited if not re.search(f'href="[^"]*/{text}', html)] == []
        assert remote_references(html) == []
