"""``mmulab sweep`` as a user runs it: exit codes, going on, repeating, refusals, trouble."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "tests/report/notebooks/small.ipynb"
POWERS = "name: t\nfunction: tests.report.functions:powers\n"
TROUBLED = "name: t\nfunction: tests.report.functions:troubled\n"
PAGE = "out/sweeps/t/index.html"


def write(command: CommandLine, text: str) -> None:
    (command.cwd / "t.yaml").write_text(text)


def results(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/results.parquet")}


def test_runs_goes_on_and_says_what_it_would_do(command: CommandLine) -> None:
    write(command, POWERS + "grid: {base: [1, 2]}\n")
    assert command("sweep", "t.yaml", "--dry-run").stdout == "base=1: missing\nbase=2: missing\n"
    done = command("sweep", "t.yaml", "--only", "base=2")
    assert (done.returncode, done.stdout) == (0, f"t: 1 of 1 runs done, 0 failed\n{PAGE}\n")
    assert command("sweep", "t.yaml", "--dry-run").stdout == "base=1: missing\nbase=2: done\n"
    done = command("sweep", "t.yaml")
    assert (done.returncode, done.stdout) == (0, f"t: 1 of 2 runs done, 0 failed, 1 as before\n{PAGE}\n")
    assert "no such run; there are base=1, base=2" in command.error("sweep", "t.yaml", "--only", "base=3")


def test_manifests_do_not_depend_on_what_a_worker_did_before(command: CommandLine) -> None:
    """Arrow imports pandas when it first makes an array."""
    write(command, POWERS + "grid: {base: [1, 2]}\n")
    program = "from mmulab.cli.main import main; main()"
    args = [sys.executable, "-c", program, "sweep", "t.yaml", "--jobs", "1"]
    subprocess.run(args, cwd=command.cwd, capture_output=True, check=True)
    paths = [command.cwd / f"out/sweeps/t/base={base}/manifest.json" for base in (1, 2)]
    first, second = (json.loads(path.read_text())["packages"] for path in paths)
    assert first == second


def test_only_takes_ids_with_commas_and_several_with_commas(command: CommandLine) -> None:
    write(command, POWERS + "grid: {base: [1, 2], exponent: [1, 2]}\n")
    lines = command("sweep", "t.yaml", "--dry-run", "--only", "base=1,exponent=2").stdout
    assert lines == "base=1,exponent=2: missing\n"
    write(command, POWERS + "grid: {base: [1, 2, 3]}\n")
    lines = command("sweep", "t.yaml", "--dry-run", "--only", "base=1,base=3").stdout
    assert lines == "base=1: missing\nbase=3: missing\n"


def test_a_failed_run_is_named_and_the_others_finish(command: CommandLine) -> None:
    write(command, TROUBLED + "grid: {how: [raises, well]}\n")
    done = command("sweep", "t.yaml", "--jobs", "1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "how=raises: failed: ZeroDivisionError: one by nothing",
        "t: 1 of 2 runs done, 1 failed",
        PAGE,
    ]
    assert list(results(command.cwd / "out/sweeps/t")) == ["how=well"]


def test_each_trouble_is_named_and_the_others_finish(command: CommandLine) -> None:
    """Where a notebook raises, papermill puts two cells in that say so: of the executed one it is cell 3."""
    sources = {"raises": "1 / 0", "dies": "import os; os._exit(3)", "well": "n"}
    for name, source in sources.items():
        cells = [
            nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(source),
        ]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        made = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(made, command.cwd / f"{name}.ipynb")
    parts = "".join(f"  - {{name: {name}, notebook: ./{name}.ipynb}}\n" for name in sources)
    function = "tests.report.functions:troubled"
    own = f"  - {{name: own, function: '{function}', grid: {{how: [process, killed, fine]}}}}\n"
    write(command, f"name: t\nparts:\n{parts}{own}")
    done = command.process("sweep", "t.yaml", "--jobs", "2")
    assert (done.returncode, done.stderr) == (1, "")
    *failed, summary, page = done.stdout.splitlines()
    assert sorted(failed) == [
        "dies: failed in cell 1: DeadKernelError: dies.ipynb: the kernel died: it said nothing",
        "own,how=killed: failed: WorkerError: a worker died: killed by signal 9 (SIGKILL); "
        "if memory ran out, run it again with fewer --jobs",
        "own,how=process: failed: WorkerError: a worker died: it left with exit code 9",
        "raises: failed in cell 3: ZeroDivisionError: division by zero",
    ]
    assert (summary, page) == ("t: 2 of 6 runs done, 4 failed", PAGE)
    assert set(results(command.cwd / "out/sweeps/t")) == {"own,how=fine", "well"}


def test_bad_input_is_one_line_and_leaves_nothing(command: CommandLine) -> None:
    write(command, POWERS + "grid: {bass: [1]}\n")
    assert "t.yaml: line 3: grid.bass: unknown parameter 'bass'" in command.error("sweep", "t.yaml")
    write(command, POWERS + "parameters: {base: 1}\ninputs: [{path: none, sha256: " + "a" * 64 + "}]\n")
    assert "t.yaml: line 4: inputs.0.path: 'none': no such" in command.error("sweep", "t.yaml")
    write(command, POWERS + "parameters: {base: 1}\ninputs: [{path: t.yaml, sha256: " + "a" * 64 + "}]\n")
    assert "t.yaml: line 4: inputs.0.sha256: its SHA-256 is " in command.error("sweep", "t.yaml")
    assert "none.yaml: no such file" in command.error("sweep", "none.yaml")
    assert "not the folder of a sweep" in command.error("sweep", "--verify", "none")
    assert "--verify takes a folder" in command.error("sweep", "--verify", "none", "--dry-run")
    assert os.listdir(command.cwd) == ["t.yaml"]


def test_a_sweep_is_repeated_under_another_hash_seed_zone_and_language(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        command,
        f"""name: t
parts:
  - {{name: page, notebook: {SMALL}, grid: {{shape: [cube]}}}}
  - {{name: tables, function: "tests.report.functions:powers", grid: {{base: [1, 2, 3]}}}}
""",
    )
    for name, value in (("PYTHONHASHSEED", "1"), ("TZ", "UTC"), ("LANG", "C.UTF-8")):
        monkeypatch.setenv(name, value)
    assert command("sweep", "t.yaml").returncode == 0
    for name, value in (("PYTHONHASHSEED", "77"), ("TZ", "Asia/Kathmandu"), ("LANG", "tr_TR.UTF-8")):
        monkeypatch.setenv(name, value)
    done = command("sweep", "--verify", "out/sweeps/t")
    assert (done.returncode, done.stdout) == (0, "verify: 4 of 4 runs equal\n")
    table = command.cwd / "out/sweeps/t/tables,base=2/results.parquet"
    table.write_bytes(table.read_bytes() + b"x")
    done = command("sweep", "--verify", "out/sweeps/t")
    said = "tables,base=2: results.parquet differs in its types\nverify: 3 of 4 runs equal\n"
    assert (done.returncode, done.stdout) == (1, said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_stopped_half_way_it_goes_on_with_what_is_missing(
    number: signal.Signals, command: CommandLine
) -> None:
    count = 1500
    grid = f"grid: {{base: [3], exponent: {list(range(count))}}}\n"
    write(command, POWERS + "parameters: {log: log}\n" + grid)
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mmulab.cli.main import main; main()"
    )
    args = [sys.executable, "-c", program, "sweep", "t.yaml", "--jobs", "2"]
    pipe = subprocess.PIPE
    log = command.cwd / "log"
    with subprocess.Popen(args, cwd=command.cwd, stdout=pipe, stderr=pipe, text=True) as process:
        while not log.exists() and process.poll() is None:
            os.sched_yield()
        process.send_signal(number)
        said, complained = process.communicate()
    out = command.cwd / "out/sweeps/t"
    before = results(out)
    assert len(before) < count
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert f"of {count} runs ended; the same command goes on" in said
        assert complained.count("\n") == 1
        hidden = [name for name in os.listdir(out) if name.startswith(".") and name != ".mmulab"]
        assert hidden == []
    else:
        wait_until_free(out)
    before = results(out)
    log.unlink()
    assert command("sweep", "t.yaml").returncode == 0
    assert len(log.read_text().splitlines()) == count - len(before)
    after = results(out)
    assert len(after) == count
    assert before.items() <= after.items()


def wait_until_free(out: Path) -> None:
    """Wait until no worker of a killed sweep has its folder: it sees at once that its parent is gone."""
    import fcntl

    with (out / ".mmulab").open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)


def test_a_full_disk_fails_what_needs_it_and_no_other(command: CommandLine) -> None:
    """A file may have 20 kB: the tables of one run are larger."""
    text = "name: t\nfunction: tests.report.functions:large\ngrid: {rows: [10, 100000, 20]}\n"
    write(command, text)
    command.prepare = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    done = command("sweep", "t.yaml", "--jobs", "1")
    assert done.returncode == 1, done
    assert done.stdout.startswith("rows=100000: failed: ")
    assert "File too large" in done.stdout
    assert set(results(command.cwd / "out/sweeps/t")) == {"rows=10", "rows=20"}
    command.prepare = None
    assert command("sweep", "t.yaml").returncode == 0
    assert len(results(command.cwd / "out/sweeps/t")) == 3


def test_a_disk_with_no_room_for_anything_is_one_line(command: CommandLine) -> None:
    write(command, POWERS + "grid: {base: [1]}\n")
    command.prepare = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
    said = command.error("sweep", "t.yaml")
    assert "sweep.json: cannot be written (File too large); raise the limit on a file's size" in said


def test_a_finished_sweep_imports_nothing_of_notebooks(command: CommandLine) -> None:
    write(command, f"name: t\nnotebook: {SMALL}\n")
    assert command("sweep", "t.yaml").returncode == 0
    program = """
import sys
from mmulab.cli.main import run
assert run(["sweep", "t.yaml"]) == 0
print(sorted({"papermill", "nbclient", "nbconvert", "pyarrow", "pandas", "lark"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=command.cwd, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_first_page_follows_its_runs(command: CommandLine) -> None:
    """It is written again if a run, or the sweep's title, is newer than it, and else stays."""
    write(command, POWERS + "grid: {base: [1, 2]}\n")
    page = command.cwd / PAGE
    command("sweep", "t.yaml")
    page.write_text("as it was")
    command("sweep", "t.yaml")
    assert page.read_text() == "as it was"
    write(command, "title: Another\n" + POWERS + "grid: {base: [1, 2]}\n")
    command("sweep", "t.yaml")
    assert "<h1>Another</h1>" in page.read_text()
    page.write_text("as it was")
    (page.parent / "base=2" / "status.json").unlink()
    command("sweep", "t.yaml")
    assert "<h1>Another</h1>" in page.read_text()


def test_a_report_is_a_sweep(command: CommandLine) -> None:
    done = command("report", "--notebook", "first_fault", "--out", "out")
    assert done.returncode == 0
    first, second, third = done.stdout.splitlines()
    assert first.startswith("first_fault: done in ")
    assert (second, third) == ("report: 1 of 1 runs done, 0 failed", "out/index.html")
    assert {"first_fault.html", "first_fault.ipynb", "manifest.json", "results.parquet"} <= set(
        os.listdir(command.cwd / "out/first_fault")
    )
    manifest = json.loads((command.cwd / "out/first_fault/manifest.json").read_text())
    assert manifest["repeat"].startswith("mmulab report --notebook first_fault -p kernel 6.1.192 ")
    done = command("report", "--notebook", "first_fault", "--out", "out")
    assert done.stdout.splitlines() == ["report: 0 of 1 runs done, 0 failed, 1 as before", "out/index.html"]
    assert "'nonsense': unknown" in command.error("report", "--notebook", "nonsense")
