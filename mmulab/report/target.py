"""What a run runs: a notebook, or a function that returns results tables."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmulab.errors import InputError, quoted
from mmulab.report import provenance
from mmulab.report.parameters import Parameter, declared

__all__ = ["Target"]

_TYPES = (int, float, str, bool)


@dataclass(frozen=True, slots=True)
class Target:
    """A notebook or a function.

    Attributes
    ----------
    kind : {'notebook', 'function'}
    name : str
        The notebook's path, relative to the checkout if it lies inside; or ``module:function``.
    """

    kind: Literal["notebook", "function"]
    name: str

    @classmethod
    def of_notebook(cls, path: Path) -> Target:
        """Return the target that the notebook at `path` is."""
        return cls("notebook", provenance.name_of(path))

    @property
    def path(self) -> Path:
        """Where the notebook is."""
        return provenance.path_of(self.name)

    @property
    def stem(self) -> str:
        """The name in short."""
        return Path(self.name).stem if self.kind == "notebook" else self.name.rpartition(":")[2]

    def parameters(self) -> dict[str, Parameter]:
        """Return the parameters by name; one that must be given has ``inspect.Parameter.empty`` as default.

        Raises
        ------
        InputError
            There is no such notebook or function, or it declares its parameters otherwise than it must.
        """
        return declared(self.path) if self.kind == "notebook" else _of_signature(self.function(), self.name)

    def resolve(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return the value of every parameter: what is `given`, and the defaults of the rest.

        Raises
        ------
        InputError
            A parameter is unknown, of the wrong type, or must be given and is not.
        """
        known = self.parameters()
        for name in given:
            if name not in known:
                has = ", ".join(known) or "none"
                raise InputError(f"{self._short}: unknown parameter '{quoted(name)}'; it has {has}")
        found = {}
        for name, parameter in known.items():
            if name not in given and parameter.default is inspect.Parameter.empty:
                raise InputError(f"{self._short}: parameter '{name}' must be given")
            try:
                found[name] = parameter.accept(given[name]) if name in given else parameter.default
            except InputError as error:
                raise InputError(f"{self._short}: {error}") from error
        return found

    @property
    def _short(self) -> str:
        return Path(self.name).name if self.kind == "notebook" else self.name

    def function(self) -> Callable[..., Any]:
        """Import the function.

        Raises
        ------
        InputError
        """
        module, _, name = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # a module runs whatever it holds
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"function '{self.name}': cannot be imported ({quoted(why, 200)})") from error
        if not callable(found):
            raise InputError(f"function '{self.name}': not a function but a {type(found).__name__}")
        return typing.cast("Callable[..., Any]", found)


def _of_signature(function: Callable[..., Any], name: str) -> dict[str, Parameter]:
    try:
        hints = typing.get_type_hints(function)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"function '{name}': its signature cannot be read ({error})") from error
    found = {}
    for one in signature.parameters.values():
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) or hints.get(one.name) not in _TYPES:
            mend = "declare it as int, float, str or bool"
            raise InputError(f"function '{name}': parameter '{one.name}' cannot be set; {mend}")
        found[one.name] = Parameter(one.name, hints[one.name], one.default, "")
    return found
