"""Executed notebooks without what differs by chance: what becomes one, and what stays apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest

from mmulab.report.normal import normal

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PLACE = "notebooks/made.ipynb"


def executed(box: str, inner: str, text: str = "4", top: str = "/one/") -> dict[str, Any]:
    """Return a notebook that shows a text and a box with a widget in it, whose ids are given."""
    code = {
        "cell_type": "code",
        "id": "c1",
        "metadata": {"papermill": {"duration": 0.5}, "execution": {"x": 1}, "tags": ["parameters"]},
        "source": "n = 4",
        "outputs": [
            {"output_type": "stream", "name": "stdout", "text": f"{top}data: <object at 0x7f{box[:6]}>"},
            {"output_type": "display_data", "data": {VIEW: {"model_id": box}}, "metadata": {}},
        ],
    }
    state = {
        box: {"model_name": "VBox", "state": {"children": [f"IPY_MODEL_{inner}"]}},
        inner: {"model_name": "Label", "state": {"value": text}},
    }
    words = {"cell_type": "markdown", "id": "c0", "metadata": {}, "source": "# Title"}
    metadata = {"widgets": {STATE: {"state": state}}, "papermill": {"input_path": top + PLACE}}
    return {"cells": [words, code], "metadata": metadata}


ONE, OTHER = executed("a" * 32, "b" * 32), executed("d" * 32, "c" * 32, top="/an/other/")


def test_a_part_a_cell_and_one_for_the_widgets() -> None:
    assert len(normal(ONE, PLACE)) == 3


def test_ids_times_addresses_and_the_checkouts_place_do_not_count() -> None:
    again = deepcopy(OTHER)
    again["cells"][1]["id"] = "another"
    again["cells"][1]["metadata"]["papermill"]["duration"] = 9.0
    assert normal(again, PLACE) == normal(ONE, PLACE)
    assert normal(again) != normal(ONE)  # without the notebook's name the place is not known


def changed(change: Callable[[dict[str, Any]], object]) -> Mapping[str, Any]:
    notebook = deepcopy(ONE)
    change(notebook)
    return notebook


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], set[int]]] = {
    "source": (lambda made: made["cells"][0].update(source="# Other"), {0}),
    "tags": (lambda made: made["cells"][1]["metadata"].update(tags=[]), {1}),
    "text": (lambda made: made["cells"][1]["outputs"][0].update(text="5"), {1}),
    "no output": (lambda made: made["cells"][1]["outputs"].clear(), {1}),
    # What a widget within the shown one holds tells in both: where it is shown, and among the widgets.
    "inner widget": (
        lambda made: made["metadata"]["widgets"][STATE]["state"]["b" * 32]["state"].update(value="5"),
        {1, 2},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_reader_would_see_counts(name: str) -> None:
    change, parts = CHANGES[name]
    pairs = zip(normal(ONE, PLACE), normal(changed(change), PLACE), strict=True)
    assert {number for number, (one, other) in enumerate(pairs) if one != other} == parts
