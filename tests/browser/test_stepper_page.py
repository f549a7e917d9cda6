"""A recording on a page: it steps with the network off, by buttons, keys, slider and search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab import events as ev
from mmulab.ftrace.wording import event_text
from mmulab.trace.recording import Recording
from mmulab.trace.search import Grain, find, step
from mmulab.widgets.panels import page_text
from mmulab.widgets.session import Session
from mmulab.widgets.stepper_page import write_stepper_page
from mmulab.workload.tour import tour

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]


@pytest.fixture(scope="module")
def recording() -> Recording:
    from mmulab.scenario.record import record

    return record(tour("4-level").scenario)


@pytest.fixture(scope="module")
def path(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "tour.html"
    write_stepper_page(recording, path, title="The tour")
    return path


class Stands:
    """Where an opened page stands, compared with the recording."""

    def __init__(self, opened: OfflinePage, recording: Recording) -> None:
        self.opened = opened
        self.recording = recording

    def on(self, number: int) -> None:
        """Check that the page shows this moment: its event, page, role, gfn and sptes."""
        page, look = self.opened.page, Session(self.recording, at=number).look()
        last = len(self.recording) - 1
        assert page.locator("#place").inner_text().startswith(f"moment {number} of {last}")
        body = page.locator("#body").inner_text()
        design = self.recording.config.kernel.design
        if look.event is not None:
            assert event_text(look.event, self.recording.config.kernel) in body
        assert all(f"{change.new:x}" in body for change in look.changes[:16])
        if look.page is not None:
            shown = look.page.page
            assert f"shadow page in frame {shown.frame:#x}: {page_text(shown, design)}" in body
            assert f"role {shown.role:#x}" in page.locator("#body svg[aria-label^=role]").first.get_attribute(
                "aria-label"
            )


def test_it_steps_with_the_network_off(offline_page: OpenPage, path: Path, recording: Recording) -> None:
    opened = offline_page(path)
    page, stands = opened.page, Stands(opened, recording)
    stands.on(0)
    for number in range(1, 12):
        page.click("#next")
        stands.on(number)
    page.click("#previous")
    stands.on(10)
    page.click("[data-grain=fault]")
    page.click("#next")
    fault = step(recording, 10, Grain.FAULT)
    stands.on(fault)
    page.select_option("#search", "unsync")
    page.click("#find-next")
    (unsync,) = find(recording, "unsync").tolist()
    stands.on(unsync)
    page.select_option("#search", "gfn")
    page.fill("#argument", "22")
    page.click("#find-previous")
    stands.on([n for n in find(recording, "gfn", "22").tolist() if n < unsync][-1])
    page.locator("#slider").fill("40")
    stands.on(40)
    assert opened.complaints == []


def test_keys(offline_page: OpenPage, path: Path, recording: Recording) -> None:
    opened = offline_page(path)
    stands = Stands(opened, recording)
    at = 0
    for key in "nnfoonFpO":
        opened.page.keyboard.press(key)
        grain = {"n": Grain.EVENT, "p": Grain.EVENT}.get(key) or Grain(
            {"f": "fault", "o": "operation"}[key.lower()]
        )
        at = step(recording, at, grain, back=key in "pFO")
        stands.on(at)
    opened.page.select_option("#search", "flush")
    opened.page.locator("body").click(position={"x": 2, "y": 2})
    opened.page.keyboard.press("s")
    arrived = Session(recording, at=int(opened.page.input_value("#slider")))
    assert isinstance(arrived.look().event, ev.kvm_flush_remote_tlbs)
    assert opened.complaints == []


def test_end_says_so(offline_page: OpenPage, path: Path) -> None:
    opened = offline_page(path)
    opened.page.select_option("#search", "unsync")
    opened.page.click("#find-previous")
    assert opened.page.locator("#status").inner_text() == "none before this moment"
    assert opened.page.locator("#previous").is_disabled()


@pytest.mark.parametrize("scripts", [True, False])
def test_page_opens_at_a_moment(
    offline_page: OpenPage, recording: Recording, tmp_path: Path, scripts: bool
) -> None:
    """The picture is that moment's, and with scripts Next goes on from there."""
    unsync = find(recording, "unsync").tolist()[0]
    write_stepper_page(recording, tmp_path / "at.html", first=unsync - 2, last=unsync + 2, at=unsync)
    opened = offline_page(tmp_path / "at.html", scripts=scripts)
    event = Session(recording, at=unsync).look().event
    assert event is not None
    assert event_text(event, recording.config.kernel) in opened.page.locator("#body").inner_text()
    if scripts:
        stands = Stands(opened, recording)
        stands.on(unsync)
        opened.page.click("#next")
        stands.on(unsync + 1)
        for _ in range(3):
            opened.page.click("#previous")
        stands.on(unsync - 2)
    assert opened.complaints == []


def test_first_step_is_a_still_picture(offline_page: OpenPage, path: Path) -> None:
    opened = offline_page(path, scripts=False)
    assert "the VMM sets the registers of vCPU 0" in opened.page.locator("#body").inner_text()
    assert not opened.page.locator("#controls").is_visible()
    assert opened.page.get_by_text("the others need scripts").is_visible()


def test_arrow_keys_step_and_do_not_steal_typing(
    offline_page: OpenPage, path: Path, recording: Recording
) -> None:
    opened = offline_page(path)
    page, stands = opened.page, Stands(opened, recording)
    last = len(recording) - 1
    for key, number in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("Home", 0)]:
        page.keyboard.press(key)
        stands.on(number)
    page.click("[data-grain=fault]")
    page.keyboard.press("ArrowRight")
    fault = step(recording, 0, Grain.FAULT)
    stands.on(fault)
    page.keyboard.press("/")
    page.keyboard.type("anything")
    page.keyboard.press("Tab")
    page.keyboard.type("22n")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    assert page.input_value("#argument") == "22"
    stands.on(fault)
    page.keyboard.press("Enter")
    about = [n for n in find(recording, "gfn", "22").tolist() if n > fault]
    stands.on(about[0])
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    stands.on(about[0] - 1)
    page.keyboard.press("Home")
    page.keyboard.press("w")
    wrong = find(recording, "wrong").tolist()
    stands.on(wrong[0])
    page.keyboard.press("End")
    page.keyboard.press("W")
    stands.on(wrong[-1])
    assert opened.complaints == []


def test_timeline_goes_where_it_is_clicked_and_dragged(
    offline_page: OpenPage, path: Path, recording: Recording
) -> None:
    opened = offline_page(path)
    page, stands = opened.page, Stands(opened, recording)
    box = page.locator("#picture").bounding_box()
    assert box is not None

    def point(number: int) -> tuple[float, float]:
        return box["x"] + box["width"] * (number + 0.5) / len(recording), box["y"] + box["height"] / 2

    page.mouse.click(*point(40))
    stands.on(40)
    page.keyboard.press("ArrowRight")
    stands.on(41)
    page.mouse.move(*point(10))
    page.mouse.down()
    stands.on(10)
    page.mouse.move(*point(25))
    stands.on(25)
    page.mouse.up()
    page.mouse.move(*point(60))
    stands.on(25)
    line = page.locator("#density").bounding_box()
    assert line is not None
    assert line["x"] + line["width"] / 2 == pytest.approx(point(25)[0], abs=1)
    assert opened.complaints == []


def test_page_of_a_part_says_where_it_lies_in_the_run(
    offline_page: OpenPage, recording: Recording, tmp_path: Path
) -> None:
    write_stepper_page(recording, tmp_path / "part.html", first=20, last=40, at=30)
    opened = offline_page(tmp_path / "part.html")
    place = opened.page.locator("#place")
    assert place.inner_text().startswith(f"moment 30 of {len(recording) - 1} (this page: 20 to 40): ")
    opened.page.keyboard.press("End")
    assert place.inner_text().startswith(f"moment 40 of {len(recording) - 1} (this page: 20 to 40): ")


def test_what_the_search_finds_is_marked_on_the_timeline(
    offline_page: OpenPage, path: Path, recording: Recording
) -> None:
    page = offline_page(path).page
    page.select_option("#search", "flush")
    marks = page.locator("#marks i").evaluate_all("nodes => nodes.map(node => parseFloat(node.style.left))")
    found = find(recording, "flush").tolist()
    assert marks == pytest.approx([100 * (n + 0.5) / len(recording) for n in found], abs=0.01)


_LAYOUT = """() => {
  const slider = document.getElementById("slider"), page = document.documentElement, seen = [];
  for (let number = 0; number <= Number(slider.max); number += 1) {
    slider.value = number;
    slider.dispatchEvent(new Event("input"));
    const drawn = (one) => one.clientWidth && !one.closest("svg");
    const boxes = [...document.querySelectorAll("body *")].filter(drawn);
    const scrolled = boxes.filter((one) => getComputedStyle(one).display !== "inline"
      && (one.scrollHeight > one.clientHeight + 1 || one.scrollWidth > one.clientWidth + 1));
    const sections = [...document.querySelectorAll("#body section")];
    const empty = sections.filter((one) => !one.querySelector("p, table, svg"));
    seen.push([page.scrollWidth, page.scrollHeight, scrolled.length, empty.length]);
  }
  return seen;
}"""


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (400, 900)])
def test_layout_of_every_moment(offline_page: OpenPage, path: Path, width: int, height: int) -> None:
    """Nothing is cut off or scrolls inside the page, and a wide window shows all of it."""
    page = offline_page(path).page
    page.set_viewport_size({"width": width, "height": height})
    seen = page.evaluate(_LAYOUT)
    assert len(seen) > 50
    assert [number for number, (across, *_) in enumerate(seen) if across > width] == []
    assert [number for number, (*_, scrolled, empty) in enumerate(seen) if scrolled or empty] == []
    if width == 1280:
        assert [number for number, (_, down, *_) in enumerate(seen) if down > height] == []
