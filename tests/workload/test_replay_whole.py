"""Whole boots, each in a process of its own, within the memory that a replay may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "data" / "stream"
GIB_IN_KIB = 1 << 20
ACCESSES = {"boot-686-nonpae": 2_886_345, "boot-amd64-4l": 3_896_989}
DEVICES = {"boot-686-nonpae": 766, "boot-amd64-4l": 731}
SCRIPT = """
import json, sys
from mmulab.workload.replay import Replay
from mmulab.workload.stream import load_stream
result = Replay(load_stream(sys.argv[1])).run()
# The process's own: ru_maxrss begins with the peak of whoever started it.
with open("/proc/self/status") as status:
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1])
print(json.dumps({"peak": peak, **result._asdict()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCESSES)
def test_a_whole_boot_agrees(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(DATA / f"{name}.npz")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["mismatch"] is None
    assert result["agree"] == result["accesses"] == ACCESSES[name]
    assert result["stats"]["mmio_exits"] == DEVICES[name]
    assert result["stats"]["pf_guest"] == 0
    assert sum(result["faults"].values()) == result["stats"]["pf_taken"]
    assert min(result["faults"][f"{access}_user"] for access in ("read", "write", "fetch")) > 0
    assert result["peak"] < GIB_IN_KIB
