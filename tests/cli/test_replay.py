"""``mmulab replay``: its lines, its JSON and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.cli.main import run
from tests.workload.streams import PAGE, Guest

if TYPE_CHECKING:
    from tests.conftest import CommandLine

BOOT = Path(__file__).resolve().parents[2] / "data/stream/boot-686-nonpae.npz"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    guest = Guest("32")
    guest.read(0x60000, 0x60000)
    guest.set_entry(0x61000, 0x77000 | PAGE)
    guest.page_fault(0x1234000)
    guest.read(0xA0000, 0xA0000)
    return guest.save(tmp_path)


def test_agreement(command: CommandLine, small: Path) -> None:
    done = command("replay", small)
    lines = done.stdout.splitlines()
    assert (
        lines[0]
        == "small: 1035 of 1035 records, 32 paging, kernel 6.1.192, design D4 passthrough, derivation parity"
    )
    assert lines[-1] == "replay: accesses 3/3 agree, faults 3, shadow pages 5"
    assert "the guest's own page faults 1, not executed" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_mismatch(command: CommandLine) -> None:
    done = command("replay", BOOT, "--limit", "20000", "--derivation", "copied", "--design", "D0")
    assert done.returncode == 1
    assert (
        "record 9657 ('r') gva 0xc1e3d000: recorded gpa 0x1e3d000, reached 0x1c3d000: "
        "the shadow tables lead elsewhere" in done.stdout
    )
    assert "guest walk of c1e3d000:" in done.stdout
    assert "shadow path of c1e3d000:" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("replay: accesses 413/5818 agree, faults ")


def test_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", str(small), "--json", "--limit", "1032"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["stream"], answer["design"], answer["derivation"]) == ("small", "passthrough", "parity")
    assert (answer["records"], answer["accesses"], answer["agree"]) == (1032, 1, 1)
    assert answer["faults"]["read_supervisor"] == 1
    assert answer["mismatch"] is None


def test_json_of_a_mismatch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest = Guest("pae")
    record = guest.read(0x60000, 0x61000)
    path = guest.save(tmp_path)
    assert run(["replay", str(path), "--json"]) == 1
    mismatch = json.loads(capsys.readouterr().out)["mismatch"]
    assert (mismatch["record"], mismatch["kind"]) == (record, "r")
    assert (mismatch["gva"], mismatch["gpa"], mismatch["reached"]) == ("0x60000", "0x61000", "0x60000")
    assert any("guest walk" in line for line in mismatch["state"])


def test_a_failed_load_of_cr3_is_a_mismatch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Although every access agreed."""
    guest = Guest("pae")
    guest.read(0x60000, 0x60000)
    record = guest.control(3, 0x8020)
    guest.new_table(0x8020, 3)
    guest.entry(0x8020, 3, 0x2000 | 7)
    assert run(["replay", str(guest.save(tmp_path))]) == 1
    out = capsys.readouterr().out
    assert f"record {record} ('C')" in out
    assert "reached nothing: it ends in exception 13" in out
    assert "accesses 1/1 agree" in out


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--design", "nope"], "role design 'nope': unknown; the designs are D0 pre_fix"),
        (["--derivation", "nope"], "derivation 'nope': unknown; the derivations are parity, copied"),
        (["--limit", "0"], "0 is not in the range"),
        (["--limit", "many"], "'many' is not a valid integer"),
    ],
)
def test_bad_options(command: CommandLine, small: Path, args: list[str], problem: str) -> None:
    assert problem in command.error("replay", small, *args)


def test_bad_files(command: CommandLine, tmp_path: Path, small: Path) -> None:
    assert "none.npz: no such file" in command.error("replay", tmp_path / "none.npz")
    small.write_bytes(small.read_bytes()[:200])
    assert "small.npz: cut or damaged" in command.error("replay", small)
    small.with_suffix(".json").unlink()
    assert "small.npz: cut or damaged" in command.error("replay", small)
