"""What an executed notebook shows."""

from __future__ import annotations

from mmulab.report.outputs import shown


def test_shown_yields_one_media_type_in_order() -> None:
    outputs = [{"data": {"a/b": 1, "c/d": 0}}, {"text": "no data"}, {"data": {"a/b": 2}}]
    later = {"outputs": [{"data": {"a/b": 3}}]}
    notebook = {"cells": [{"cell_type": "markdown"}, {"outputs": outputs}, later]}
    assert list(shown(notebook, "a/b")) == [1, 2, 3]
    assert list(shown(notebook, "e/f")) == []
