"""papermill's engine, and a little more: what a stopped notebook had, and what its kernel imported.

Imported only where a notebook runs: papermill takes two seconds.

Source: papermill 2.7.0, ``engines.py`` and ``clientwrap.py``; the messaging protocol of Jupyter 5.4
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

__all__ = ["KEY", "NAME"]

NAME = "mmulab"
"""What papermill knows the engine by."""
KEY = "mmulab"
"""In the notebook's metadata: what :func:`mmulab.report.provenance.imported` said in the kernel."""
_ASK = "__import__('json').dumps(__import__('mmulab.report.provenance', fromlist=['']).imported())"


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        # Silent: neither the notebook nor the kernel's history shows it.
        asked = self.kc.execute("", silent=True, store_history=False, user_expressions={"it": _ASK})
        reply = self.wait_for_reply(asked)
        answer = reply["content"].get("user_expressions", {}).get("it", {}) if reply else {}
        if answer.get("status") == "ok":
            self.nb.metadata[KEY] = {"packages": json.loads(ast.literal_eval(answer["data"]["text/plain"]))}


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        execution_timeout: int,
        start_timeout: int = 60,
        input_path: str = "",
        **options: Any,
    ) -> Any:
        client = _Client(
            nb_man,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log=logger,
            **options,
        )
        try:
            return client.execute()
        except Exception:  # a cell took too long, or the kernel died: papermill writes nothing then
            nbformat.write(nb_man.nb, Path(nb_man.nb.metadata.papermill["output_path"]))
            raise


papermill_engines.register(NAME, _Engine)
