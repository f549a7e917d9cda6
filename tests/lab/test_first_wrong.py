"""Where a scenario goes wrong first, as a moment of its recording."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.lab.first_wrong import first_wrong, record_until
from mmulab.machine import op as ops
from mmulab.paths import data
from mmulab.scenario.text import read_scenario


def test_the_recording_ends_with_the_wrong_op() -> None:
    scenario = read_scenario(data("sequences/B13.mmu"))
    recording, at, finding = first_wrong(scenario, find_kernel("6.1+B13"))
    assert finding is not None
    assert finding.op == len(scenario.steps) - 1
    moment = recording.moment(at)
    assert moment.event is None
    assert recording.op(moment.op) == scenario.steps[finding.op].op


def test_a_right_run_is_recorded_whole() -> None:
    scenario = read_scenario(data("sequences/B13.mmu"))
    recording, at, finding = first_wrong(scenario, LINUX_6_1)
    assert (at, finding) == (0, None)
    assert recording.op(recording.moment(len(recording) - 1).op) == ops.Teardown()


def test_a_run_stops_before_the_op_in_which_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = read_scenario(data("sequences/B13.mmu"))
    from mmulab.lab import first_wrong as module

    real = module.record_judged

    def fails(*args: object, until: int, **kwargs: object) -> object:
        if until > 1:
            raise LookupError(until)
        return real(*args, until=until, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "record_judged", fails)
    _, steps = record_until(scenario, LINUX_6_1, 2)
    assert max(steps) == 1
    with pytest.raises(InputError, match="the MMU fails in the first op"):
        record_until(scenario, LINUX_6_1, 3)
