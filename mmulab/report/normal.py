"""An executed notebook without what differs from one execution to the next.

Left out are times, papermill's own notes (its paths among them), versions, which the
manifest has, and ids of cells. A widget's id, random each time, becomes a digest of
what the widget shows; addresses of objects (``at 0x7f...``) become one. The place of
the checkout, which papermill notes, is taken out of outputs too.

Source: nbformat 4.5; the widget state schema 2.0 of ipywidgets 8
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["normal"]

_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MODEL = re.compile(r"IPY_MODEL_([0-9a-f]{32})")
_ROUNDS = 8
"""How deep widgets are told apart by what they hold."""
_TIMES = ("papermill", "execution")


def normal(notebook: Mapping[str, Any], place: str = "") -> list[str]:
    """Return an executed notebook as parts of text, one a cell and one for its widgets.

    Parameters
    ----------
    notebook : mapping
        As JSON has it.
    place : str
        The notebook's path in its checkout; that and papermill's note say where the checkout was.
    """
    digests = _widgets(notebook["metadata"].get("widgets", {}).get(_STATE, {}).get("state", {}))
    source = notebook["metadata"].get("papermill", {}).get("input_path", "")
    top = source.removesuffix(place) if place and source.endswith(place) else ""
    parts = [_text(_cell(cell, digests), top) for cell in notebook["cells"]]
    return [*parts, _text(sorted(digests.values()), top)]


def _text(value: Any, top: str) -> str:
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False)
    text = _ADDRESS.sub(" at 0x", text)
    return text.replace(top, "") if len(top) > 1 else text


def _cell(cell: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    found = {key: value for key, value in cell.items() if key != "id"}
    found["metadata"] = {key: value for key, value in cell["metadata"].items() if key not in _TIMES}
    found["outputs"] = [_output(output, digests) for output in cell.get("outputs", [])]
    return found


def _output(output: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    found = dict(output)
    if _VIEW in output.get("data", {}):
        view = dict(output["data"][_VIEW])
        view["model_id"] = digests.get(view.get("model_id", ""), "")
        found["data"] = {**output["data"], _VIEW: view}
    return found


def _widgets(state: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest for each widget: of what it holds, and in rounds of what that holds."""
    digests = dict.fromkeys(state, "")
    for _ in range(_ROUNDS):
        digests = {
            name: hashlib.sha256(_named(model, digests).encode()).hexdigest() for name, model in state.items()
        }
    return digests


def _named(model: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    text = _ADDRESS.sub(" at 0x", json.dumps(model, sort_keys=True))
    return _MODEL.sub(lambda match: f"IPY_MODEL_{digests.get(match[1], '')}", text)
