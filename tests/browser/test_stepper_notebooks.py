"""The stepper's notebooks: as exported pages with no script, and in a real JupyterLab."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab import events as ev
from mmulab.ftrace.wording import event_text
from mmulab.scenario.record import record
from mmulab.trace.look import Look
from mmulab.trace.recording import Recording
from mmulab.trace.search import find
from mmulab.widgets.session import Session
from mmulab.widgets.story import telling_moment
from mmulab.workload.tour import tour
from tests.browser.lab import PATIENCE, jupyterlab, run_all
from tests.reported import Reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("name", ["first_fault", "step_a_fault"])
@pytest.mark.parametrize("scripts", [True, False])
def test_every_picture_is_visible(
    offline_page: OpenPage, reported: Reports, name: str, scripts: bool
) -> None:
    opened = offline_page(reported(name).page, scripts=scripts)
    seen = opened.pictures("main .figure svg")
    assert len(seen) >= 4
    assert [picture.title for picture in seen if not picture.visible] == []
    assert opened.complaints == []


@pytest.mark.parametrize("name", ["first_fault", "step_a_fault"])
def test_steps_need_no_script(offline_page: OpenPage, reported: Reports, name: str) -> None:
    page = offline_page(reported(name).page, scripts=False).page
    steps = page.locator(".steps > section").filter(visible=True)
    count = page.locator(".steps > section").count()
    seen = [steps.first.inner_text()]
    for _ in range(count - 1):
        page.locator(".steps label", has_text="Next").filter(visible=True).first.click()
        seen.append(steps.first.inner_text())
    assert len(set(seen)) == count > 5
    assert [text.splitlines()[-1] for text in seen]
    page.locator(".steps label", has_text="Previous").filter(visible=True).first.click()
    assert steps.first.inner_text() == seen[-2]


def test_first_fault_shows_quadrants(offline_page: OpenPage, reported: Reports) -> None:
    page = offline_page(reported("first_fault").page, scripts=False).page
    text = page.locator(".steps").evaluate("node => node.textContent")
    assert [f"l2 4-byte q{quadrant}" in text for quadrant in range(4)] == [True] * 4
    assert "l1 4-byte q0" in text
    assert "wrong accesses: 0" in page.locator("main").inner_text()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page as high as the notebook, which JupyterLab otherwise draws only in part."""
    context = chromium.new_context(viewport={"width": 1400, "height": 7000})
    yield context.new_page()
    context.close()


class Stepping:
    """The stepper on a page of JupyterLab, compared with a recording of the same run."""

    def __init__(self, page: Page, recording: Recording) -> None:
        self.recording = recording
        # The stepper is the only output with a search.
        self.box = page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Find ▶"))

    def press(self, name: str) -> None:
        self.box.get_by_role("button", name=name, exact=True).click()

    def on(self, number: int) -> Look:
        """Wait until the moment is shown, and check its gfn, role and sptes."""
        look = Session(self.recording, at=number).look()
        where = "the end of the op" if look.moment.event is None else f"event {look.moment.event}"
        title = f"{look.op_name}, {where}"
        self.box.locator("h4", has_text=re.compile(f"^{title}$")).wait_for(timeout=PATIENCE)
        text = self.box.inner_text()
        if look.event is not None:
            assert event_text(look.event, self.recording.config.kernel) in text
        assert all(f"{change.old:x}" in text and f"{change.new:x}" in text for change in look.changes[:16])
        if look.page is not None:
            role = self.box.locator("svg[aria-label^=role]").first.get_attribute("aria-label") or ""
            assert role.startswith(f"role {look.page.page.role:#x}")
            assert f"shadow page in frame {look.page.page.frame:#x}: gfn {look.page.page.gfn:#x}" in text
        return look


@pytest.mark.slow
def test_clicks_in_jupyterlab_show_what_the_recording_has(page: Page, tmp_path: Path) -> None:
    recording = record(tour("4-level").scenario)
    with jupyterlab(NOTEBOOKS / "step_a_fault.ipynb", tmp_path) as server:
        remote = run_all(page, server, last=" out of sync (")
        stepping = Stepping(page, recording)
        at = telling_moment(recording, [1])
        stepping.on(at)
        for _ in range(3):
            at += 1
            stepping.press("Next ▶")
            stepping.on(at)
        stepping.press("◀ Previous")
        stepping.on(at - 1)

        stepping.press("Find ▶")
        (unsync,) = find(recording, "unsync").tolist()
        assert isinstance(stepping.on(unsync).event, ev.kvm_mmu_unsync_page)
        stepping.press("Next ▶")
        changed = stepping.on(unsync + 1)
        assert isinstance(changed.event, ev.kvm_mmu_set_spte)
        assert stepping.box.get_by_text("out-of-sync children").is_visible()

        handle = stepping.box.get_by_role("slider").first
        handle.focus()
        handle.press("ArrowRight")
        stepping.on(unsync + 2)
        handle.press("Home")
        stepping.on(0)
        timeline = stepping.box.locator("svg[aria-label^=moment]").bounding_box()
        assert timeline is not None
        for number in (unsync, len(recording) - 1, 3):
            share = (number + 0.5) / len(recording)
            page.mouse.click(timeline["x"] + timeline["width"] * share, timeline["y"] + 20)
            stepping.on(number)
        assert remote == []


def test_page_beside_a_report_can_do_what_the_text_says(offline_page: OpenPage, reported: Reports) -> None:
    """Follow the instructions under "Now you", behind the link."""
    opened = offline_page(reported("step_a_fault").page, scripts=False)
    target = opened.page.get_by_role("link", name="Step through every moment of this run").get_attribute(
        "href"
    )
    assert target
    page = offline_page(reported("step_a_fault").folder / target).page
    text = page.locator("#body")
    first = text.inner_text()
    page.get_by_role("button", name="Next ▶").click()
    assert text.inner_text() != first
    page.get_by_role("button", name="fault").click()
    page.get_by_role("button", name="Next ▶").click()
    assert "kvm_page_fault" in text.inner_text()
    page.get_by_role("button", name="event").click()
    page.get_by_role("combobox").select_option(label="a page goes out of sync")
    page.get_by_role("button", name="Find ▶").click()
    assert "kvm_mmu_unsync_page" in text.inner_text()
    page.get_by_role("button", name="Next ▶").click()
    assert "out-of-sync children" in text.inner_text()
    page.get_by_role("combobox").select_option(label="a wrong access")
    page.get_by_role("button", name="Find ▶").click()
    assert "It has ended: reaches" in text.inner_text()
    page.get_by_role("combobox").blur()
    page.keyboard.press("End")
    end = text.inner_text()
    page.get_by_role("button", name="◀ Previous").click()
    assert text.inner_text() != end


@pytest.mark.slow
def test_a_choice_in_jupyterlab_counts_when_all_is_run_again(page: Page, tmp_path: Path) -> None:
    with jupyterlab(NOTEBOOKS / "first_fault.ipynb", tmp_path) as server:
        run_all(page, server, last="reads wrong with quadrants by parity")
        lists = page.locator(".jp-OutputArea-output", has_text="A choice counts when")
        lists.get_by_label("derivation").select_option(label="copied")
        lists = page.locator(".jp-OutputArea-output", has_text="derivation is copied in place of parity")
        lists.wait_for(timeout=PATIENCE)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator("[data-command='runmenu:run-all']").click()
        result = page.locator(".jp-OutputArea-output", has_text="1 of 4 reads wrong with quadrants by copied")
        result.wait_for(timeout=PATIENCE)
        folded = page.locator(".jp-CodeCell .jp-Placeholder")
        hidden = folded.count()
        assert hidden >= 4
        folded.first.click()
        page.locator(".jp-CodeCell .jp-InputArea-editor", has_text="role_design(),").first.wait_for()
        assert folded.count() == hidden - 1
