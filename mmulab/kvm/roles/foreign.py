"""A user's own role design: a class in a file or a module of the user's."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

from mmulab.errors import InputError
from mmulab.kvm.roles.design import RoleDesign


def load_design(reference: str) -> RoleDesign:
    """Return the design that ``file.py:Class`` or ``module:Class`` names.

    Raises
    ------
    InputError
        There is none.
    """
    where, _, wanted = reference.rpartition(":")
    try:
        module, digest = _from_file(where) if where.endswith(".py") else _from_module(where)
        found = getattr(module, wanted)
    except (ImportError, OSError, SyntaxError, AttributeError, ValueError) as error:
        raise InputError(f"role design {reference!r}: cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, RoleDesign)):
        base = f"{RoleDesign.__module__}.{RoleDesign.__name__}"
        raise InputError(f"role design {reference!r}: {wanted} is no subclass of {base}")
    design = found()
    design.reference, design.digest = reference, digest
    return design


def _from_file(path: str) -> tuple[ModuleType, str]:
    """Execute a file as a module of its own; return that, and the file's digest."""
    source = Path(path).read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    module = ModuleType(f"mmulab_design_{digest[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses and type hints look it up
    exec(compile(source, path, "exec"), vars(module))
    return module, digest


def _from_module(name: str) -> tuple[ModuleType, str]:
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    return module, "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
