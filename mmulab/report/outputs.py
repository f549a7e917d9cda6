"""What an executed notebook shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["shown"]


def shown(notebook: Any, mime: str) -> Iterator[Any]:
    """Yield what the outputs of a notebook have of one media type, in order."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if mime in output.get("data", {}):
                yield output["data"][mime]
