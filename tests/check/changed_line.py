"""One line of a function changed, and the rest of the package calls the changed one."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any


def function_at(path: str) -> FunctionType:
    """Return a function of the package by ``module:name``; of a method, ``module:Class.name``."""
    module, _, name = path.partition(":")
    found: Any = import_module(f"mmulab.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    found = inspect.unwrap(found)  # of one that remembers its results, the function itself
    assert isinstance(found, FunctionType)
    return found


def changed_code(path: str, old: str, new: str) -> CodeType:
    """Return the function's code with its line `old` made `new`; whoever holds the function then runs it.

    `old` is the whole line without indentation and comment, and stands once in the function.
    """
    function = function_at(path)
    lines = [line for line in _source(function) if not line.startswith("@")]
    places = [at for at, line in enumerate(lines) if line.partition("  #")[0].strip() == old]
    assert len(places) == 1, f"{path} has {len(places)} lines '{old}', expected one"
    line = lines[places[0]]
    lines[places[0]] = line[: len(line) - len(line.lstrip())] + new
    scope: dict[str, FunctionType] = {}
    flags = __future__.annotations.compiler_flag
    source = compile("\n".join(lines), function.__code__.co_filename, "exec", flags, dont_inherit=True)
    exec(source, dict(function.__globals__), scope)
    return scope[function.__name__].__code__


def _source(function: FunctionType) -> list[str]:
    return textwrap.dedent(inspect.getsource(function)).split("\n")
