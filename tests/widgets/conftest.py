"""A recording for the tests of the stepper."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording

UNSYNC = Path(__file__).parents[2] / "data" / "conformance" / "6.1.192" / "sh" / "pt-write-unsync-64.jsonl.xz"


@pytest.fixture(scope="session")
def unsync() -> Recording:
    """Guest tables written without KVM's knowledge, in 64-bit paging."""
    return record(read_recording(UNSYNC).scenario)
