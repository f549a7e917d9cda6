"""Scenarios that the tests of recordings run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.scenario.record import record
from mmulab.scenario.scenario import Scenario
from mmulab.trace.recording import Recording

CONFORMANCE = Path(__file__).parents[2] / "data" / "conformance" / "6.1.192"


def scenario(name: str) -> Scenario:
    """Return the scenario of a recording of a real kernel, ``sh/basic-32`` for example."""
    return read_recording(CONFORMANCE / f"{name}.jsonl.xz").scenario


@pytest.fixture(scope="session")
def unsync() -> Recording:
    """Guest tables written without KVM's knowledge, in 64-bit paging; many checkpoints."""
    return record(scenario("sh/pt-write-unsync-64"), seed=3, options={"kind": "test"}, interval=60)
