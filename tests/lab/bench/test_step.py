"""The measurement of recordings measures what it says; how fast is no test's business."""

from __future__ import annotations

import json

from mmulab.lab.bench.step import bench_step
from tests.conftest import CommandLine


def test_measures() -> None:
    found = {measure.name: measure for measure in bench_step(events=3000, visits=3)}
    assert 3000 <= found["events recorded"].value < 6000
    assert all(measure.value > 0 for measure in found.values())
    assert {measure.unit for measure in found.values()} == {"events", "x", "MB", "s", "ms"}


def test_command(command: CommandLine) -> None:
    done = command("bench", "--step", "1000", "--json")
    assert done.returncode == 0, done.stderr
    names = [measure["name"] for measure in json.loads(done.stdout)["measures"]]
    assert "state at an event, median" in names
    lines = command("bench", "--step", "1000").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == names
