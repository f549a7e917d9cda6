"""Scenarios written as text in a test."""

from __future__ import annotations

from mmulab.scenario.runner import Result, run
from mmulab.scenario.text import parse_scenario


def ran(text: str) -> list[Result]:
    """Run the header and ops in `text`; return what each op did, without init and teardown."""
    return run(parse_scenario(f"mmulab-scenario 1\n{text}\nend\n"))[1:-1]
