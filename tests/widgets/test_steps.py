"""Steps: the widget and its script-free form show the same."""

from __future__ import annotations

import re

import pytest

from mmulab.report.page import remote_references
from mmulab.widgets.steps import Step, Steps


@pytest.fixture
def steps() -> Steps:
    return Steps([Step("a & b", "<p>one</p>"), Step("c", "<p>two</p>"), Step("d", "<p>three</p>")], name="n")


def test_buttons_move_and_stop_at_the_ends(steps: Steps) -> None:
    previous, following = steps._previous, steps._next
    assert (steps.at, previous.disabled, following.disabled) == (0, True, False)
    for _ in range(5):
        following.click()
    assert (steps.at, previous.disabled, following.disabled) == (2, False, True)
    assert "<p>three</p>" in steps._body.value
    assert "3 of 3" in steps._title.value
    previous.click()
    assert steps.at == 1
    assert steps._body.value == "<p>two</p>"


def test_position_can_be_set(steps: Steps) -> None:
    steps.at = 2
    assert steps._body.value == "<p>three</p>"
    with pytest.raises(IndexError):
        steps.at = 3


def test_html_has_every_step_and_no_script(steps: Steps) -> None:
    steps.at = 1
    html = steps.html()
    assert remote_references(html) == []
    assert all(text in html for text in ("<p>one</p>", "<p>two</p>", "<p>three</p>", "a &amp; b"))
    assert re.findall(r'id="(\S+)-1" [^>]* checked', html)
    labels = re.findall(r'<label for="\S+-(\d)">(\S+)', html)
    assert labels == [("1", "Next"), ("0", "◀"), ("2", "Next"), ("1", "◀")]


def test_two_on_one_page_do_not_meet(steps: Steps) -> None:
    other = Steps(steps.steps[:2], name="n")
    names = [set(re.findall(r'name="(\w+)"', item.html())) for item in (steps, other)]
    assert not names[0] & names[1]


def test_bundle_has_widget_and_still(steps: Steps) -> None:
    bundle = steps._repr_mimebundle_()
    assert bundle["text/html"] == steps.html()
    assert "application/vnd.jupyter.widget-view+json" in bundle
