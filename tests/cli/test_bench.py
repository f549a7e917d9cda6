"""``mmulab bench``: which measurement an option chooses, and what is refused; no figure is tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.cli.main import run
from tests.workload.streams import Guest


@pytest.fixture
def small(tmp_path: Path) -> Path:
    guest = Guest("32")
    for page in range(0x60, 0x70):
        guest.read(page << 12, page << 12)
    return guest.save(tmp_path)


def test_replay_is_measured_instead_of_the_walk(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "--replay", str(small), "--repeat", "1"]
    assert run([*args, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["stream"] == "small"
    names = ["batch walk of a stream's accesses", "replay of small"]
    assert [rate["name"] for rate in answer["rates"]] == names
    assert answer["rates"][1]["ratio"] == pytest.approx(
        answer["rates"][0]["per_second"] / answer["rates"][1]["per_second"]
    )
    assert run(args) == 0
    assert [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()] == names


def test_limit_reaches_the_replay(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmulab.lab.bench import replay as bench_replay

    replayed = []

    class Counted(bench_replay.Replay):
        def run(self, *args: object) -> object:
            replayed.append(self.records)
            return super().run(*args)

    monkeypatch.setattr(bench_replay, "Replay", Counted)
    assert run(["bench", "--replay", str(small), "--repeat", "2", "--limit", "1030"]) == 0
    assert replayed == [1030, 1030]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--step", "1000", "--replay", "a.npz"), "--step and --replay are two measurements"),
        (("--limit", "5"), "--limit counts records of a stream"),
        (("--replay", "none.npz"), "none.npz: "),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], says: str) -> None:
    assert run(["bench", *args]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"mmulab: {says}")
    assert (said.out, said.err.count("\n")) == ("", 1)
