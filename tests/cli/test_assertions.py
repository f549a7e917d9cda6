"""``mmulab assertions`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.check.assertions import Counts
from mmulab.check.kernel_source import KVM
from mmulab.cli.main import run
from mmulab.kvm.assertions import assertions
from tests.conftest import CommandLine

FOLDER = "data/conformance/6.1.192/nested-ept"
DEATH = "vmx.c:__vmx_handle_exit:run_pending"


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    assert run(["assertions", *args]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_assertion_has_its_line_below_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    file, told = "", []
    for line in lines[:-1]:
        if not line.startswith(" "):
            file = line.split()[0]
        elif not line.startswith("   "):
            name, severity, *numbers = line.split()
            told.append((file, name, severity, [int(n) for n in numbers]))
    shipped = Counts.shipped()
    assert told == [
        (a.file, a.name.partition(":")[2], a.severity, list(shipped.of(a.name)[:2]) if a.modelled else [])
        for a in assertions().values()
    ]


def test_the_last_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = shown(capsys)
    shipped = Counts.shipped()
    modelled = [shipped.of(a.name) for a in assertions().values() if a.modelled]
    assert last == (
        f"assertions: {len(assertions())}, modelled {len(modelled)},"
        f" reached {sum(r.reached > 0 for r in modelled)}, held {sum(r.held > 0 for r in modelled)}"
        f" in {shipped.recordings} recordings of {shipped.ops} ops"
    )


@pytest.mark.parametrize("columns", [60, 80, 110])
def test_lines_fit_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    *lines, _ = shown(capsys)
    names = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert max(len(line) for line in lines if line not in names) <= columns
    room = max(columns, *(len(f"  {a.name.partition(':')[2]} {a.severity}") for a in assertions().values()))
    assert max(map(len, names)) <= room, "a name is whole even where it does not fit"


def test_a_reason_stands_with_what_is_not_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    at = next(i for i, line in enumerate(lines) if "kvm_vcpu_reset:mode " in line)
    assert lines[at + 2].strip() == "not modelled: the model has no INIT"


def test_recordings_are_counted_anew(command: CommandLine, root: Path) -> None:
    found = sorted((root / FOLDER).glob("ept-misconfig-eptp-*.jsonl.xz"))
    assert found
    done = command("assertions", *found, "--jobs", "2", "--json", "--out", "counts.csv")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["recordings"] == len(found)
    rows = {row["name"]: row for row in told["assertions"]}
    assert rows[DEATH]["held"] == rows[DEATH]["recordings"] == len(found)
    assert rows[DEATH]["severity"] == "KVM_BUG_ON"
    assert "reached" not in rows["x86.c:kvm_vcpu_reset:mode"]
    first, _, *written = (command.cwd / "counts.csv").read_text().splitlines()
    assert first == f"# {len(found)} recordings, {told['ops']} ops"
    reached = rows[DEATH]["reached"]
    assert f"{DEATH},{reached},{len(found)},{len(found)}" in written


def test_a_file_that_is_no_recording_is_said_and_the_others_are_counted(
    command: CommandLine, root: Path
) -> None:
    bad = command.cwd / "bad.jsonl"
    bad.write_text("{}\n")
    good = root / "data/conformance/6.1.192/nested-nonpt/nested-nonpt-64-l2-np.jsonl.xz"
    done = command("assertions", bad, good, "--jobs", "1", "--out", "counts.csv")
    assert done.returncode == 2
    assert "bad.jsonl" in done.stderr
    assert " in 1 recordings of " in done.stdout.splitlines()[-1]
    assert not (command.cwd / "counts.csv").exists(), "counts are written whole or not at all"


def sources(folder: Path) -> Path:
    """Write the sources of a kernel whose MMU has one function and one assertion."""
    (folder / KVM / "mmu").mkdir(parents=True)
    (folder / KVM / "mmu/mmu.c").write_text("void mmu_spte_set(void)\n{\n\tWARN_ON_ONCE(1);\n\tBUG();\n}\n")
    return folder


def test_another_kernels_sources_are_compared(command: CommandLine, tmp_path: Path) -> None:
    done = command("assertions", "--source", sources(tmp_path / "linux"))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "+ mmu/mmu.c:mmu_spte_set BUG" in lines
    assert "~ mmu/mmu.c:mmu_spte_set WARN_ON is WARN_ON_ONCE" in lines
    assert "- mmu/mmu.c:pte_list_remove BUG *3" in lines
    gone = len(assertions()) - 1
    assert lines[-1] == f"assertions: {tmp_path / 'linux'}: new 1, gone {gone}, changed 1"
    told = json.loads(command("assertions", "--json", "--source", tmp_path / "linux").stdout)
    assert told["new"] == [{"file": "mmu/mmu.c", "function": "mmu_spte_set", "macro": "BUG", "count": 1}]
    assert told["changed"][0]["now"] == "WARN_ON_ONCE"
    assert sum(row["count"] for row in told["gone"]) == gone


def test_options_that_do_not_go_together_are_refused(command: CommandLine, root: Path) -> None:
    error = command.error("assertions", "--out", "x.csv")
    assert error == "--out writes what is counted; name the recordings"
    error = command.error("assertions", root / FOLDER, "--source", root)
    assert error == "--source compares sources, and counts nothing; leave out PATH and --out"
    assert "no kernel sources" in command.error("assertions", "--source", root)
