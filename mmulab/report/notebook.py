"""Running a notebook through papermill, with its parameters checked and a limit on its time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from mmulab.errors import InputError
from mmulab.report.parameters import resolve

__all__ = ["CELL_TIMEOUT", "execute"]

CELL_TIMEOUT = 1200
"""Seconds that one cell may take, unless the caller says otherwise."""


def execute(path: Path, output: Path, given: Mapping[str, object], *, timeout: int = CELL_TIMEOUT) -> Any:
    """Run the notebook at `path` and write the executed one to `output`, as far as it came.

    Parameters
    ----------
    path, output : pathlib.Path
    given : mapping of str to object
        Parameters, as :func:`mmulab.report.parameters.resolve` takes them.
    timeout : int
        Seconds that one cell may take.

    Returns
    -------
    nbformat.NotebookNode
        The executed notebook.

    Raises
    ------
    InputError
        If a parameter is refused, by its declaration or by the notebook's own check, if a cell
        takes longer than `timeout`, or if the kernel dies, as when memory runs out.
    papermill.exceptions.PapermillExecutionError
        If a cell fails otherwise: a bug, shown with the cell's traceback.
    """
    values = resolve(path, given)
    # papermill and nbclient take two seconds to import, so a refused parameter does not wait for them.
    from mmulab.report import engine  # isort: split
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    managers: list[Any] = []
    too_long = f"{path.name}: a cell took longer than {timeout} s; give smaller parameters or more time"
    with TemporaryFile() as complaints:
        try:
            executed = execute_notebook(
                path,
                output,
                parameters={name: values[name] for name in given},
                engine_name=engine.NAME,
                execution_timeout=timeout,
                cwd=path.resolve().parent,
                progress_bar=sys.stderr.isatty(),
                request_save_on_cell_execute=False,
                kernel_manager_class=_managers(managers, complaints),
                # The kernel warns about its own transport on every start.
                extra_arguments=["--log-level=50"],
            )
        except CellTimeoutError as error:
            raise InputError(too_long) from error
        except DeadKernelError as error:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise InputError(f"{path.name}: the kernel died: {last or 'it said nothing'}") from error
        except PapermillExecutionError as error:
            if error.ename == InputError.__name__:
                raise InputError(f"{path.name}: {error.evalue}") from error
            raise
        finally:
            for manager in managers:
                _kill(manager)
    # A reply that nbclient loses leaves a cell that waits for the limit and then counts as completed.
    durations = [cell.metadata.get("papermill", {}).get("duration") or 0 for cell in executed.cells]
    if max(durations, default=0) >= timeout:
        raise InputError(too_long)
    return executed


def _managers(started: list[Any], complaints: IO[bytes]) -> type:
    """Return a class of kernel managers: each enters itself in `started`, its kernel complains to a file.

    A kernel that is interrupted while it shuts down prints tracebacks about its sockets.
    """
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

        async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]  # not declared async
            await super().start_kernel(**kwargs, stderr=complaints)

    return KernelManager


def _kill(manager: Any) -> None:
    """Kill a kernel that still runs: an interrupt may come where nbclient does not shut it down."""
    process = getattr(manager.provisioner, "process", None)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
        manager.cleanup_connection_file()
