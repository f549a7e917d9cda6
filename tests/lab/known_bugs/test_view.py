"""A bug's page: each part shows what the search came to, and follows when another bug is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab import paths
from mmulab.kvm.bugs import BUGS
from mmulab.lab.known_bugs.follow import Followed, Search
from mmulab.lab.known_bugs.sequence import FOUND, SAVED, replay
from mmulab.lab.known_bugs.view import BugPage, catalogue, progress_words, saved_part
from mmulab.report.results import TABLE_MIME
from mmulab.scenario.text import parse_scenario

SEARCH = Search("6.1.192", ("paths-32",), 0, 60.0)
PARTS = ("chooser", "effort", "places", "words", "stepper", "sides")


@pytest.fixture(scope="module")
def page() -> BugPage:
    return BugPage(SEARCH, FOUND).search("B17")


def test_every_part_shows_itself(page: BugPage) -> None:
    for name in PARTS:
        part = getattr(page, name)
        bundle = part._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle, name
        assert part.html() == bundle["text/html"]
        assert len(part.html()) > 100, name


def test_what_was_found_is_on_the_page(page: BugPage) -> None:
    assert page.followed is not None
    assert page.followed.trouble is not None
    assert str(page.followed.trouble.finding.name) in page.chooser.html()
    assert "B17: found in paths-32" in page.status.value
    assert page.bug.value == "B17"
    assert page.effort.html().count("<svg") == 2
    assert "paths-32" in page.places.html()
    assert "Without B17: the same outcome, and nothing is wrong." in page.words.html()
    assert "with its fix" in page.sides.html()
    assert "QUADRANT" in page.stepper.html()


def test_what_depends_on_speed_is_no_result(page: BugPage) -> None:
    assert TABLE_MIME not in page.sides._repr_mimebundle_()


def test_a_saved_sequence_is_a_result(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "sequences"
    folder.mkdir(parents=True)
    (folder / "B17.mmu").write_bytes((root / "tests/kvm/bugs/B17.mmu").read_bytes())
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    page = BugPage(SEARCH, SAVED).search("B17")
    assert "data/sequences/B17.mmu" in page.words.html()
    assert page.sides._repr_mimebundle_()[TABLE_MIME]["name"] == "ops"


def test_another_bug_is_chosen_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    page = BugPage(SEARCH._replace(budget=0.5), FOUND).search("B17")
    page.bug.value = "B29"
    page.button.click()
    assert page.status.value.startswith("<p role='status'><b>B29: not found in ")
    assert page.replayed is None
    assert "there is nothing to step through" in page.stepper.widget.children[0].value
    assert "there is nothing to step through" in page.sides.html()
    assert not page.button.disabled


def test_a_turn_in_words(page: BugPage) -> None:
    followed = page.followed
    assert isinstance(followed, Followed)
    assert progress_words(followed) == f"{followed.hunted.states} states, 0 random ops; in paths-32"


def test_saved_sequences_are_a_list_and_a_result(root: Path) -> None:
    text = (root / "tests/kvm/bugs/B13.mmu").read_text("utf-8")
    part = saved_part([replay("B13", "6.1.192", parse_scenario(text), "a witness")])
    bundle = part._repr_mimebundle_()
    assert bundle[TABLE_MIME]["name"] == "sequences"
    assert [row[0] for row in bundle[TABLE_MIME]["rows"]] == ["B13"]
    assert "With B13: reaches host address" in part.html()
    assert 'href="#' in part.html()


def test_the_catalogue_has_every_bug() -> None:
    table = catalogue()
    assert [row[0] for row in table.rows] == list(BUGS)
    switch = {row[0]: row[-1] for row in table.rows}
    assert switch["B13"] == "yes"
    assert switch["B6"].startswith("no: ")
