"""papermill's engine, and a little more: what a stopped notebook had, and what its kernel imported.

Imported only where a notebook runs: papermill takes two seconds.

Source: papermill 2.7.0, ``engines.py`` and ``clientwrap.py``; the messaging protocol of Jupyter 5.4
"""

from __future__ import annotations

import ast
import json
import sys
from logging import NullHandler
from pathlib import Path
from typing import Any

from mmulab.report import provenance
from mmulab.report.document import load_jsonschema

load_jsonschema()

import nbformat  # noqa: E402
from papermill.clientwrap import PapermillNotebookClient  # noqa: E402
from papermill.engines import NBClientEngine, papermill_engines  # noqa: E402
from papermill.log import logger  # noqa: E402

__all__ = ["KEY", "NAME"]

NAME = "mmulab"
"""What papermill knows the engine by."""
KEY = "mmulab"
"""In the notebook's metadata: what :func:`mmulab.report.provenance.imported` said in the kernel."""
_MODULES = "[(s := __import__('sys')).prefix, sorted({name.partition('.')[0] for name in s.modules})]"
"""Where the kernel's packages are, and the modules that it has."""
_PACKAGES = "__import__('mmulab.report.provenance', fromlist=['']).imported()"
"""The same as packages: it reads what is installed, which this process has read once for all its kernels."""


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        prefix, modules = self._ask(_MODULES) or (None, None)
        packages = provenance.imported(modules) if prefix == sys.prefix else self._ask(_PACKAGES)
        if packages is not None:
            self.nb.metadata[KEY] = {"packages": packages}

    def _ask(self, expression: str) -> Any:
        """Return what the kernel makes of an expression; None if it is gone or cannot say."""
        # Silent: neither the notebook nor the kernel's history shows it.
        about = {"it": f"__import__('json').dumps({expression})"}
        asked = self.kc.execute("", silent=True, store_history=False, user_expressions=about)
        reply = self.wait_for_reply(asked)
        answer = reply["content"].get("user_expressions", {}).get("it", {}) if reply else {}
        if answer.get("status") != "ok":
            return None
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))


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
# A kernel's death is raised; without a handler the logger would say it on stderr as well.
logger.addHandler(NullHandler())
