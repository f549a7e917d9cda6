"""A real JupyterLab with one notebook, for the browser tests."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.browser.conftest import LOCAL

if TYPE_CHECKING:
    from playwright.sync_api import Page

ADDRESS = re.compile(r"(http://127\.0\.0\.1:\d+)/lab(\?token=\w+)")
PATIENCE = 90_000
"""Milliseconds to wait for the server's and the kernel's start on a busy machine."""

# JupyterLab may start a second kernel at once and drop the first, so "idle" counts only when it lasts.
WATCH_KERNEL = """() => {
    window.samples = 0;
    let last = null;
    setInterval(async () => {
        const sessions = await (await fetch('/api/sessions')).json();
        const kernel = sessions.length === 1 ? sessions[0].kernel : {};
        const ready = kernel.execution_state === 'idle' && kernel.connections >= 1 ? kernel.id : null;
        window.samples = ready !== null && ready === last ? window.samples + 1 : 0;
        last = ready;
    }, 500);
}"""


def notebook_of(cells: Sequence[str], path: Path) -> Path:
    """Write a notebook of these code cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    written = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=written, metadata=kernel), path)
    return path


@contextmanager
def jupyterlab(notebook: Path, folder: Path) -> Iterator[str]:
    """Serve a copy of `notebook` from `folder` and yield its address."""
    shutil.copy(notebook, folder)
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"]
    log = subprocess.PIPE
    with subprocess.Popen(command, env={**os.environ, **own}, stderr=log, text=True, cwd=folder) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, map(ADDRESS.search, process.stderr)), None)
            assert found, "the server ended without saying its address"
            _wait_until_it_listens(process, int(found[1].rpartition(":")[2]))
            yield f"{found[1]}/lab/tree/{notebook.name}{found[2]}"
        finally:  # after a failure too, or the failure waits for the server to end
            process.terminate()
            process.communicate()


def _wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    """Wait out the moment between the address in the log and the open port."""
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    pytest.fail(f"the server ended with {process.returncode}")


def run_all(page: Page, server: str, *, last: str) -> list[str]:
    """Open a notebook and run all its cells, until an output holds `last`.

    Returns
    -------
    list of str
        What the page wants from other machines, now and from then on.
    """
    remote: list[str] = []
    here = (*LOCAL, server.partition("/lab/")[0])
    page.on("request", lambda request: None if request.url.startswith(here) else remote.append(request.url))
    page.goto(server, timeout=PATIENCE)
    page.locator(".jp-Notebook").wait_for(timeout=PATIENCE)
    page.evaluate(WATCH_KERNEL)
    page.wait_for_function("window.samples >= 4", timeout=PATIENCE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.locator(".jp-OutputArea-output", has_text=last).wait_for(timeout=PATIENCE)
    wait_until_idle(page)
    return remote


def wait_until_idle(page: Page) -> None:
    """Wait for the kernel: a control used while it is at work may be answered before it is drawn again."""
    page.evaluate("window.samples = 0")
    page.wait_for_function("window.samples >= 2", timeout=PATIENCE)
