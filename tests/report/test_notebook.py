"""Running notebooks: parameters arrive, failures keep their kind, time is limited."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest
from papermill import PapermillExecutionError

from mmulab.errors import InputError
from mmulab.report.notebook import execute

MakeNotebook = Callable[..., Path]


def test_given_parameters_arrive(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    path = make_notebook("count: int = 1\nname = 'a'", "print(count, name)")
    executed = execute(path, tmp_path / "out.ipynb", {"count": "0x20"})
    assert executed.cells[-1].outputs[0].text == "32 a\n"
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text == "32 a\n"


def test_unknown_parameter_starts_no_kernel(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown parameter 'bad'"):
        execute(make_notebook("count: int = 1"), tmp_path / "out.ipynb", {"bad": 1})
    assert not (tmp_path / "out.ipynb").exists()


def test_input_error_inside_stays_one(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    cell = "from mmulab.report.parameters import check, integer\ncheck(globals(), count=integer(high=3))"
    with pytest.raises(InputError, match=r"^made.ipynb: parameter 'count' is 4; it must be an integer"):
        execute(make_notebook("count: int = 1", cell), tmp_path / "out.ipynb", {"count": 4})


def test_bug_inside_keeps_its_traceback(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute(make_notebook("count: int = 1", "1 / 0"), tmp_path / "out.ipynb", {})


def test_endless_cell_is_stopped(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"made.ipynb: a cell took longer than 1 s"):
        execute(make_notebook("count: int = 1", "while True: pass"), tmp_path / "out.ipynb", {}, timeout=1)


def test_what_a_kernel_complains_of_is_shown_only_if_it_dies(
    make_notebook: MakeNotebook, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    complain = "import os\nos.write(2, b'one\\ntwo\\n')"
    execute(make_notebook("count: int = 1", complain), tmp_path / "out.ipynb", {})
    with pytest.raises(InputError, match=r"^made.ipynb: the kernel died: two$"):
        execute(make_notebook("count: int = 1", f"{complain}\nos._exit(3)"), tmp_path / "out.ipynb", {})
    assert capfd.readouterr().err == ""


def test_an_interrupt_while_the_kernel_starts_leaves_none(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def interrupted(client: nbclient.NotebookClient) -> None:
        started.append(client.km.provisioner.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(nbclient.NotebookClient, "start_new_kernel_client", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(make_notebook("count: int = 1"), tmp_path / "out.ipynb", {})
    (pid,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
