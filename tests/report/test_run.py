"""One run into a folder: what lies there when it is done, and when it has failed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.report import run as run_module
from mmulab.report.experiment import Run
from mmulab.report.run import Status, execute_run
from mmulab.report.tables import read_parquet
from mmulab.report.target import Target

MakeNotebook = Callable[..., Path]
SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"


def of_function(name: str, **given: Any) -> Run:
    target = Target("function", f"tests.report.functions:{name}")
    values = target.resolve(given)
    return Run("x", target, values, values.get("seed"), {}, "again")


def of_notebook(path: Path, **given: Any) -> Run:
    target = Target.of_notebook(path)
    values = target.resolve(given)
    return Run(path.stem, target, values, values.get("seed"), {}, "again")


def run_into(path: Path, run: Run, timeout: int = 60) -> tuple[Status, dict[str, Any]]:
    """Run, see that files and return say the same, and return status and manifest."""
    path.mkdir()
    status = execute_run(run, path, timeout=timeout)
    written = json.loads((path / "status.json").read_text())
    assert Status(**written) == status
    return status, json.loads((path / "manifest.json").read_text())


def names(path: Path) -> list[str]:
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())


def test_a_function(tmp_path: Path) -> None:
    status, manifest = run_into(tmp_path / "x", of_function("powers", base=3, seed=5))
    assert (status.state, status.error, status.title) == ("done", None, "Powers of a number")
    assert names(tmp_path / "x") == [
        "manifest.json",
        "results.parquet",
        "status.json",
        "tables/powers.csv",
        "tables/seeds.csv",
    ]
    powers, seeds = read_parquet(tmp_path / "x" / "results.parquet")
    assert powers.rows == ((0, 0, "x"), (1, 1, "x"), (2, 4, "x"))
    assert seeds.rows == ((5,),)
    assert manifest["parameters"] == {"base": 3, "exponent": 2, "label": "x", "seed": 5, "log": ""}
    assert (manifest["kind"], manifest["seed"], manifest["notebook"]) == ("function", 5, None)
    assert manifest["tables"] == ["powers", "seeds"]
    assert manifest["packages"]["pytest"]
    assert manifest["packages_are"] == "imported by the run's process"


def test_a_notebook(tmp_path: Path) -> None:
    status, manifest = run_into(tmp_path / "x", of_notebook(SMALL, shape="cube"))
    assert (status.state, status.error, status.title) == ("done", None, "A small notebook")
    assert {"small.html", "small.ipynb", "results.parquet", "tables/powers.csv"} < set(names(tmp_path / "x"))
    assert manifest["notebook"] == {
        "name": "tests/report/notebooks/small.ipynb",
        "sha256": hashlib.sha256(SMALL.read_bytes()).hexdigest(),
    }
    assert list(manifest["inputs"]) == ["LICENSE"]
    assert "ipykernel" in manifest["packages"]  # of the kernel's process
    assert "papermill" not in manifest["packages"]  # of this one
    text = (tmp_path / "x" / "small.ipynb").read_text()
    assert 'shape = \\"cube\\"' in text
    assert "count = 4" not in text  # the notebook's own value is not put in again


def test_the_manifest_knows_no_place_and_no_host(tmp_path: Path) -> None:
    run_into(tmp_path / "x", of_notebook(SMALL))
    text = (tmp_path / "x" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert str(SMALL.parents[3]) not in text
    assert f'"{os.uname().nodename}"' not in text


FAILS = {
    "raises": ("ZeroDivisionError", "one by nothing"),
    "exits": ("SystemExit", "3"),
    "no table": ("TypeError", "tests.report.functions:troubled returns 5, not a Table or a list of such"),
    "endless": ("TimeoutError", "it took longer than 1 s; give smaller parameters or more time"),
}


@pytest.mark.parametrize("how", FAILS)
def test_a_function_that_fails(how: str, tmp_path: Path) -> None:
    status, manifest = run_into(tmp_path / "x", of_function("troubled", how=how), timeout=1)
    assert status.state == "failed"
    assert status.error is not None
    assert (status.error["type"], status.error["message"]) == FAILS[how]
    assert names(tmp_path / "x") == ["manifest.json", "status.json"]
    assert manifest["tables"] == []


def test_an_interrupt_is_let_out(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute_run(of_function("troubled", how="interrupted"), tmp_path)


def test_a_notebook_that_raises(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    path = make_notebook("n: int = 1", "1 / 0", "n")
    status, _ = run_into(tmp_path / "x", of_notebook(path, n=2))
    assert status.error is not None
    assert (status.error["type"], status.error["message"]) == ("ZeroDivisionError", "division by zero")
    assert "\x1b" not in status.error["traceback"]
    cells = json.loads((tmp_path / "x" / "made.ipynb").read_text())["cells"]
    assert "".join(cells[status.error["cell"]]["source"]) == "1 / 0"
    assert names(tmp_path / "x") == ["made.html", "made.ipynb", "manifest.json", "status.json"]


STOPS = {
    "import os; os._exit(3)": ("DeadKernelError", "made.ipynb: the kernel died: it said nothing"),
    "while True: pass": ("CellTimeoutError", "made.ipynb: a cell took longer than 2 s"),
}


@pytest.mark.parametrize("source", STOPS)
def test_a_kernel_that_stops(source: str, make_notebook: MakeNotebook, tmp_path: Path) -> None:
    status, _ = run_into(tmp_path / "x", of_notebook(make_notebook("n: int = 1", source, "n")), timeout=2)
    assert status.error is not None
    kind, message = STOPS[source]
    assert status.error["type"] == kind
    assert status.error["message"].startswith(message)
    assert status.error["cell"] == 1
    assert "made.ipynb" in names(tmp_path / "x")


def test_an_input_that_differs(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("a")
    run = of_function("powers", base=1)
    run = Run("x", run.target, run.parameters, run.seed, {str(source): "0" * 64}, "")
    status, _ = run_into(tmp_path / "x", run)
    assert status.error is not None
    assert "the input differs" in status.error["message"]
    source.unlink()
    status, _ = run_into(tmp_path / "y", run)
    assert status.error is not None
    assert status.error["message"] == f"{source}: no such file"


def test_a_disk_that_is_full_for_tables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        (tmp_path / "x" / "results.parquet").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, "write_parquet", full)
    status, _ = run_into(tmp_path / "x", of_function("powers", base=1))
    assert status.error is not None
    assert "No space left on device" in status.error["message"]
    assert names(tmp_path / "x") == ["manifest.json", "status.json"]


def test_a_disk_that_is_full_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, "_write_json", full)
    with pytest.raises(InputError, match="cannot be written"):
        execute_run(of_function("powers", base=1), tmp_path)
