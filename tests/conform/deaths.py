"""A recording that ends as if the kernel had not survived an op."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["BUG: kernel NULL pointer dereference, address: 0000000000000008", "CPU: 0 PID: 1 Comm: init"]


def cut_short(lines: list[str], number: int, words: list[str] = WORDS) -> list[str]:
    """Return a recording's lines up to the op in line `number` + 1, whose trace ends after one event."""
    record = json.loads(lines[number])
    record |= {"out": {"out": "host_died", "words": words}, "ev": record["ev"][:1]}
    record.pop("stats", None)
    return [*lines[:number], json.dumps(record), json.dumps({"end": 1, "stats_total": {}})]


def write(path: Path, lines: list[str]) -> Path:
    """Write a plain recording."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
