"""The fuzzers' corpus as it is, and that the fuzzers report what they find."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from mmulab.errors import InputError
from tests.fuzz import run, worker
from tests.fuzz.structure import run_text, scenario_texts
from tests.fuzz.targets import CORPUS, TARGETS, seeds, wrong_message

KEPT = [path for path in sorted(CORPUS.glob("*/*")) if path.is_file()]
STUBS = "tests.fuzz.stub_targets"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kept_input(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = []
    try:
        TARGETS[path.parent.name].target(path.read_bytes())
    except InputError as error:
        said = [str(error)]
    assert not [wrong for wrong in map(wrong_message, said) if wrong]


@pytest.mark.parametrize("name", [name for name in TARGETS if not (CORPUS / name).is_dir()])
def test_made_input(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = seeds(name)
    assert made
    for data in made:
        TARGETS[name].target(data)  # what a fuzzer begins with is good, so that it gets beyond the header


def test_every_kept_input_has_a_reader_and_is_small() -> None:
    assert {path.parent.name for path in KEPT} <= set(TARGETS)
    assert all(path.stat().st_size < 4096 for path in KEPT)


@given(scenario_texts())
def test_scenario_by_the_grammar(text: str) -> None:
    run_text(text)


def fuzz_stub(name: str, out: Path, seconds: str = "1.5") -> int:
    """Run the fuzzer of a stub and return its exit code."""
    return run.main(
        ["--table", STUBS, "--reader", name, "--seconds", seconds, "--seed", "1", "--out", str(out)]
    )


def test_nothing_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_stub("refuses", tmp_path) == 0
    name, inputs, _, findings, _ = capsys.readouterr().out.splitlines()[-1].split()
    assert (name, findings) == ("refuses", "0")
    assert int(inputs) > 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "last"),
    [
        ("raises", "RuntimeError", "RuntimeError: a slip"),
        ("babbles", "MessageError", "MessageError: not one short line: 'two\\nlines' (9 characters)"),
    ],
)
def test_finding_is_written_and_told(
    name: str, kind: str, last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz_stub(name, tmp_path) == 1
    written = sorted((tmp_path / name).iterdir())
    data, text = written
    assert data.name.startswith(kind)
    assert text.read_text().splitlines()[1] == last
    assert str(text) in capsys.readouterr().out


def test_finding_is_reduced(tmp_path: Path) -> None:
    assert fuzz_stub("raises", tmp_path) == 1
    data, _ = sorted((tmp_path / "raises").iterdir())
    assert data.read_bytes() == b"bad"


def test_death_is_a_finding_with_its_input(tmp_path: Path) -> None:
    assert fuzz_stub("dies", tmp_path) == 1
    data, text = sorted((tmp_path / "dies").iterdir())
    assert data.read_bytes() == b"first\nbad\nlast"
    assert text.read_text().startswith("died with exit code -6")


def test_too_much_memory_is_a_finding(tmp_path: Path) -> None:
    args = ["--table", STUBS, "--reader", "grows", "--seconds", "1.5", "--memory", "200"]
    assert run.main([*args, "--out", str(tmp_path)]) == 1
    data, text = sorted((tmp_path / "grows").iterdir())
    assert data.read_bytes() == b"first\nbad\nlast"
    assert text.read_text().startswith("memory beyond the limit")


def test_hang_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "INPUT_SECONDS", 0.2)
    table = pytest.importorskip(STUBS)
    # This process is the tests' own, and may hold more than a fuzzer's.
    limit = worker.peak() + (worker.MEMORY_MIB << 20)
    fuzzer = worker.Fuzzer(table.TARGETS["hangs"], InputError, wrong_message, tmp_path / "found", limit)
    fuzzer(b"input")
    data, text = sorted((tmp_path / "found").iterdir())
    assert data.read_bytes() == b"input"
    assert text.read_text().startswith("Hang at ")


def test_unknown_reader(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(["--reader", "none-such"])
    assert left.value.code == 2
    assert "there are scenario, " in capsys.readouterr().err
