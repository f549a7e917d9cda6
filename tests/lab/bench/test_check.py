"""The measurement of the checker measures what it says; how fast is no test's business."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from mmulab.cli.main import run
from mmulab.lab.bench import check as bench


def test_each_guest_is_measured_with_each_set_of_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(bench.Fuzzer):
        def __init__(self, plan: bench.Plan, *args: object, **more: object) -> None:
            made.append(plan.guest.name)
            super().__init__(plan, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "Fuzzer", Counted)
    monkeypatch.setattr(bench, "TRIAL_GUESTS", ("shadow-32",))
    monkeypatch.setattr(bench, "SCOPES", ("rights-32",))
    found = bench.bench_check(trials=1, states=5, repeat=2)
    assert made == ["shadow-32"] * 2 * len(bench.IN_TRIALS)
    assert [measure.name for measure in found] == [
        *(f"trials of shadow-32, {name}" for name in bench.IN_TRIALS),
        "scope rights-32",
        "scopes together",
    ]
    assert all(measure.value > 0 for measure in found)
    assert [measure.unit for measure in found[-3:]] == ["ops/s", "states/s", "states/s"]


def test_the_states_of_all_scopes_are_counted_over_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = {"one": (30, 1.0), "other": (10, 3.0)}

    def explored(scope: str, states: int) -> SimpleNamespace:
        many, seconds = searched[scope]
        return SimpleNamespace(states=many, cpu_seconds=seconds)

    monkeypatch.setattr(bench, "TRIAL_GUESTS", ())
    monkeypatch.setattr(bench, "SCOPES", tuple(searched))
    monkeypatch.setattr(bench, "_explored", explored)
    assert [measure.value for measure in bench.bench_check(repeat=1)] == [30.0, 10 / 3, 10.0]


def test_the_median_counts() -> None:
    rates = iter((5.0, 1.0, 3.0))
    assert bench._median(3, lambda: next(rates)) == 3.0


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "TRIAL_GUESTS", ())
    args = ["bench", "--check", "--repeat", "1", "--states", "5"]
    assert run([*args, "--json"]) == 0
    names = [measure["name"] for measure in json.loads(capsys.readouterr().out)["measures"]]
    assert names == [*(f"scope {scope}" for scope in bench.SCOPES), "scopes together"]
    assert run(args) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == names


def test_check_is_a_measurement_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--check", "--step", "1000"]) == 2
    assert "--step and --check are two measurements" in capsys.readouterr().err
