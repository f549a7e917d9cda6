"""Running a notebook through papermill, with its parameters checked and a limit on its time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmulab.errors import InputError
from mmulab.lab.parameters import resolve

__all__ = ["CELL_TIMEOUT", "execute"]

CELL_TIMEOUT = 1200
"""Seconds that one cell may take, unless the caller says otherwise."""


def execute(path: Path, output: Path, given: Mapping[str, object], *, timeout: int = CELL_TIMEOUT) -> Any:
    """Run the notebook at `path` and write the executed one to `output`.

    Parameters
    ----------
    path, output : pathlib.Path
    given : mapping of str to object
        Parameters, as :func:`mmulab.lab.parameters.resolve` takes them.
    timeout : int
        Seconds that one cell may take.

    Returns
    -------
    nbformat.NotebookNode
        The executed notebook.

    Raises
    ------
    InputError
        If a parameter is refused, by its declaration or by the notebook's own check, or if a
        cell takes longer than `timeout`.
    papermill.exceptions.PapermillExecutionError
        If a cell fails otherwise: a bug, shown with the cell's traceback.
    """
    values = resolve(path, given)
    # papermill and nbclient take two seconds to import, so a refused parameter does not wait for them.
    from nbclient.exceptions import CellTimeoutError
    from papermill import PapermillExecutionError, execute_notebook

    managers: list[Any] = []
    too_long = f"{path.name}: a cell took longer than {timeout} s; give smaller parameters or more time"
    try:
        executed = execute_notebook(
            path,
            output,
            parameters={name: values[name] for name in given},
            execution_timeout=timeout,
            cwd=path.resolve().parent,
            progress_bar=sys.stderr.isatty(),
            request_save_on_cell_execute=False,
            kernel_manager_class=_known_to(managers),
            # The kernel warns about its own transport on every start.
            extra_arguments=["--log-level=50"],
        )
    except CellTimeoutError as error:
        raise InputError(too_long) from error
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


def _known_to(managers: list[Any]) -> type:
    """Return a class of kernel managers each of which enters itself in `managers`."""
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            managers.append(self)

    return KernelManager


def _kill(manager: Any) -> None:
    """Kill a kernel that still runs: an interrupt may come where nbclient does not shut it down."""
    process = getattr(manager.provisioner, "process", None)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
        manager.cleanup_connection_file()
