"""The first page of a sweep and of a report in Chromium with the network off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.report.index import write_index
from mmulab.report.results import Table
from tests.report.folders import Made, make_folder

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
ERROR = {"type": "ValueError", "message": "it is wrong", "cell": 4, "traceback": "Traceback\n" + "x" * 300}
WORDS = "a result of many words, as long as a sentence on such a page may well become one day"


def svg(number: int) -> str:
    """A picture with two colours."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100">'
        '<rect width="200" height="100" fill="#eee"/>'
        f'<rect width="{20 + number}" height="60" fill="#06c"/></svg>'
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Twelve runs: designs by seeds, one of them failed, one not run."""
    runs = []
    for number in range(12):
        rows = [[f"case-{number}-{n}", n] for n in range(30)]
        table = Table("wrong_accesses", ["case", "expected_gpa"], rows)
        runs.append(
            Made(
                f"run-{number:02}",
                [table],
                {"design": f"D{number % 3}", "records": 1000 * (12 - number), "kernel": "6.1.192"},
                seconds=float((number * 7) % 12),
                result=f"{number} of 165 cases wrong, {WORDS}",
                picture=svg(number),
                state={5: "failed", 7: "missing"}.get(number, "done"),
                error=ERROR if number == 5 else None,
                seed=number,
            )
        )
    return write_index(make_folder(tmp_path / "out", *runs, title="All designs"))


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Two notebooks, one failed."""
    runs = [
        Made("one", target="notebooks/one.ipynb", title="The first", result=WORDS, picture=svg(9)),
        Made("two", target="notebooks/two.ipynb", title="The second", state="failed", error=ERROR),
    ]
    return write_index(make_folder(tmp_path / "out", *runs, title="mmulab report"))


def shown(opened: OfflinePage) -> list[str]:
    """The runs that can be seen, in the order in which they stand."""
    cells = opened.page.locator(".runs tbody tr:visible td:first-child")
    return cells.all_inner_texts()


def test_sorts_by_number_and_by_word(offline_page: OpenPage, sweep: Path) -> None:
    opened = offline_page(sweep)
    page = opened.page
    assert len(shown(opened)) == 12
    page.get_by_role("button", name="records").click()
    assert shown(opened)[:2] == ["run-11", "run-10"], "1000 stands before 2000 and 10000"
    page.get_by_role("button", name="records").click()
    assert shown(opened)[:2] == ["run-00", "run-01"]
    assert page.locator("th[aria-sort]").inner_text() == "records"
    page.get_by_role("button", name="seconds").click()
    assert shown(opened)[0] == "run-00"
    assert shown(opened)[-1] == "run-07", "what has no seconds stands last"
    page.get_by_role("button", name="seconds").click()
    assert shown(opened)[-1] == "run-07"
    assert opened.complaints == []


def test_filters_by_words_and_by_column(offline_page: OpenPage, sweep: Path) -> None:
    opened = offline_page(sweep)
    page = opened.page
    page.get_by_label("design").select_option("D2")
    assert shown(opened) == ["run-02", "run-05", "run-08", "run-11"]
    page.get_by_label("state").select_option("failed")
    assert shown(opened) == ["run-05"]
    assert page.locator("output").inner_text() == "1 of 12 runs"
    page.get_by_label("state").select_option("all")
    page.get_by_label("rows with these words").fill("run-11 CASES")
    assert shown(opened) == ["run-11"]
    assert opened.complaints == []


def test_of_many_runs_the_first_are_shown(offline_page: OpenPage, tmp_path: Path) -> None:
    runs = [Made(f"run-{n:04}", parameters={"seed": n, "design": f"D{n % 3}"}) for n in range(450)]
    opened = offline_page(write_index(make_folder(tmp_path / "many", *runs)))
    page = opened.page
    assert page.locator("output").inner_text() == "450 of 450 runs, the first 200 shown"
    assert shown(opened)[-1] == "run-0199"
    page.locator("th button", has_text="seed").click()
    page.locator("th button", has_text="seed").click()
    assert shown(opened)[0] == "run-0449", "what is not shown is sorted too"
    page.get_by_label("rows with these words").fill("run-0007")
    assert shown(opened) == ["run-0007"], "and found"
    assert page.locator("button.more").is_hidden()
    page.get_by_label("rows with these words").fill("")
    page.get_by_role("button", name="show all 450").click()
    assert len(shown(opened)) == 450
    assert page.locator("output").inner_text() == "450 of 450 runs"
    assert opened.complaints == []


def test_reads_without_scripts(offline_page: OpenPage, sweep: Path) -> None:
    opened = offline_page(sweep, scripts=False)
    assert len(shown(opened)) == 12
    assert opened.page.get_by_role("button").count() == 0
    joined = opened.page.locator("details", has_text="wrong_accesses: 330 rows of 11 runs")
    joined.locator("summary").click()
    assert joined.locator("tbody tr").filter(visible=True).count() == 200
    assert opened.complaints == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut(offline_page: OpenPage, sweep: Path, report: Path, width: int) -> None:
    for path in (sweep, report):
        opened = offline_page(path)
        assert opened.cut_tables(width) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_pictures_are_visible(offline_page: OpenPage, sweep: Path) -> None:
    opened = offline_page(sweep, scripts=False)
    seen = opened.pictures("img.picture")
    assert len(seen) == 11
    assert all(picture.visible for picture in seen)


def test_failed_run_leads_to_its_error(offline_page: OpenPage, sweep: Path) -> None:
    opened = offline_page(sweep, scripts=False)
    opened.page.locator(".runs").get_by_role("link", name="failed", exact=True).click()
    assert opened.page.url.endswith("#failed-run-05")
    assert "failed in cell 4: ValueError" in opened.page.locator("main").inner_text()


def test_report_says_results_and_failures(offline_page: OpenPage, report: Path) -> None:
    opened = offline_page(report, scripts=False)
    first, second = opened.page.locator(".order > li").all_inner_texts()
    assert WORDS in first
    assert "failed in cell 4: ValueError" in second
    assert "it is wrong" in second
    (picture,) = opened.pictures("img.picture")
    assert picture.visible
    assert opened.complaints == []
